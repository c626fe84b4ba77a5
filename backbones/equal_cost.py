"""The plain network, wider or deeper, that costs what an SE network costs.

At equal depth an SE network has more parameters, a few more multiply-adds and more latency than its
plain twin. A network that spends as much on width or depth tells what attention is worth beside that.
"""

import functools
import heapq
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backbones.config import check_choice
from backbones.registry import describe_backbone, find_backbone, twin_of
from backbones.zoo import PAIRS, SIZES, Pair

COUNTED = ("parameters", "multiply_adds")  # latency is measured: `tools.speed.twins`
WAYS = ("wider", "deeper")
WITHIN = 1.0  # percent, of what is called equal
_MOST_ADDED = 12  # blocks of a stage
Sizes = dict[str, tuple[int, ...]]  # `layers` and, where the family has them, `widths`


@dataclass(frozen=True)
class EqualCost:
    """A plain network, and its cost over that of the SE network it was found for."""

    name: str
    options: dict[str, Any]
    way: str  # "wider", "deeper", or "as it is": the plain twin at equal depth
    ratio: float

    @property
    def error(self) -> float:
        """How far from equal, percent."""
        return 100 * abs(self.ratio - 1)


def find_equal_cost(
    name: str,
    options: Mapping[str, Any],
    measure: str,
    way: str | None = None,
    within: float = WITHIN,
    classes: int | None = None,
) -> EqualCost:
    """Find the plain network of an SE network's parameters or multiply-adds.

    Args:
        name, options: of the SE network.
        measure: one of COUNTED, by the first rule of `cost`.
        way: "wider" or "deeper"; None takes the plain twin as it is where that costs the same, else
            the wider network, else the deeper one.
        within: percent.
        classes: of the classifier that counts too; 0: the backbone alone; None: as published.

    Raises:
        ValueError: the network has no plain twin of other sizes, or none is near enough; the message
            names the nearest.
    """
    check_choice("match", measure, COUNTED)
    twin = twin_with_sizes(name, options)
    if classes is None:
        classes = describe_backbone(name).classes

    def count(network: str, chosen: Mapping[str, Any]) -> int:
        return _count(network, json.dumps(chosen), measure, classes)

    target = count(name, options)
    return choose(twin, way, within, lambda sizes: count(twin.name, twin.at(sizes)) / target)


def spell(name: str, options: Mapping[str, Any]) -> str:
    """A network as the command line reads it: "resnet50 widths=[66,132,264,528]"."""
    return " ".join(
        [name, *(f"{k}={json.dumps(v, separators=(',', ':'))}" for k, v in options.items())]
    )


@dataclass(frozen=True)
class Twin:
    """The plain twin at equal depth, and its sizes."""

    name: str
    options: dict[str, Any]
    sizes: Sizes

    def at(self, sizes: Sizes) -> dict[str, Any]:
        """Its options at other sizes; those that it has anyway are left out."""
        changed = {key: list(value) for key, value in sizes.items() if value != self.sizes[key]}
        return self.options | changed


def twin_with_sizes(name: str, options: Mapping[str, Any]) -> Twin:
    """The plain twin of an SE network whose family has sizes to choose.

    Raises:
        ValueError: it is plain itself, or its family has none.
    """
    able = [pair.se for pair in PAIRS if "layers" in pair.options]
    entry = find_backbone(name) if ":" not in name else None
    if not isinstance(entry, Pair) or "layers" not in entry.options:
        raise ValueError(
            f"{name}: no plain network of equal cost can be made of it; residual networks of the"
            f" suite have stages to widen or deepen: {', '.join(able)}"
        )
    found = twin_of(name, dict(options))
    if found is None:
        raise ValueError(f"{name} is plain itself; name its SE network, {entry.se}")
    sizes = {
        key: tuple(found[1].get(key, entry.arguments[key])) for key in SIZES if key in entry.options
    }
    return Twin(*found, sizes)


def choose(
    twin: Twin,
    way: str | None,
    within: float,
    ratio: Callable[[Sizes], float],
    confirm: Callable[[Sizes], float] | None = None,
) -> EqualCost:
    """The first way to a network whose `ratio` to the SE network is near enough to 1.

    Args:
        ratio: rises with the sizes.
        confirm: where `ratio` is a rough measurement, a better one: the nearest three are put to it.

    Raises:
        ValueError: there is none, or the family cannot be made wider.
    """
    if way is not None:
        check_choice("by", way, WAYS)
    if way == "wider" and "widths" not in twin.sizes:
        raise ValueError(f"{twin.name} has no widths to choose; it can be made deeper")
    tried = []
    for chosen in ("as it is", *WAYS) if way is None else (way,):
        nearest = [twin.sizes]
        if chosen == "wider":
            nearest = _wider(twin.sizes, ratio, exact=confirm is None)
        elif chosen == "deeper":
            nearest = _deeper(twin.sizes, ratio, within)
        for sizes in nearest[: 1 if confirm is None else 3]:
            found = EqualCost(twin.name, twin.at(sizes), chosen, (confirm or ratio)(sizes))
            if found.error <= within:
                return found
            tried.append(found)
    closest = min(tried, key=lambda found: found.error)
    raise ValueError(
        f"no {way or 'wider or deeper'} {twin.name} costs the same within {within:g} %; the nearest,"
        f" {spell(closest.name, closest.options)}, is at {100 * closest.ratio:.2f} %; allow so much"
        " with --within, or match another cost"
    )


def _wider(sizes: Sizes, ratio: Callable[[Sizes], float], exact: bool) -> list[Sizes]:
    """All stages by one factor, found by halving; the nearest first.

    Where costs are exact, each is then rounded down or up.
    """
    if "widths" not in sizes:
        return []
    tried: dict[tuple[int, ...], float] = {}

    def at(widths: tuple[int, ...]) -> float:
        if widths not in tried:
            tried[widths] = ratio(sizes | {"widths": widths})
        return tried[widths]

    def by(factor: float) -> tuple[int, ...]:
        return tuple(round(factor * width) for width in sizes["widths"])

    low, high = 1.0, 1.25
    while at(by(high)) < 1 and high < 8:
        low, high = high, 2 * high
    while high - low > 0.25 / max(sizes["widths"]):
        middle = (low + high) / 2
        low, high = (middle, high) if at(by(middle)) < 1 else (low, middle)
    if exact:
        around = [sorted({math.floor(high * w), math.ceil(high * w)}) for w in sizes["widths"]]
        for widths in itertools.product(*around):
            at(widths)
    tried.pop(sizes["widths"], None)  # the plain twin as it is
    return [sizes | {"widths": w} for w in sorted(tried, key=lambda w: abs(tried[w] - 1))]


def _deeper(sizes: Sizes, ratio: Callable[[Sizes], float], within: float) -> list[Sizes]:
    """The fewest further blocks that come near enough; then others, the nearest first.

    A further block of a stage costs the same each time: one count a stage says what each will.
    """
    now, stages = ratio(sizes), range(len(sizes["layers"]))
    steps = [
        ratio(_added(sizes, [int(stage == each) for each in stages])) - now for stage in stages
    ]
    most = [min(_MOST_ADDED, math.ceil((1 - now) / max(step, 1e-3)) + 1) for step in steps]

    def rank(added: Sequence[int]) -> tuple[bool, int, float]:
        error = abs(now + sum(n * step for n, step in zip(added, steps, strict=True)) - 1)
        return 100 * error > within, sum(added) if 100 * error <= within else 0, error

    blocks = itertools.product(*(range(max(0, n) + 1) for n in most))
    return [_added(sizes, n) for n in heapq.nsmallest(3, filter(any, blocks), key=rank)]


def _added(sizes: Sizes, blocks: Sequence[int]) -> Sizes:
    return sizes | {"layers": tuple(map(sum, zip(sizes["layers"], blocks, strict=True)))}


@functools.lru_cache(4096)
def _count(name: str, options: str, measure: str, classes: int) -> int:
    import torch

    from backbones.build import build_backbone
    from backbones.cost import count_multiply_adds, count_parameters
    from backbones.features import Network

    with torch.device("meta"):
        backbone = build_backbone(name, **json.loads(options))
        network: torch.nn.Module = Network(backbone, classes) if classes else backbone
    if measure == "parameters":
        return count_parameters(network)
    size = find_backbone(name).input_size
    return count_multiply_adds(network, (3, size, size))
