"""Tables of published numbers: one YAML file each, read and checked.

``table-2.yaml`` to ``table-16.yaml`` are the paper's (arXiv 1709.01507v4), beside
``footnote-2.yaml``, ``released-weights.yaml`` and ``detectron-zoo.yaml``. Marks: "2" seen in two or
more sources, "1" in one, "C" computed from cited inputs; nothing recalled or inferred is here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import resources
from typing import Any

import yaml

from backbones.config import unknown
from tools.experiments.record import METRICS

MARKS = {"1": "seen in one source", "2": "seen in two or more sources", "C": "computed"}
INITIAL = ("scratch", "imagenet", "released")
_UNITS = ("percent", "million", "billion")
_COSTS = ("parameters", "multiply_adds")
_TABLE_KEYS = {
    "title", "table", "mark", "task", "dataset", "protocol", "recipes", "initial", "may_differ",
    "units", "notes", "rows",
}  # fmt: skip
_DATASET_KEYS = {"name", "split", "images", "train_images"}
_ROW_KEYS = {
    "network", "backbone", "options", "weights", "download", "protocol", "recipes", "settings", "mark", "notes",
    "ours", "reason",
}  # fmt: skip
_COUNTS = {"parameters", "multiply_adds", "multiply_adds_with_gating"}


@dataclass(frozen=True)
class Reference:
    """One published number."""

    table: str  # name of the file: "table-7"
    where: str  # as people cite it: "Table 7"
    network: str
    metric: str  # of tools.experiments.record.METRICS, or "parameters", "multiply_adds"
    value: float
    printed: str  # with the digits it was published with: "6.00"
    unit: str  # "percent", "million" or "billion"
    mark: str  # a key of MARKS
    protocol: str
    notes: tuple[str, ...]  # traps of this very value


@dataclass(frozen=True)
class Row:
    """One published network, and how it was trained and evaluated."""

    network: str  # as published
    backbone: str | None  # ours, where there is one
    options: dict[str, Any]  # of our backbone
    weights: str | None  # name of the released file; its last part begins the SHA-256
    download: str | None  # by which a library has the weights: "timm:seresnet50.a1_in1k"
    recipes: tuple[str, ...]  # of this suite, which train as this network was trained
    settings: dict[str, Any]  # dotted keys in which the row leaves its recipe
    ours: dict[str, int]  # our counts, where options leave what the table of networks says
    reason: str  # why our count is not what was printed, or ""
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Table:
    """One table, with what holds for all of its rows."""

    name: str  # of its file: "table-7"
    title: str
    where: str  # as people cite it: "Table 7"
    task: str
    dataset: dict[str, Any]  # name, split, images; train_images, or None where not known
    initial: str  # of INITIAL: what training started from; "released": the weights themselves
    may_differ: tuple[str, ...]  # settings that the publication does not state
    notes: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)


class _ExactLoader(yaml.SafeLoader):
    """Numbers with a point become Decimals, which keep the digits they were printed with."""


def _decimal(loader: _ExactLoader, node: yaml.ScalarNode) -> Decimal:
    return Decimal(str(loader.construct_scalar(node)))


_ExactLoader.add_constructor("tag:yaml.org,2002:float", _decimal)


@functools.cache
def load_references() -> dict[str, Table]:
    """Read every table, by name, in the paper's order.

    Raises:
        ValueError: a file does not follow the schema; the message names it.
    """
    files = [f for f in resources.files(__package__).iterdir() if f.name.endswith(".yaml")]
    files.sort(key=lambda f: [int(t) if t.isdigit() else t for t in re.findall(r"\d+|\D+", f.name)])
    tables = {}
    for file in files:
        name = file.name.removesuffix(".yaml")
        tables[name] = parse_table(name, yaml.load(file.read_text("utf-8"), _ExactLoader))
    return tables


def reference(name: str) -> Table:
    """Find a table by name: "table-7", "Table 7" or "7".

    Raises:
        ValueError: there is no such table; near matches are named.
    """
    tables = load_references()
    asked = re.sub(r"[\s_]+", "-", name.strip().lower())
    asked = f"table-{asked}" if asked.isdigit() else asked
    if asked in tables:
        return tables[asked]
    raise ValueError(unknown("reference", name, tables))


def parse_table(name: str, content: Any) -> Table:
    """Check the content of one file.

    Raises:
        ValueError: a key is missing, unknown or of another kind; the message names file and row.
    """
    if not isinstance(content, dict) or set(content) != _TABLE_KEYS:
        strange = set(content) ^ _TABLE_KEYS if isinstance(content, dict) else "no keys"
        raise ValueError(f"{name}: expected the keys {sorted(_TABLE_KEYS)}, differs in {strange}")
    for metric, unit in content["units"].items():
        if metric not in METRICS and metric not in _COSTS:
            raise ValueError(f"{name}: unknown metric {metric!r}")
        if unit not in _UNITS:
            raise ValueError(f"{name}: unit {unit!r} of {metric}; expected one of {_UNITS}")
    if set(content["dataset"]) != _DATASET_KEYS:
        raise ValueError(f"{name}: dataset has {', '.join(sorted(_DATASET_KEYS))}")
    if content["initial"] not in INITIAL:
        raise ValueError(f"{name}: initial={content['initial']!r}; expected one of {INITIAL}")
    return Table(
        name,
        content["title"],
        content["table"],
        content["task"],
        content["dataset"],
        content["initial"],
        tuple(content["may_differ"]),
        tuple(content["notes"]),
        tuple(_parse_row(name, content, row) for row in content["rows"]),
    )


def _parse_row(name: str, table: dict[str, Any], row: dict[str, Any]) -> Row:
    where = f"{name}: {row.get('network', 'a row without a network')}"
    values = {key: value for key, value in row.items() if key not in _ROW_KEYS}
    if "network" not in row or not values:
        raise ValueError(f"{where}: a row has a network and at least one value")
    mark = row.get("mark", table["mark"])
    if mark not in MARKS:
        raise ValueError(f"{where}: mark {mark!r}; expected one of {', '.join(MARKS)}")
    if row.get("ours") and set(row["ours"]) != _COUNTS:
        raise ValueError(f"{where}: ours has {', '.join(sorted(_COUNTS))}")
    references = []
    for metric, value in values.items():
        if metric not in table["units"]:
            raise ValueError(f"{where}: {metric!r} has no unit in this table")
        unit = table["units"][metric]
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value <= 0:
            raise ValueError(f"{where}: {metric}={value!r} is not a number above 0")
        if unit == "percent" and value > 100:
            raise ValueError(f"{where}: {metric}={value} percent is above 100")
        references.append(
            Reference(
                table=name,
                where=table["table"],
                network=row["network"],
                metric=metric,
                value=float(value),
                printed=str(value),
                unit=unit,
                mark=mark,
                protocol=row.get("protocol", table["protocol"]),
                notes=tuple(row.get("notes", ())),
            )
        )
    return Row(
        network=row["network"],
        backbone=row.get("backbone"),
        options=row.get("options", {}),
        weights=row.get("weights"),
        download=row.get("download"),
        recipes=tuple(row.get("recipes", table["recipes"])),
        settings=row.get("settings", {}),
        ours=row.get("ours", {}),
        reason=row.get("reason", ""),
        references=tuple(references),
    )
