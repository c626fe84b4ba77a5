"""Published numbers, each with its table, protocol, unit and mark, and what may be said of a
measurement beside them.

One YAML file a table, ``table-2.yaml`` to ``table-16.yaml`` of the paper (arXiv 1709.01507v4),
``released-weights.yaml`` and others. Marks: "2" seen in two or more sources, "1" in one, "C"
computed from cited inputs; nothing recalled or inferred is here.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from tools.experiments.record import METRICS, Record
from tools.experiments.run import load_experiment

MARKS = {"1": "seen in one source", "2": "seen in two or more sources", "C": "computed"}
# What an option is where a table or a run does not name it. Biases are unknown for most tables.
_DEFAULT_OPTIONS = {
    "reduction": 16,
    "squeeze": "avg",
    "excitation": "sigmoid",
    "se_stages": [2, 3, 4, 5],
    "placement": "standard",
}
_UNITS = ("percent", "million", "billion")
_COSTS = ("parameters", "multiply_adds")
_TABLE_KEYS = {
    "title", "table", "mark", "task", "dataset", "protocol", "recipes", "units", "notes", "rows",
}  # fmt: skip
_ROW_KEYS = {"network", "backbone", "options", "weights", "protocol", "mark", "notes"}


@dataclass(frozen=True)
class Reference:
    """One published number."""

    table: str  # name of the file: "table-7"
    where: str  # as people cite it: "Table 7"
    network: str
    metric: str  # of tools.experiments.record.METRICS, or "parameters", "multiply_adds"
    value: float
    unit: str
    mark: str
    protocol: str
    notes: tuple[str, ...]  # traps of this very value


@dataclass(frozen=True)
class Row:
    network: str  # as published
    backbone: str | None  # ours, where there is one
    options: dict[str, Any]
    weights: str | None  # name of the released file; its last part begins the SHA-256
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    where: str
    task: str
    dataset: dict[str, Any]  # name, split, images
    recipes: tuple[str, ...]  # of this suite, which train as the table's networks were trained
    notes: tuple[str, ...]  # hold for all of it
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Verdict:
    """``word``: reproduced, better, worse or not comparable; ``reason`` in a sentence."""

    word: str
    reason: str


@functools.cache
def load_references() -> dict[str, Table]:
    """Every table by name, in the paper's order.

    Raises:
        ValueError: a file does not follow the schema; the message names it.
    """
    files = [f for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml")]
    names = sorted(
        files, key=lambda file: [int(t) if t.isdigit() else t for t in _words(file.name)]
    )
    return {
        file.name[:-5]: parse_table(file.name[:-5], yaml.safe_load(file.read_text("utf-8")))
        for file in names
    }


def reference(name: str) -> Table:
    """A table by name: "table-7", "Table 7" or "7".

    Raises:
        ValueError: there is no such table; near matches are named.
    """
    tables = load_references()
    asked = re.sub(r"[\s_]+", "-", name.strip().lower())
    asked = f"table-{asked}" if asked.isdigit() else asked
    if asked in tables:
        return tables[asked]
    near = difflib.get_close_matches(asked, tables, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(tables)}"
    raise ValueError(f"unknown reference {name!r}; {hint}")


def parse_table(name: str, content: Any) -> Table:
    """Check the content of one file.

    Raises:
        ValueError: a key is missing, unknown or of another kind; the message names file and row.
    """
    if not isinstance(content, dict) or set(content) != _TABLE_KEYS:
        strange = set(content) ^ _TABLE_KEYS if isinstance(content, dict) else "no keys"
        raise ValueError(f"{name}: expected the keys {sorted(_TABLE_KEYS)}, differs in {strange}")
    units = content["units"]
    for metric, unit in units.items():
        if metric not in METRICS and metric not in _COSTS:
            raise ValueError(f"{name}: unknown metric {metric!r}")
        if unit not in _UNITS:
            raise ValueError(f"{name}: unit {unit!r} of {metric}; expected one of {_UNITS}")
    if set(content["dataset"]) != {"name", "split", "images"}:
        raise ValueError(f"{name}: dataset has name, split and images")
    return Table(
        name,
        content["title"],
        content["table"],
        content["task"],
        content["dataset"],
        tuple(content["recipes"]),
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
    references = []
    for metric, value in values.items():
        if metric not in table["units"]:
            raise ValueError(f"{where}: {metric!r} has no unit in this table")
        unit = table["units"][metric]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"{where}: {metric}={value!r} is not a number above 0")
        if unit == "percent" and value > 100:
            raise ValueError(f"{where}: {metric}={value} percent is above 100")
        protocol = row.get("protocol", table["protocol"])
        notes = tuple(row.get("notes", ()))
        references.append(
            Reference(
                name, table["table"], row["network"], metric, value, unit, mark, protocol, notes
            )
        )
    return Row(
        row["network"],
        row.get("backbone"),
        row.get("options", {}),
        row.get("weights"),
        tuple(references),
    )


def references_of(record: Record) -> list[tuple[Table, Reference]]:
    """Published numbers of the network of a run, whether or not they may be compared with it."""
    options = record.backbone["options"]
    sha256 = str(record.weights.get("sha256") or "")
    found = []
    for table in load_references().values():
        for row in table.rows:
            same_network = row.backbone == record.backbone["name"] and _same_options(
                row.options, options
            )
            same_weights = row.weights is not None and sha256.startswith(
                row.weights.rsplit("-", 1)[-1]
            )
            if table.task == record.task and (same_network or same_weights):
                found += [(table, r) for r in row.references if r.metric in record.metrics]
    return found


def judge(
    record: Record,
    table: Table,
    published: Reference,
    interval: tuple[float, float] | None,
    why_not: str | None = None,
) -> Verdict:
    """What a run says of a published number.

    Args:
        interval: bounds of the measured metric, in its unit; None where there are none.
        why_not: why there are none.
    """
    reason = not_comparable(record, table, published)
    if reason is None and record.metrics[published.metric].value is None:
        reason = f"not measured: {record.metrics[published.metric].reason}"
    if reason is None and interval is None:
        reason = why_not or "no interval of the measured value"
    if reason is not None:
        return Verdict("not comparable", reason)
    low, high = interval
    shown = f"{published.value:g} against [{low:.2f}, {high:.2f}]"
    if low <= published.value <= high:
        return Verdict("reproduced", f"{shown}: inside the interval")
    higher = published.value < low
    better = higher == METRICS[published.metric].higher_is_better
    return Verdict("better" if better else "worse", f"{shown}: outside the interval")


def not_comparable(record: Record, table: Table, published: Reference) -> str | None:
    """What forbids to compare a run with a published number; None where nothing does."""
    data = record.dataset
    if record.synthetic:
        return "synthetic data"
    if not _same_data(data, table.dataset):
        return f"other data: {data['name']} {data['split']}, published on {_data_name(table)}"
    if data["images"] != table.dataset["images"]:
        return f"other data: {data['images']} of {table.dataset['images']} images"
    if record.protocol["name"] != published.protocol:
        return f"other protocol: {record.protocol['name']}, published with {published.protocol}"
    trained = record.experiment["action"] == "train"
    weights = table.name == "released-weights"
    if weights and trained:
        return "other training: the published weights were trained elsewhere"
    if not weights and not trained:
        return "weights of unknown training"
    if not weights and record.experiment["recipe"] not in table.recipes:
        recipes = ", ".join(table.recipes) or "none of this suite"
        return f"other recipe: {record.experiment['recipe']}, the table's is {recipes}"
    changed = [] if weights else _changed_settings(record)
    return f"the recipe was changed: {', '.join(changed[:3])}" if changed else None


def _changed_settings(record: Record) -> list[str]:
    """Settings in which a run departs from its recipe, apart from network, data and seed."""
    recipe = _recipe_settings(record.task, record.experiment["recipe"])
    used = _flatten(record.experiment["settings"])
    return [
        f"{name}={used[name]}"
        for name, value in recipe.items()
        if name in used and json.dumps(used[name]) != json.dumps(value)
    ]


@functools.cache
def _recipe_settings(task: str, recipe: str) -> dict[str, Any]:
    identity = load_experiment(task, recipe).identity
    parts = {k: v for k, v in identity.items() if k not in ("task", "action", "backbone", "seed")}
    return {k: v for k, v in _flatten(parts).items() if not k.startswith("data.")}


def _flatten(part: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in part.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _same_data(data: dict[str, Any], published: dict[str, Any]) -> bool:
    # COCO's minival of 2014 and val2017 are the same 5,000 images.
    if published["name"] == "coco":
        return str(data["name"]).startswith("coco") and any(
            part in str(data["split"]) for part in ("minival", "val")
        )
    return data["name"] == published["name"] and data["split"] == published["split"]


def _same_options(published: dict[str, Any], ours: dict[str, Any]) -> bool:
    names = set(_DEFAULT_OPTIONS) | set(published) | set(ours)
    if "se_bias" not in published:
        names.discard("se_bias")

    def value(options: dict[str, Any], name: str) -> Any:
        found = options.get(name, _DEFAULT_OPTIONS.get(name))
        return sorted(found) if isinstance(found, (list, tuple)) else found

    return all(value(published, name) == value(ours, name) for name in names)


def _data_name(table: Table) -> str:
    return f"{table.dataset['name']} {table.dataset['split']}"


def _words(text: str) -> list[str]:
    return re.findall(r"\d+|\D+", text)
