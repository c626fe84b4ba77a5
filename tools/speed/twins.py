"""What two networks cost beside each other: in turns, in one process, as medians of ratios."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from torch import nn

from backbones import build_backbone, build_network
from backbones.cost import count_multiply_adds, count_parameters
from backbones.device import choose_device, memory_of_call, processor_name
from backbones.equal_cost import EqualCost, Sizes, choose, spell, twin_with_sizes
from backbones.inference import prepare_for_inference
from backbones.registry import describe_backbone
from tools.experiments.measured import Conditions, Measured, Ratio, Side
from tools.experiments.record import Network, describe_versions
from tools.speed.energy import energy_meter
from tools.speed.networks import images, place
from tools.speed.timing import choose_clock, interleave, median_interval

LEAST_ROUNDS = 7  # from six on the median has a 95 % interval
_BURST = 1.0  # seconds of work between two readings of the energy
_TRY = 0.1  # of the seconds, for each network that a search looks at


@dataclass(frozen=True)
class How:
    """How to measure."""

    batch_size: int = 16  # of throughput, memory and energy
    size: tuple[int, int] | None = None  # height, width; None: what the networks are made for
    device: str = "auto"
    rounds: int | None = None  # None: as many as the seconds allow, 7 at least
    seconds: float = 60.0  # for latency, and as many for throughput
    mode: str = "auto"  # of `prepare_for_inference`
    classes: int | None = None  # of the classifier; 0: none; None: as the first is published


def measure(first: Network, second: Network, how: How) -> Measured:
    """Measure two networks with fresh weights, the second over the first.

    Raises:
        ValueError: an unknown network, option, mode or device; networks made for images of different
            sizes without a size given; numbers that are not above 0.
    """
    bench = _Bench(first, how)
    sides = [bench.prepare(first), bench.prepare(second)]
    with torch.inference_mode():
        alone = bench.rounds(sides, 1)
        together = bench.rounds(sides, how.batch_size)
        batch = bench.images(how.batch_size)
        memory = [memory_of_call(partial(call, batch), bench.device) for call in sides]
        joules, why = bench.joules(sides)
    peaks = [
        None if used is None else used + sum(t.nbytes for t in (*s.parameters(), *s.buffers()))
        for used, s in zip(memory, sides, strict=True)
    ]
    described = []
    for place_, network in enumerate((first, second)):
        seconds = statistics.median(row[place_] for row in together)
        built = bench.build(network)
        described.append(
            Side(
                network,
                count_parameters(built),
                count_multiply_adds(built, bench.image),
                1000 * statistics.median(row[place_] for row in alone),
                how.batch_size / seconds,
                peaks[place_],
                statistics.median(row[place_] for row in joules) if joules else None,
            )
        )
    return Measured(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        first=described[0],
        second=described[1],
        latency=_ratio(alone),
        throughput=_ratio([(after, before) for before, after in together]),
        peak_memory=_ratio_of_peaks(peaks),
        energy=_ratio(joules) if joules else Ratio(None, reason=why),
        conditions=bench.conditions(),
        versions=describe_versions(),
        command=shlex.join(["sebench", *sys.argv[1:]]),
    )


def find_equal_latency(
    name: str,
    options: Mapping[str, Any],
    way: str | None,
    within: float,
    how: How,
    tell: Callable[[str], None] = lambda _: None,
) -> EqualCost:
    """Find the plain network of an SE network's latency, one image alone, measured beside it.

    What the search looks at is measured for a tenth of the seconds; what it chooses for all of them,
    and that is what counts.

    Args:
        tell: takes a line about each measurement.

    Raises:
        ValueError: as `backbones.equal_cost.find_equal_cost`, or as `measure`.
    """
    twin = twin_with_sizes(name, options)
    network = Network(name, dict(options))
    bench = _Bench(network, how)
    se = bench.prepare(network)
    known: dict[str, float] = {}

    def ratio(sizes: Sizes, share: float = _TRY) -> float:
        plain = Network(twin.name, twin.at(sizes))
        spelled = spell(plain.name, plain.options)
        if (key := f"{spelled} {share}") not in known:
            with torch.inference_mode():
                found = _ratio(bench.rounds([se, bench.prepare(plain)], 1, share))
            known[key] = found.value or 0.0
            tell(f"{spelled}: {_percent(found)} of the latency of {spell(name, options)}")
        return known[key]

    return choose(twin, way, within, ratio, confirm=partial(ratio, share=1.0))


class _Bench:
    """Where and how two networks are measured."""

    def __init__(self, first: Network, how: How) -> None:
        for name in ("batch_size", "rounds", "seconds"):
            value = getattr(how, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: it must be above 0")
        info = describe_backbone(first.name)
        self.how = how
        self.first = first.name
        self.device = choose_device(how.device)
        self.classes = info.classes if how.classes is None else how.classes
        self.image = (3, *(how.size or (info.input_size, info.input_size)))
        self.clock, self.clock_name = choose_clock(self.device)

    def build(self, network: Network) -> nn.Module:
        info = describe_backbone(network.name)
        if self.how.size is None and info.input_size != self.image[1]:
            raise ValueError(
                f"{self.first} is made for images of {self.image[1]} pixels a side, {network.name}"
                f" for {info.input_size}: give one --size"
            )
        torch.manual_seed(0)
        if self.classes == 0:
            return build_backbone(network.name, **network.options)
        return build_network(network.name, self.classes, **network.options)

    def prepare(self, network: Network) -> nn.Module:
        placed = place(self.build(network), self.device, torch.float32)
        return prepare_for_inference(placed, self.how.mode)

    def images(self, count: int) -> torch.Tensor:
        return images(count, self.image[1:], self.device, torch.float32)

    def rounds(
        self, sides: Sequence[nn.Module], batch: int, share: float = 1.0
    ) -> list[tuple[float, float]]:
        """Seconds of a pass by the first and by the second, round by round."""
        x = self.images(batch)
        first, second = (partial(self.clock, partial(call, x)) for call in sides)
        asked = self.how.rounds
        seconds = share * self.how.seconds if asked is None else 0.0
        found = interleave(second, first, seconds, asked or LEAST_ROUNDS)
        return [(before, after) for after, before in found]

    def joules(self, sides: Sequence[nn.Module]) -> tuple[list[tuple[float, float]], str]:
        """Joules an image by both, round by round; or none, and why."""
        try:
            read = energy_meter(self.device)
        except ValueError as error:
            return [], str(error)
        x = self.images(self.how.batch_size)

        def burst(call: nn.Module) -> float:
            passes, seconds, before = 0, 0.0, read()
            while seconds < _BURST:
                seconds += self.clock(partial(call, x))
                passes += 1
            return (read() - before) / (passes * self.how.batch_size)

        first, second = (partial(burst, call) for call in sides)
        found = interleave(second, first, 0.0, LEAST_ROUNDS)
        return [(before, after) for after, before in found], ""

    def conditions(self) -> Conditions:
        on_gpu = self.device.type == "cuda"
        return Conditions(
            self.device.type,
            torch.cuda.get_device_name(self.device) if on_gpu else processor_name(),
            torch.get_num_threads(),
            self.clock_name,
            list(self.image),
            self.how.batch_size,
            self.how.mode,
            self.classes,
        )


def _ratio(rounds: Sequence[tuple[float, float]]) -> Ratio:
    """The second over the first."""
    if not all(before > 0 and after > 0 for before, after in rounds):
        return Ratio(None, reason="too short for the clock or meter to tell")
    value, low, high = median_interval([after / before for before, after in rounds])
    return Ratio(value, low, high, len(rounds))


def _ratio_of_peaks(peaks: Sequence[int | None]) -> Ratio:
    """Of what is the same every time: no interval."""
    first, second = peaks
    if first is None or second is None:
        return Ratio(None, reason="this system does not tell the peak of a call")
    return Ratio(second / first, rounds=1)


def _percent(ratio: Ratio) -> str:
    if ratio.value is None:
        return f"not measured ({ratio.reason})"
    bounds = "" if ratio.low is None else f" [{100 * ratio.low:.1f}, {100 * (ratio.high or 0):.1f}]"
    return f"{100 * ratio.value:.1f} %{bounds}"
