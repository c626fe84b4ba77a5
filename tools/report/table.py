"""The one table every format is made from: pairs of twins compared, and each run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from backbones.config import printable
from tools import statistics
from tools.experiments.measured import Measured
from tools.experiments.plan import Lock
from tools.experiments.record import Record
from tools.experiments.tasks import TASKS
from tools.report import wording
from tools.report.across import Across, pool_datasets
from tools.report.caveats import variants
from tools.report.comparison import (
    Comparison,
    compare_pair,
)
from tools.report.costs import side_by_side
from tools.report.escape import harmless, harmless_costs
from tools.report.pairs import Pair, Pairing, describe_network, pair_twins
from tools.report.planned import FixedPlan, at_its_look, set_beside
from tools.report.published import ReferenceRow, published_beside
from tools.report.repeats import CONTRADICTION, Repeat, find_repeats
from tools.statistics.outcomes import decide

STATISTICS_FOR = 200  # pairs; reading the files of more takes too long


@dataclass(frozen=True)
class Run:
    """One run of the report."""

    record: Record
    network: str
    variant: str  # what tells it from others of its network and data
    paired: bool
    why_not: str | None
    references: tuple[ReferenceRow, ...]  # of runs in no pair


@dataclass(frozen=True)
class Table:
    """All that a report says, whatever its format."""

    comparisons: tuple[Comparison, ...]
    runs: tuple[Run, ...]
    warnings: tuple[str, ...]  # files that were skipped
    across: tuple[Across, ...] = ()  # one line over several data sets
    repeats: tuple[Repeat, ...] = ()  # experiments that several records are of
    plans: tuple[FixedPlan, ...] = ()  # that were fixed before the runs

    @property
    def synthetic(self) -> bool:
        """Whether any number comes from synthetic data."""
        return any(run.record.synthetic for run in self.runs)


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
    plans: Iterable[tuple[str, Lock]] = (),
) -> Table:
    """Pair the twins and compare them.

    Args:
        records: as ``load_records`` gives them. Their text is made harmless first: control
            characters go.
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
    pairing = pair_twins(records, allow_unequal, beside)
    trainings = {
        record.weights.sha256: record
        for record in records
        if record.experiment.action == "train" and record.weights.sha256
    }
    comparisons = [
        compare_pair(f"pair-{number}", pair, count, seed, trainings, margin, beside, run_sd)
        for number, pair in enumerate(_in_order(pairing.pairs), start=1)
        for count in [resamples if number <= STATISTICS_FOR else 0]
    ]
    comparisons = _told_apart(comparisons, repeats)
    runs = _runs(records, pairing, trainings, margin, run_sd)
    plans = list(plans)
    told = tuple(_corrected([at_its_look(each, plans) for each in comparisons]))
    skipped = tuple(printable(text) for text in warnings)
    table = Table(told, runs, skipped, (), repeats, set_beside(plans, told))
    word = wording.candidate_word(table)
    pooled = [replace(a, sentence=wording.across_sentence(a, word)) for a in pool_datasets(told)]
    return replace(table, across=tuple(pooled))


def _check_points(margin: float | None, run_sd: float | None) -> None:
    if margin is not None and not margin > 0:
        raise ValueError(f"margin {margin}: a difference that does not matter is above 0 points")
    if run_sd is not None and not run_sd > 0:
        raise ValueError(f"run_sd {run_sd}: a standard deviation over seeds is above 0 points")


def _in_order(pairs: list[Pair]) -> list[Pair]:
    """By task, as in its table, and data set."""
    order = list(TASKS)
    return sorted(
        pairs, key=lambda p: (order.index(p.candidate[0].task), p.candidate[0].dataset.name)
    )


def _runs(
    records: list[Record],
    pairing: Pairing,
    trainings: dict[str, Record],
    margin: float | None,
    run_sd: float | None,
) -> tuple[Run, ...]:
    why_not = {id(record): reason for record, reason in pairing.unpaired}
    return tuple(
        Run(
            record,
            describe_network(record.backbone),
            variant,
            id(record) not in why_not,
            why_not.get(id(record)),
            tuple(published_beside((record,), trainings, margin, run_sd))
            if id(record) in why_not
            else (),
        )
        for record, variant in zip(records, variants(records), strict=True)
    )


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


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
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
    return found
