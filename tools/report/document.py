"""report.json: the whole table as typed, plain values; its JSON schema is made from the types."""

from __future__ import annotations

from importlib import resources
from typing import Any

import msgspec
from pydantic import TypeAdapter

from tools.report.table import Table

SCHEMA = "report.schema.json"
_READABLE = 500  # runs
_REPORT = TypeAdapter(Table)


def as_json(table: Table) -> str:
    """Write everything, as ``report.schema.json`` describes it."""
    text = msgspec.json.encode({"$schema": SCHEMA, **_REPORT.dump_python(table)})
    if len(table.runs) <= _READABLE:
        text = msgspec.json.format(text, indent=1)
    return text.decode() + "\n"


def shipped_schema() -> str:
    """The text of the JSON schema that goes beside a report."""
    return (resources.files("tools.report") / SCHEMA).read_text("utf-8")


def report_schema() -> dict[str, Any]:
    """Make the JSON schema of report.json from the types."""
    schema = _REPORT.json_schema(mode="serialization")
    schema["properties"]["$schema"] = {"type": "string"}
    for part in (schema, *schema["$defs"].values()):
        part["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
