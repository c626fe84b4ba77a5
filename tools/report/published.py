"""Published numbers beside a report's runs: their levels, and the effects of twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tools.experiments.record import Record
from tools.references import Published, judge, not_comparable, references_of, training_of
from tools.references.verdicts import digits_of
from tools.report.pairs import Pair, describe_network
from tools.statistics import Difference
from tools.statistics.outcomes import margin_of
from tools.statistics.published import NOT_COMPARABLE, Verdict, judge_effect


@dataclass(frozen=True)
class ReferenceRow:
    """A published number, or effect, beside the measured one."""

    network: str
    where: str
    published_network: str
    metric: str
    published: float
    printed: str  # with the digits it was published with
    unit: str
    mark: str
    protocol: str
    measured: float | None
    verdict: str
    reason: str
    notes: tuple[str, ...]


def published_beside(
    runs: Sequence[Record],
    trainings: Mapping[str, Record],
    margin: float | None,
    run_sd: float | None = None,
) -> list[ReferenceRow]:
    """Find and judge the published numbers of one network's runs, a seed each.

    ``run_sd``: stated standard deviation over seeds, points, where there is one run.
    """
    record, rows = runs[0], []
    trained = [training_of(run, trainings) for run in runs]
    for published in references_of(record, trained[0]):
        metric = published.reference.metric
        verdict = judge(runs, published, margin or margin_of(metric), trained, run_sd)
        rows.append(
            _row(describe_network(record.backbone), published, _mean(runs, metric), verdict)
        )
    return rows


def references_beside(
    pair: Pair,
    differences: Mapping[str, Difference],
    trainings: Mapping[str, Record],
    margin: float | None,
    run_sd: float | None = None,
) -> list[ReferenceRow]:
    """The published numbers of both networks of a pair, and the published effects."""
    rows = [
        row
        for side in (pair.plain, pair.candidate)
        for row in published_beside(side, trainings, margin, run_sd)
    ]
    return rows + effects_beside(pair, differences, trainings, margin, run_sd)


def effects_beside(
    pair: Pair,
    differences: Mapping[str, Difference],
    trainings: Mapping[str, Record],
    margin: float | None,
    run_sd: float | None = None,
) -> list[ReferenceRow]:
    """Judge the measured effects of twins, where both are published in rows of one table.

    What images and recipe do to both sides cancels in an effect.
    """
    sides = []
    for runs in (pair.plain, pair.candidate):
        known = [(run, training_of(run, trainings)) for run in runs]
        numbers = references_of(*known[0])
        sides.append((known, {(p.table.name, p.reference.metric): p for p in numbers}))
    rows = []
    for key in sides[0][1].keys() & sides[1][1].keys():
        plain, candidate = (by_key[key] for _, by_key in sides)
        metric, protocol = candidate.reference.metric, candidate.reference.protocol
        if plain.table.initial == "released" or plain.reference.protocol != protocol:
            continue
        refused = [
            reason
            for (known, _), published in zip(sides, (plain, candidate), strict=True)
            for run, training in known
            if (reason := not_comparable(run, published, training))
        ]
        digits = digits_of(candidate.reference)
        effect = round(candidate.reference.value - plain.reference.value, digits)
        found = differences.get(metric)
        verdict = judge_effect(found, effect, margin or margin_of(metric), digits=digits, sd=run_sd)
        if refused:
            verdict = Verdict(NOT_COMPARABLE, refused[0])
        network = f"{describe_network(pair.candidate[0].backbone)} minus plain"
        measured = found.difference if found is not None else None
        rows.append(_row(network, candidate, measured, verdict, plain, effect))
    return sorted(rows, key=lambda row: (row.where, row.metric))


def _mean(runs: Sequence[Record], metric: str) -> float | None:
    values = [run.metrics[metric].value for run in runs]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _row(
    network: str,
    published: Published,
    measured: float | None,
    verdict: Verdict,
    plain: Published | None = None,
    effect: float | None = None,
) -> ReferenceRow:
    """``plain`` and ``effect``: of the difference between two published numbers."""
    reference = published.reference
    name, value, printed = reference.network, reference.value, reference.printed
    notes = (*reference.notes, *published.table.notes)
    if plain is not None and effect is not None:
        name, value = f"{name} minus {plain.reference.network}", effect
        printed = f"{effect:+.{digits_of(reference)}f}"
    return ReferenceRow(
        network, reference.where, name, reference.metric, value, printed, reference.unit,
        reference.mark, reference.protocol, measured, verdict.word, verdict.reason, notes,
    )  # fmt: skip
