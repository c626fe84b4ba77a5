"""The one table every format is made from: pairs of twins compared, and each run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from backbones.config import printable
from tools import statistics
from tools.experiments.record import Record
from tools.report.caveats import variants
from tools.report.comparison import (
    Comparison,
    MetricRow,
    ReferenceRow,
    compare_pair,
    judged_by_bootstrap,
    published_beside_alone,
)
from tools.report.escape import harmless
from tools.report.pairs import describe_network, pair_twins

LEVEL = 0.05  # of the p-value after Holm's correction
STATISTICS_FOR = 200  # pairs and single detectors; reading the files of more takes too long
BETTER, WORSE, UNCLEAR = "better", "worse", "no clear difference"


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
    comparisons: tuple[Comparison, ...]
    runs: tuple[Run, ...]
    warnings: tuple[str, ...]  # files that were skipped

    @property
    def synthetic(self) -> bool:
        return any(run.record.synthetic for run in self.runs)


def build_table(
    records: list[Record],
    warnings: Iterable[str] = (),
    *,
    allow_unequal: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Table:
    """Pair the twins and compare them.

    Args:
        records: as ``load_records`` gives them. Their text is made harmless first: control
            characters go.
        allow_unequal: pair twins that differ in more than the backbone, and mark them.
        resamples, seed: of the bootstrap.
    """
    records = [harmless(record) for record in records]
    pairing = pair_twins(records, allow_unequal)
    order = {"classification": 0, "scene": 1, "detection": 2}
    pairs = sorted(
        pairing.pairs,
        key=lambda p: (order.get(p.candidate[0].task, 9), p.candidate[0].dataset.name),
    )
    trainings = {
        record.weights.sha256: record
        for record in records
        if record.experiment.action == "train" and record.weights.sha256
    }
    comparisons = [
        compare_pair(
            f"pair-{number}", pair, resamples if number <= STATISTICS_FOR else 0, seed, trainings
        )
        for number, pair in enumerate(pairs, start=1)
    ]
    why_not = {id(record): reason for record, reason in pairing.unpaired}
    alone = (id(r) for r in records if id(r) in why_not and judged_by_bootstrap(r, trainings))
    scored = set(islice(alone, max(0, STATISTICS_FOR - len(pairs))))
    runs = tuple(
        Run(
            record,
            describe_network(record.backbone),
            variant,
            id(record) not in why_not,
            why_not.get(id(record)),
            tuple(
                published_beside_alone(
                    record, resamples if id(record) in scored else 0, seed, trainings
                )
            )
            if id(record) in why_not
            else (),
        )
        for record, variant in zip(records, variants(records), strict=True)
    )
    firsts = [comparison.pair.candidate[0] for comparison in comparisons]
    comparisons = [
        replace(comparison, variant=variant)
        for comparison, variant in zip(comparisons, variants(firsts), strict=True)
    ]
    return Table(tuple(_corrected(comparisons)), runs, tuple(printable(text) for text in warnings))


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """Verdicts: those of the headline metrics after Holm's correction over all comparisons."""
    adjusted = statistics.holm([c.headline.difference.p_value for c in comparisons])
    return [
        replace(
            comparison,
            metrics=tuple(
                _with_verdict(row, p_holm if row.headline else None) for row in comparison.metrics
            ),
        )
        for comparison, p_holm in zip(comparisons, adjusted, strict=True)
    ]


def _with_verdict(row: MetricRow, p_holm: float | None) -> MetricRow:
    found = row.difference
    p_value = p_holm if row.headline else found.p_value
    if p_value is None or found.low is None:
        return replace(row, p_holm=p_holm)
    clear = p_value < LEVEL and not found.low <= 0 <= found.high
    verdict = UNCLEAR if not clear else BETTER if row.gain > 0 else WORSE
    return replace(row, p_holm=p_holm, verdict=verdict)
