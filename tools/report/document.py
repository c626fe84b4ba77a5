"""report.json: the whole table as typed, plain values; its JSON schema is made from the types."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
from pydantic import TypeAdapter

from backbones.result import Cost
from tools.experiments.record import Metric
from tools.report import wording
from tools.report.across import Across
from tools.report.comparison import Comparison
from tools.report.planned import FixedPlan
from tools.report.published import ReferenceRow
from tools.report.repeats import Repeat
from tools.report.sharing import protocol_line
from tools.report.table import Run, Table

SCHEMA = "report.schema.json"
_READABLE = 500  # runs


@dataclass(frozen=True)
class DatasetEntry:
    """What a run was evaluated on."""

    name: str
    split: str
    images: int
    classes: int
    synthetic: bool


@dataclass(frozen=True)
class RunEntry:
    """One recorded run."""

    directory: str  # from the path on that was reported
    network: str
    variant: str
    task: str
    dataset: DatasetEntry
    seed: int
    caption: str
    experiment: str  # hash
    condition: str  # hash without backbone and seed, which twins share
    metrics: dict[str, Metric]
    cost: Cost
    paired: bool
    why_not_paired: str | None
    references: tuple[ReferenceRow, ...]


@dataclass(frozen=True)
class Report:
    """Twins compared, and every run."""

    schema: int
    headline: str  # the report in one sentence
    synthetic: bool  # whether any number comes from synthetic data
    comparisons: tuple[Comparison, ...]
    across: tuple[Across, ...]
    runs: tuple[RunEntry, ...]
    skipped: tuple[str, ...]  # files that are no sound records, and why
    repeats: tuple[Repeat, ...]  # experiments that several records are of
    plans: tuple[FixedPlan, ...]  # that were fixed before the runs, and what became of them
    methods: tuple[str, ...]


_REPORT = TypeAdapter(Report)


def as_json(table: Table) -> str:
    """Write everything, as ``report.schema.json`` describes it."""
    report = _REPORT.dump_python(as_report(table))
    text = msgspec.json.encode({"$schema": SCHEMA, **report})
    if len(table.runs) <= _READABLE:
        text = msgspec.json.format(text, indent=1)
    return text.decode() + "\n"


def as_report(table: Table) -> Report:
    """Bring the table into the form of report.json."""
    return Report(
        schema=1,
        headline=wording.headline(table),
        synthetic=table.synthetic,
        comparisons=table.comparisons,
        across=table.across,
        runs=tuple(_run(run) for run in table.runs),
        skipped=table.warnings,
        repeats=table.repeats,
        plans=table.plans,
        methods=wording.METHODS,
    )


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


def _run(run: Run) -> RunEntry:
    record, data = run.record, run.record.dataset
    return RunEntry(
        directory=record.name,
        network=run.network,
        variant=run.variant,
        task=record.task,
        dataset=DatasetEntry(data.name, data.split, data.images, data.classes, data.synthetic),
        seed=record.seed,
        caption=protocol_line([record]),
        experiment=record.hash,
        condition=record.comparison_hash,
        metrics=record.metrics,
        cost=record.cost,
        paired=run.paired,
        why_not_paired=run.why_not,
        references=run.references,
    )
