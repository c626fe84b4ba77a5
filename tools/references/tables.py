"""Tables of published numbers: one YAML file each, read and checked.

``table-2.yaml`` to ``table-16.yaml`` are the paper's (arXiv 1709.01507v4), beside
``footnote-2.yaml``, ``released-weights.yaml`` and ``detectron-zoo.yaml``. Marks: "2" seen in two or
more sources, "1" in one, "C" computed from cited inputs; nothing recalled or inferred is here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, fields
from decimal import Decimal
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Gt, Len
from pydantic import ConfigDict, TypeAdapter, ValidationError

from backbones.config import describe_error, unknown
from tools.experiments.record import METRICS

MARKS = {"1": "seen in one source", "2": "seen in two or more sources", "C": "computed"}
_COSTS = ("parameters", "multiply_adds")
_OF_ROWS = ("mark", "protocol", "recipes", "notes")  # what a row may say for itself


@dataclass(frozen=True)
class Reference:
    """One published number."""

    table: str  # name of the file: "table-7"
    where: str  # as people cite it: "Table 7"
    network: str
    metric: str  # of tools.experiments.record.METRICS, or "parameters", "multiply_adds"
    value: Annotated[float, Gt(0)]
    printed: str  # with the digits it was published with: "6.00"
    unit: Literal["percent", "million", "billion"]
    mark: Literal["1", "2", "C"]  # keys of MARKS
    protocol: str
    notes: tuple[str, ...]  # traps of this very value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published network, and how it was trained and evaluated."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    network: str  # as published
    backbone: str | None = None  # ours, where there is one
    options: dict[str, Any] = field(default_factory=dict)  # of our backbone
    weights: str | None = None  # name of the released file; its last part begins the SHA-256
    download: str | None = None  # by which a library has the weights: "timm:seresnet50.a1_in1k"
    recipes: tuple[str, ...]  # of this suite, which train as this network was trained
    settings: dict[str, Any] = field(default_factory=dict)  # dotted keys that leave its recipe
    # Our counts by `backbones.cost`, where options leave what the table of networks says.
    ours: dict[Literal["parameters", "multiply_adds", "multiply_adds_with_gating"], int] = field(
        default_factory=dict
    )
    reason: str = ""  # why our count is not what was printed
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Table:
    """One table, with what holds for all of its rows."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # of its file: "table-7"
    title: str
    where: str  # as people cite it: "Table 7"
    task: str
    # train_images is None where it is not known.
    dataset: Annotated[dict[Literal["name", "split", "images", "train_images"], Any], Len(4, 4)]
    # What training started from; "released": the weights themselves.
    initial: Literal["scratch", "imagenet", "released"]
    may_differ: tuple[str, ...]  # settings that the publication does not state
    notes: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)


_ROW_KEYS = {f.name for f in fields(Row)} - {"references"} | set(_OF_ROWS)


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
    if canonical(name) in tables:
        return tables[canonical(name)]
    raise ValueError(unknown("reference", name, tables))


def canonical(name: str) -> str:
    """The name of a table or figure, of how people write it: "table-7" of "Table 7" or "7"."""
    asked = re.sub(r"[\s_]+", "-", name.strip().lower())
    return f"table-{asked}" if asked.isdigit() else asked


@functools.cache
def _table() -> TypeAdapter[Table]:
    return TypeAdapter(Table)


def parse_table(name: str, content: Any) -> Table:
    """Check the content of one file.

    Raises:
        ValueError: a key is missing, unknown or of another kind; the message names file and row.
    """
    if not isinstance(content, dict) or not {"rows", "units", *_OF_ROWS} <= content.keys():
        raise ValueError(f"{name}: a table has the keys rows, units, {', '.join(_OF_ROWS)}")
    whole = {"name": name, **content, "rows": [_row(name, content, row) for row in content["rows"]]}
    whole["where"] = whole.pop("table", None)
    for key in ("units", *_OF_ROWS):
        if key != "notes":  # those of a table are of all its rows
            del whole[key]
    try:
        return _table().validate_python(whole)
    except ValidationError as error:
        raise ValueError(f"{name}: {describe_error(error.errors()[0])}") from None


def _row(name: str, table: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row as its class has it, its numbers as references."""
    where = f"{name}: {row.get('network', 'a row without a network')}"
    told = {"mark": table["mark"], "protocol": table["protocol"], "notes": (), **row}
    references = []
    for metric, value in row.items():
        if metric in _ROW_KEYS:
            continue
        unit = table["units"].get(metric)
        if unit is None or (metric not in METRICS and metric not in _COSTS):
            raise ValueError(f"{where}: {metric!r} is no metric, or has no unit in this table")
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            raise ValueError(f"{where}: {metric}={value!r} is not a number")
        if unit == "percent" and value > 100:
            raise ValueError(f"{where}: {metric}={value} percent is above 100")
        references.append(
            {
                "table": name, "where": table.get("table"), "network": row.get("network"),
                "metric": metric, "value": float(value), "printed": str(value), "unit": unit,
                **{key: told[key] for key in ("mark", "protocol", "notes")},
            }
        )  # fmt: skip
    if not references:
        raise ValueError(f"{where}: a row has a network and at least one value")
    kept = {key: row[key] for key in row.keys() & _ROW_KEYS - {"mark", "protocol", "notes"}}
    return {"recipes": table["recipes"], **kept, "references": references}
