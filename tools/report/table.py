"""The one table every format is made from: pairs of twins compared, and each run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from backbones.config import printable
from backbones.result import Cost
from tools import statistics
from tools.experiments.measured import Measured
from tools.experiments.plan import Lock
from tools.experiments.record import Metric, Record
from tools.experiments.tasks import TASKS
from tools.report import wording
from tools.report.across import Across, pool_datasets
from tools.report.caveats import variants
from tools.report.comparison import Comparison, compare_pair
from tools.report.costs import side_by_side
from tools.report.escape import harmless, harmless_costs
from tools.report.pairs import Pair, describe_network, pair_twins
from tools.report.planned import FixedPlan, at_its_look, set_beside
from tools.report.published import ReferenceRow, published_beside
from tools.report.repeats import CONTRADICTION, Repeat, find_repeats
from tools.report.sharing import protocol_line
from tools.statistics.outcomes import decide

STATISTICS_FOR = 200  # pairs; reading the files of more takes too long


@dataclass(frozen=True)
class DatasetEntry:
    """What a run was evaluated on."""

    name: str
    split: str
    images: int
    classes: int
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recorded run."""

    record: Annotated[Record, Field(exclude=True)]
    directory: str  # from the path on that was reported
    network: str
    variant: str  # what tells it from others of its network and data
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
    references: tuple[ReferenceRow, ...]  # of runs in no pair


@dataclass(frozen=True, kw_only=True)
class Table:
    """Twins compared, and every run: all that a report says, whatever its format."""

    schema: int
    headline: str  # the report in one sentence
    synthetic: bool  # whether any number comes from synthetic data
    comparisons: tuple[Comparison, ...]
    across: tuple[Across, ...]  # one line over several data sets
    runs: tuple[Run, ...]
    skipped: tuple[str, ...]  # files that are no sound records, and why
    repeats: tuple[Repeat, ...]  # experiments that several records are of
    plans: tuple[FixedPlan, ...]  # that were fixed before the runs, and what became of them
    methods: tuple[str, ...]


def published_rows(table: Table) -> list[ReferenceRow]:
    """Every published number beside a measured one: of the pairs, and of the runs in none."""
    rows = [row for comparison in table.comparisons for row in comparison.references]
    return rows + [row for run in table.runs for row in run.references]


def build_table(
    records: list[Record],
    warnings: Iterable[str] = (),
    *,
    allow_unequal: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    margin: float | None = None,
    run_sd: float | None = None,
    measured: Iterable[Measured] = (),
    plans: Sequence[tuple[str, Lock]] = (),
) -> Table:
    """Pair the twins and compare them.

    Args:
        records: as ``load_records`` gives them; control characters in their text go.
        allow_unequal: pair twins that differ in more than the backbone, and mark them.
        resamples, seed: of the bootstrap.
        margin: a difference that does not matter, points; None for 0.3 of top-k and 0.5 of AP.
        run_sd: stated standard deviation over seeds, points, for single runs beside published ones.
        measured: costs of networks side by side, oldest first.
        plans: that were fixed, as `read_plans` gives them.

    Raises:
        ValueError: ``margin`` or ``run_sd`` is not above 0.
    """
    _check_points(margin, run_sd)
    records, repeats = find_repeats([harmless(record) for record in records])
    beside = side_by_side(map(harmless_costs, measured))
    pairs, unpaired = pair_twins(records, allow_unequal, beside)
    trainings = _trainings(records)
    comparisons = [
        compare_pair(f"pair-{number}", pair, count, seed, trainings, margin, beside, run_sd)
        for number, pair in enumerate(_in_order(pairs), start=1)
        for count in [resamples if number <= STATISTICS_FOR else 0]
    ]
    told = _corrected([at_its_look(each, plans) for each in _told_apart(comparisons, repeats)])
    return Table(
        schema=1,
        headline=wording.headline(told),
        synthetic=any(record.synthetic for record in records),
        comparisons=told,
        across=pool_datasets(told),
        runs=_runs(records, unpaired, trainings, margin, run_sd),
        skipped=tuple(printable(text) for text in warnings),
        repeats=repeats,
        plans=set_beside(plans, told),
        methods=wording.METHODS,
    )


def _check_points(margin: float | None, run_sd: float | None) -> None:
    for name, what, value in (
        ("margin", "a difference that does not matter", margin),
        ("run_sd", "a standard deviation over seeds", run_sd),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"{name} {value}: {what} is above 0 points")


def _trainings(records: Iterable[Record]) -> dict[str, Record]:
    """The runs that trained weights, by the SHA-256 of what they wrote."""
    trained = [record for record in records if record.experiment.action == "train"]
    return {record.weights.sha256: record for record in trained if record.weights.sha256}


def _in_order(pairs: list[Pair]) -> list[Pair]:
    """By task, as in its table, and data set."""
    order = list(TASKS)
    return sorted(
        pairs, key=lambda p: (order.index(p.candidate[0].task), p.candidate[0].dataset.name)
    )


def _runs(
    records: list[Record],
    unpaired: list[tuple[Record, str]],
    trainings: dict[str, Record],
    margin: float | None,
    run_sd: float | None,
) -> tuple[Run, ...]:
    why_not = {id(record): reason for record, reason in unpaired}
    found = []
    for record, variant in zip(records, variants(records), strict=True):
        data, reason = record.dataset, why_not.get(id(record))
        alone = [] if reason is None else published_beside((record,), trainings, margin, run_sd)
        found.append(
            Run(
                record=record,
                directory=record.name,
                network=describe_network(record.backbone),
                variant=variant,
                task=record.task,
                dataset=DatasetEntry(
                    data.name, data.split, data.images, data.classes, data.synthetic
                ),
                seed=record.seed,
                caption=protocol_line([record]),
                experiment=record.hash,
                condition=record.comparison_hash,
                metrics=record.metrics,
                cost=record.cost,
                paired=reason is None,
                why_not_paired=reason,
                references=tuple(alone),
            )
        )
    return tuple(found)


def _told_apart(comparisons: list[Comparison], repeats: tuple[Repeat, ...]) -> list[Comparison]:
    """With what tells each from others of its networks and data, and where its runs contradict."""
    contradicted = {r.experiment: r.text for r in repeats if r.kind == CONTRADICTION}
    firsts = [comparison.pair.candidate[0] for comparison in comparisons]
    return [
        replace(
            c,
            variant=variant,
            marks=(
                *c.marks,
                *(contradicted[run.hash] for run in c.pair.runs if run.hash in contradicted),
            ),
        )
        for c, variant in zip(comparisons, variants(firsts), strict=True)
    ]


def _corrected(comparisons: list[Comparison]) -> tuple[Comparison, ...]:
    """Outcomes of the headline metrics, after Holm's correction over all comparisons."""
    adjusted = statistics.holm([c.headline.difference.p_value for c in comparisons])
    found = []
    for comparison, p_holm in zip(comparisons, adjusted, strict=True):
        row = comparison.headline
        outcome = decide(
            row.difference,
            higher_is_better=row.higher_is_better,
            margin=row.outcome.margin,
            p_value=p_holm,
        )
        told = replace(row, p_holm=p_holm, outcome=outcome)
        metrics = tuple(told if one is row else one for one in comparison.metrics)
        judged = replace(comparison, metrics=metrics)
        found.append(replace(judged, sentence=wording.verdict_sentence(judged)))
    return tuple(found)
