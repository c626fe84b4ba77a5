"""Which runs are twins: the same in everything but the backbone.

A pair is refused, with the reasons, when recipe, data, protocol, commit or seed differ; asked for
all the same, it is made and marked.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from backbones.config import flatten
from tools.experiments.networks import network_label
from tools.experiments.record import Network, Record
from tools.report.costs import (
    EQUAL_COST,
    EQUAL_DEPTH,
    SideBySide,
    equal_costs,
    is_of_equal_depth,
    is_resized,
    key_of,
    names_of_equal,
    network_key,
    resized_twins,
)

NEAR_MISSES = 200  # runs of the twin looked at for what differs, where none is equal


@dataclass(frozen=True)
class Pair:
    """A candidate and its plain twin, run for run: one of each a seed."""

    plain: tuple[Record, ...]
    candidate: tuple[Record, ...]
    unequal: tuple[str, ...] = ()  # what differs all the same, asked for
    equal: tuple[str, ...] = ()  # costs that a plain network of other sizes has in common

    @property
    def at(self) -> str:
        """What the networks have in common: equal depth, equal cost, or nothing that is known."""
        if self.equal:
            return f"{EQUAL_COST} ({', '.join(self.equal)})"
        plain, candidate = self.plain[0].backbone, self.candidate[0].backbone
        return EQUAL_DEPTH if is_of_equal_depth(plain, candidate) else ""

    @property
    def runs(self) -> tuple[Record, ...]:
        """The plain network's, then the candidate's."""
        return *self.plain, *self.candidate


def pair_twins(
    records: list[Record], allow_unequal: bool = False, measured: SideBySide | None = None
) -> tuple[list[Pair], list[tuple[Record, str]]]:
    """Find the twins among ``records``: plain networks of equal depth, and those of equal cost.

    Returns the pairs, and every run that is in none with the reason why.

    Of runs that repeat an experiment only the latest counts; the others are unpaired.
    """
    latest, unpaired = _latest(records)
    by_network: dict[tuple[str, Any], list[Record]] = defaultdict(list)
    for record in latest:
        by_network[record.task, network_key(record.backbone)].append(record)

    together: dict[tuple[Any, ...], list[tuple[Record, Record]]] = defaultdict(list)
    taken: set[tuple[Any, ...]] = set()  # plain runs of a group: each serves one seed
    paired: set[int] = set()
    reasons: dict[int, str] = {}
    for candidate, twin, plain in _wanted(latest, reasons, measured):
        group = (network_key(candidate.backbone), network_key(twin), *_conditions(candidate))
        differences: tuple[str, ...] = ()
        if plain is None:
            name = describe_network(twin)
            runs = by_network[candidate.task, network_key(twin)][-NEAR_MISSES:]
            free = [run for run in runs if (group, id(run)) not in taken]
            if not free:
                reasons[id(candidate)] = f"no {'further ' if runs else ''}run of its twin {name}"
                continue
            differences, plain = min(
                ((_differences(run, candidate), run) for run in reversed(free)), key=_rank
            )
            if not allow_unequal:
                listed = "; ".join(differences)
                reasons[id(candidate)] = f"refused as a pair with {name}: {listed}"
                label = describe_network(candidate.backbone)
                reasons.setdefault(id(plain), f"refused as a pair with {label}: {listed}")
                continue
        paired |= {id(plain), id(candidate)}
        taken.add((group, id(plain)))
        # The seeds' own numbers left out: seeds that differ stay in one pair.
        unequal = tuple("unequal seeds" if t.startswith("seed") else t for t in differences)
        key = (*group, unequal)
        together[key].append((plain, candidate))
    for record in latest:
        if id(record) not in paired:
            is_plain = record.backbone.twin is None
            without = "no run of a network it is the plain twin of" if is_plain else "no twin"
            unpaired.append((record, reasons.get(id(record), without)))
    return [_pair(rows, key[-1], measured) for key, rows in together.items()], unpaired


def _wanted(
    records: list[Record], reasons: dict[int, str], measured: SideBySide | None
) -> list[tuple[Record, Network, Record | None]]:
    """Every candidate with a twin that it may have and that twin's run, those with one first.

    ``reasons`` gets the plain runs of other sizes that cost something else.
    """
    exact = {_identity(record, record.backbone): record for record in records}
    wanted = [(r, r.backbone.twin) for r in records if r.backbone.twin is not None]
    found = [(r, twin, exact.get(_identity(r, twin))) for r, twin in wanted]
    for candidate, twin in resized_twins(records):
        if plain := exact.get(_identity(candidate, twin)):
            ratios = _costs(plain, candidate, measured)
            if names_of_equal(ratios):
                found.append((candidate, twin, plain))
            else:
                reasons[id(plain)] = _no_equal_cost(candidate, ratios)
    return sorted(found, key=lambda row: row[2] is None)


def _latest(records: list[Record]) -> tuple[list[Record], list[tuple[Record, str]]]:
    """The last run of every experiment, and those that it repeats; ``records`` are oldest first."""
    latest: dict[tuple[str, str | None], Record] = {}
    repeated = []
    for record in records:
        key = (record.hash, record.git.commit)
        if key in latest:
            repeated.append((latest[key], "repeated later: only the latest run counts"))
        latest[key] = record
    return list(latest.values()), repeated


def _pair(
    rows: list[tuple[Record, Record]], unequal: tuple[str, ...], measured: SideBySide | None
) -> Pair:
    rows = sorted(rows, key=lambda row: row[1].seed)
    plain, candidate = rows[0]
    equal: tuple[str, ...] = ()
    if is_resized(plain.backbone, candidate.backbone):
        equal = names_of_equal(_costs(plain, candidate, measured))
    return Pair(tuple(plain for plain, _ in rows), tuple(one for _, one in rows), unequal, equal)


def _costs(
    plain: Record, candidate: Record, measured: SideBySide | None
) -> dict[str, float | None]:
    key = network_key(plain.backbone), network_key(candidate.backbone)
    return equal_costs(plain, candidate, (measured or {}).get(key))


def _no_equal_cost(candidate: Record, ratios: dict[str, float | None]) -> str:
    shown = [
        f"{name.replace('_', '-')} {'not measured side by side' if r is None else f'{100 * (r - 1):+.1f} %'}"
        for name, r in ratios.items()
    ]
    return f"no cost equals that of {describe_network(candidate.backbone)}: {', '.join(shown)}"


def describe_network(backbone: Network) -> str:
    """Name and options of a backbone, as in "se_resnet50 (reduction=4)"."""
    return network_label(backbone.name, backbone.options)


def _differences(plain: Record, candidate: Record) -> tuple[str, ...]:
    """What twins must have in common and these have not."""
    checks = {
        "recipe": (plain.experiment.recipe, candidate.experiment.recipe),
        "action": (plain.experiment.action, candidate.experiment.action),
        "data": (_data_name(plain), _data_name(candidate)),
        "protocol": (plain.protocol.name, candidate.protocol.name),
        "commit": ((plain.git.commit or "")[:9], (candidate.git.commit or "")[:9]),
        "seed": (plain.seed, candidate.seed),
    }
    found = [f"{what}: {one} and {other}" for what, (one, other) in checks.items() if one != other]
    if _data(plain) != _data(candidate) and _data_name(plain) == _data_name(candidate):
        found.append("data: other content")
    if plain.comparison_hash != candidate.comparison_hash and not found:
        found.append(f"settings: {_unequal_settings(plain, candidate)}")
    elif _protocol(plain) != _protocol(candidate) and not found:
        found.append("protocol: other settings")
    return tuple(found)


def _rank(row: tuple[tuple[str, ...], Record]) -> tuple[int, bool]:
    """Fewest differences first; a differing seed is the least of them."""
    return len(row[0]), not all(text.startswith("seed") for text in row[0])


def _identity(record: Record, backbone: Network) -> tuple[Any, ...]:
    """What a run of ``backbone`` has in common with its twin ``record``, and nothing else has."""
    recipe = record.experiment.recipe
    return network_key(backbone), recipe, record.seed, *_conditions(record)


def _conditions(record: Record) -> tuple[Any, ...]:
    return (
        record.task, record.comparison_hash, record.experiment.action, _data(record), _protocol(record),
        record.git.commit,
    )  # fmt: skip


def _unequal_settings(plain: Record, candidate: Record) -> str:
    one, other = flatten(plain.experiment.settings), flatten(candidate.experiment.settings)
    names = [
        name
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name) and not name.startswith(("backbone.", "seed"))
    ]
    shown = [f"{name} {one.get(name)} and {other.get(name)}" for name in names[:3]]
    return ", ".join(shown) or "data or weights"


def _data(record: Record) -> tuple[str, ...]:
    keys = ("name", "split", "images", "sha256", "synthetic")
    return tuple(str(getattr(record.dataset, key)) for key in keys)


def _data_name(record: Record) -> str:
    data = record.dataset
    return f"{'synthetic ' * data.synthetic}{data.name} {data.split}, {data.images} images"


def _protocol(record: Record) -> str:
    return key_of([record.protocol.name, record.protocol.settings])
