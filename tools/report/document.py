"""report.json: the whole table as typed, plain values; its JSON schema is made from the types."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
from pydantic import TypeAdapter

from backbones.result import Cost
from tools.experiments.measured import Measured
from tools.experiments.record import Metric
from tools.report import wording
from tools.report.across import Across
from tools.report.compared import SCORES
from tools.report.comparison import ClassRow, Comparison, MetricRow
from tools.report.planned import FixedPlan
from tools.report.published import ReferenceRow
from tools.report.repeats import Repeat
from tools.report.sharing import protocol_line
from tools.report.table import Run, Table
from tools.statistics import Difference, Pooled, Variation

SCHEMA = "report.schema.json"
_READABLE = 500  # runs


@dataclass(frozen=True)
class Sides:
    """One number of the plain network and of the candidate."""

    plain: float | None
    candidate: float | None


@dataclass(frozen=True)
class Hashes:
    """Experiments of both sides, a seed each."""

    plain: list[str]
    candidate: list[str]


@dataclass(frozen=True)
class ScoreEntry:
    """A loss of probabilities, lower is better, in its own unit and not in percent."""

    name: str
    label: str
    unit: str
    difference: Difference


@dataclass(frozen=True)
class OutcomeEntry:
    """What a headline metric says: see `tools.statistics.outcomes.Outcome`."""

    word: str
    margin: float
    about_weights: bool
    detectable: float | None
    compatible: float | None
    phrase: str  # in words, with the numbers without which it is not said


@dataclass(frozen=True)
class MetricEntry:
    """One metric of a pair. `gain` is the difference with its sign such that more is better."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    headline: bool  # the metric its task is known by
    difference: Difference
    gain: float | None
    p_holm: float | None  # headline metrics only: corrected over all comparisons
    outcome: OutcomeEntry
    effects: dict[str, float | None]
    verdict: str  # the outcome's word


@dataclass(frozen=True)
class VariationEntry:
    """Whether the differences of the classes differ from each other: Cochran's Q."""

    q: float
    p_value: float
    mean: float
    sd: float


@dataclass(frozen=True)
class ComparisonEntry:
    """A network and its plain twin, run for run."""

    key: str
    task: str
    dataset: str  # name and split
    images: int
    synthetic: bool
    protocol: str
    recipe: str
    plain: str  # network and options
    candidate: str
    seeds: list[int]
    marks: list[str]  # what a reader must know beside the numbers
    not_counted: list[str]  # those that keep it out of the headline: near chance, hardly trained
    variant: str  # what tells it from others of the same networks and data
    unequal: bool  # twins that differ in more than the backbone, paired on request
    class_metric: str
    cost_scope: str | None
    sentence: str
    caption: str  # data, split, n, protocol, recipe and its hash, seeds, versions
    experiments: Hashes
    metrics: list[MetricEntry]
    scores: list[ScoreEntry]  # of probabilities: shown, not judged
    classes: list[ClassRow]
    variation: VariationEntry | None
    at: str  # what the networks have in common: equal depth, equal cost (of what), or ""
    costs: dict[str, Sides]
    measured: Measured | None  # the same two, side by side; null: not measured
    errors: dict[str, Sides]  # kind -> points that it costs
    references: list[ReferenceRow]


@dataclass(frozen=True)
class AcrossEntry:
    """The mean gain in one metric over data sets."""

    metric: str
    label: str
    synthetic: bool
    equal_cost: bool  # against plain networks of equal cost, not of equal depth
    datasets: list[str]
    one_seed: int  # how many of them are known from one seed only
    pooled: Pooled
    sentence: str


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
    references: list[ReferenceRow]


@dataclass(frozen=True)
class Report:
    """Twins compared, and every run."""

    schema: int
    headline: str  # the report in one sentence
    synthetic: bool  # whether any number comes from synthetic data
    comparisons: list[ComparisonEntry]
    across: list[AcrossEntry]
    runs: list[RunEntry]
    skipped: list[str]  # files that are no sound records, and why
    repeats: list[Repeat]  # experiments that several records are of
    plans: list[FixedPlan]  # that were fixed before the runs, and what became of them
    methods: list[str]


def as_json(table: Table) -> str:
    """Write everything, as ``report.schema.json`` describes it."""
    text = msgspec.json.encode({"$schema": SCHEMA, **vars(as_report(table))})
    if len(table.runs) <= _READABLE:
        text = msgspec.json.format(text, indent=1)
    return text.decode() + "\n"


def as_report(table: Table) -> Report:
    """Bring the table into the form of report.json."""
    candidate = wording.candidate_word(table)
    return Report(
        schema=1,
        headline=wording.headline(table),
        synthetic=table.synthetic,
        comparisons=[_comparison(comparison) for comparison in table.comparisons],
        across=[_across(found, candidate) for found in table.across],
        runs=[_run(run) for run in table.runs],
        skipped=list(table.warnings),
        repeats=list(table.repeats),
        plans=list(table.plans),
        methods=list(wording.METHODS),
    )


def shipped_schema() -> str:
    """The text of the JSON schema that goes beside a report."""
    return (resources.files("tools.report") / SCHEMA).read_text("utf-8")


def report_schema() -> dict[str, Any]:
    """Make the JSON schema of report.json from the types."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    schema["properties"]["$schema"] = {"type": "string"}
    for part in (schema, *schema["$defs"].values()):
        part["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _comparison(c: Comparison) -> ComparisonEntry:
    return ComparisonEntry(
        key=c.key,
        task=c.task,
        dataset=c.dataset,
        images=c.images,
        synthetic=c.synthetic,
        protocol=c.protocol,
        recipe=c.recipe,
        plain=c.plain,
        candidate=c.candidate,
        seeds=list(c.seeds),
        marks=list(c.marks),
        not_counted=list(c.not_counted),
        variant=c.variant,
        unequal=c.unequal,
        class_metric=c.class_metric,
        cost_scope=c.cost_scope,
        sentence=wording.verdict_sentence(c),
        caption=protocol_line(c.pair.runs),
        experiments=Hashes(
            [record.hash for record in c.pair.plain],
            [record.hash for record in c.pair.candidate],
        ),
        metrics=[_metric(row) for row in c.metrics],
        scores=[ScoreEntry(name, *SCORES[name], found) for name, found in c.scores.items()],
        classes=list(c.classes),
        variation=_variation(c.variation),
        at=c.pair.at,
        costs={name: Sides(*sides) for name, sides in c.costs.items()},
        measured=c.measured,
        errors={kind: Sides(*sides) for kind, sides in c.tide.items()},
        references=list(c.references),
    )


def _metric(row: MetricRow) -> MetricEntry:
    outcome = OutcomeEntry(**vars(row.outcome), phrase=row.outcome.phrase)
    return MetricEntry(**{**vars(row), "outcome": outcome}, verdict=row.verdict)


def _variation(found: Variation | None) -> VariationEntry | None:
    if found is None:
        return None
    return VariationEntry(found.q, found.p_value, found.mean, found.sd)


def _across(found: Across, candidate: str) -> AcrossEntry:
    sentence = wording.across_sentence(found, candidate)
    return AcrossEntry(**{**vars(found), "datasets": list(found.datasets)}, sentence=sentence)


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
        references=list(run.references),
    )
