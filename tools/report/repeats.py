"""Runs that are there more than once, as where several people's results are joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from tools.experiments.record import METRICS, Record
from tools.report.pairs import describe_network

DUPLICATE, REPETITION, CONTRADICTION = "duplicate", "repetition", "contradiction"
_SHOWN = 3  # metrics, or runs


@dataclass(frozen=True)
class Repeat:
    """One experiment that several records are of."""

    kind: str  # the same record; another with the same numbers; one with other numbers
    experiment: str  # hash
    network: str
    dataset: str
    seed: int
    runs: tuple[str, ...]  # their names
    text: str  # the whole in a sentence


def find_repeats(records: Sequence[Record]) -> tuple[list[Record], tuple[Repeat, ...]]:
    """The records, each once, and what was there more than once."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.hash].append(record)
    dropped: set[int] = set()
    repeats = []
    for group in groups.values():
        if len(group) == 1:
            continue
        copies: dict[bytes, list[Record]] = defaultdict(list)
        for record in group:
            content = replace(record, directory=None, name="", annotations=None)
            copies[msgspec.json.encode(content)].append(record)
        distinct = [same[0] for same in copies.values()]
        dropped |= {id(record) for same in copies.values() for record in same[1:]}
        repeats += [_repeat(DUPLICATE, same) for same in copies.values() if len(same) > 1]
        if any(_numbers(record) != _numbers(distinct[0]) for record in distinct):
            repeats.append(_repeat(CONTRADICTION, distinct))
        elif len(distinct) > 1 and len({record.git.commit for record in distinct}) == 1:
            repeats.append(_repeat(REPETITION, distinct))
    order = (CONTRADICTION, REPETITION, DUPLICATE)
    kept = [record for record in records if id(record) not in dropped]
    return kept, tuple(sorted(repeats, key=lambda repeat: order.index(repeat.kind)))


def _numbers(record: Record) -> dict[str, float | None]:
    return {name: metric.value for name, metric in record.metrics.items()}


def _repeat(kind: str, group: Sequence[Record]) -> Repeat:
    first = group[0]
    network = describe_network(first.backbone)
    data = f"{first.dataset.name} {first.dataset.split}"
    names = tuple(record.name for record in group)
    listed = ", ".join(names[:_SHOWN])
    listed += f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    commits = dict.fromkeys(str(record.git.commit)[:9] for record in group)
    counts = "the latest counts"
    if len(commits) > 1:
        counts = f"each counts with its commit, {', '.join(commits)}"
    said = {
        DUPLICATE: "the same record; it counts once",
        REPETITION: f"run again, with the same numbers; {counts}",
        CONTRADICTION: f"other numbers of one experiment ({_differing(group)}); {counts}",
    }
    text = f"{kind}: {network}, {data}, seed {first.seed}, in {listed}: {said[kind]}"
    return Repeat(kind, first.hash, network, data, first.seed, names, text)


def _differing(group: Sequence[Record]) -> str:
    """The first metrics that differ, with their values in order of the runs."""
    names = [name for name in METRICS if len({_numbers(r).get(name) for r in group}) > 1]
    shown = []
    for name in names[:_SHOWN]:
        values = dict.fromkeys(_numbers(record).get(name) for record in group)
        told = ["none" if value is None else f"{value:.6g}" for value in list(values)[:5]]
        shown.append(f"{METRICS[name].label} {' and '.join(told)}")
    return "; ".join(shown)
