"""What the networks of a pair cost: recorded, measured side by side, and which of it is equal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backbones.zoo import PAIRS, SIZES
from tools.experiments.measured import WITHIN, Measured
from tools.experiments.record import Network, Record

EQUAL_DEPTH, EQUAL_COST = "equal depth", "equal cost"
NetworkKey = tuple[str, str]  # name, and options as text
SideBySide = Mapping[tuple[NetworkKey, NetworkKey], Measured]  # by plain network and candidate

# Of the records; their latencies are of different moments and stand in no comparison.
COSTS: dict[str, Callable[[Record], float | None]] = {
    "parameters": lambda record: record.cost.parameters,
    "multiply_adds": lambda record: record.cost.multiply_adds,
    "peak_memory_bytes": lambda record: record.timing.peak_memory_bytes,
}


@dataclass(frozen=True)
class Sides:
    """One number of the plain network and of the candidate."""

    plain: float | None
    candidate: float | None


def key_of(value: Any) -> str:
    """Plain values as text that is equal for equal ones."""
    return _ENCODER.encode(value) if value else ""


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def network_key(network: Network) -> NetworkKey:
    """What is equal for equal networks."""
    return network.name, key_of(network.options)


def side_by_side(measured: Iterable[Measured]) -> SideBySide:
    """Measurements by their networks, either way round; of several the latest, which comes last."""
    found = {}
    for one in measured:
        for turned in (one, one.turned()):
            found[network_key(turned.first.network), network_key(turned.second.network)] = turned
    return found


def equal_costs(
    plain: Record, candidate: Record, beside: Measured | None
) -> dict[str, float | None]:
    """The costs that are known, as the plain network's over the candidate's."""
    ratios: dict[str, float | None] = {}
    for name in ("parameters", "multiply_adds"):
        one, other = COSTS[name](plain), COSTS[name](candidate)
        ratios[name] = one / other if one and other else None
    value = beside.latency.value if beside else None
    return ratios | {"latency": 1 / value if value else None}


def names_of_equal(ratios: Mapping[str, float | None]) -> tuple[str, ...]:
    """Which of them are equal within 1 %, in words."""
    return tuple(name.replace("_", "-") for name, r in ratios.items() if r and abs(r - 1) <= WITHIN)


def is_resized(plain: Network, candidate: Network) -> bool:
    """Whether a plain network has other layers or widths than the candidate."""
    return any(plain.options.get(size) != candidate.options.get(size) for size in SIZES)


def is_of_equal_depth(plain: Network, candidate: Network) -> bool:
    """Whether they are a pair of the suite's table, with the same layers and widths."""
    known = any((row.plain, row.se) == (plain.name, candidate.name) for row in PAIRS)
    return known and not is_resized(plain, candidate)


def resized_twins(records: Iterable[Record]) -> Iterator[tuple[Record, Network]]:
    """Every candidate with the wider or deeper forms of its plain twin that were run."""
    records = list(records)
    forms: dict[tuple[str, NetworkKey], dict[NetworkKey, Network]] = defaultdict(dict)
    for record in records:
        network = record.backbone
        if network.twin is None and set(SIZES) & set(network.options):
            forms[record.task, _without_sizes(network)][network_key(network)] = network
    for record in records:
        twin = record.backbone.twin
        if twin is not None and forms:
            for key, form in forms.get((record.task, _without_sizes(twin)), {}).items():
                if key != network_key(twin):
                    yield record, Network(form.name, form.options)


def _without_sizes(network: Network) -> NetworkKey:
    kept = {key: value for key, value in network.options.items() if key not in SIZES}
    return network.name, key_of(kept)
