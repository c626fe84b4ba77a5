"""One pair of twins compared: differences, classes, costs, and the published numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, computed_field

from backbones.result import ClassScore
from tools import statistics
from tools.experiments.measured import Measured
from tools.experiments.record import METRICS, Record
from tools.experiments.tasks import TASKS, load_function
from tools.references import training_of
from tools.report.caveats import marks_of, says_little
from tools.report.compared import SCORES, Compared, Score, explain
from tools.report.costs import COSTS, SideBySide, Sides, network_key
from tools.report.pairs import Pair, describe_network
from tools.report.published import ReferenceRow, references_beside
from tools.report.sharing import protocol_line
from tools.statistics import Difference, Variation
from tools.statistics.outcomes import UNTESTED, Outcome, margin_of

TOO_MANY = "too many to score in one report; report fewer runs"


@dataclass(frozen=True)
class MetricRow:
    """One metric of a pair. ``gain`` is the difference with its sign such that more is better."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    headline: bool  # the metric its task is known by
    difference: Difference
    gain: float | None
    p_holm: float | None  # headline metrics only: corrected over all comparisons
    outcome: Outcome  # of headline metrics; "not tested" of those that are not corrected
    effects: dict[str, float | None]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        return self.outcome.word


@dataclass(frozen=True)
class Hashes:
    """Experiments of both sides, a seed each."""

    plain: tuple[str, ...]
    candidate: tuple[str, ...]


@dataclass(frozen=True)
class ClassRow:
    """One class of a pair, in the task's metric for classes."""

    name: str
    images: int | None
    plain: float | None
    candidate: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    shrunken: float | None = None  # the difference, drawn towards that of all classes
    p_adjusted: float | None = None  # Benjamini and Hochberg's, over the classes of the comparison
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate beside its plain twin, run for run: everything that a report says of the pair."""

    pair: Annotated[Pair, Field(exclude=True)]
    key: str  # unique, a word: for links
    task: str
    dataset: str  # name and split
    images: int
    synthetic: bool
    protocol: str
    recipe: str
    plain: str  # network and options
    candidate: str
    seeds: tuple[int, ...]
    marks: tuple[str, ...]  # what a reader must know beside the numbers
    not_counted: tuple[
        str, ...
    ]  # those that keep it out of the headline: near chance, hardly trained
    variant: str = ""  # what tells it from others of the same networks and data
    unequal: bool  # twins that differ in more than the backbone, paired on request
    class_metric: str
    cost_scope: str | None
    sentence: str = ""  # the headline metric in words, when it is judged
    caption: str  # data, split, n, protocol, recipe and its hash, seeds, versions
    experiments: Hashes
    metrics: tuple[MetricRow, ...]
    scores: tuple[Score, ...]  # of probabilities: shown, not judged
    classes: tuple[ClassRow, ...]
    variation: Variation | None  # of the classes: do their differences differ at all
    at: str  # what the networks have in common: equal depth, equal cost (of what), or ""
    costs: dict[str, Sides]
    measured: Measured | None  # the same two, side by side; null: not measured
    errors: dict[str, Sides]  # kind -> points of AP50 that it costs
    references: tuple[ReferenceRow, ...]

    @property
    def benchmark(self) -> str:
        """Data set and split, and the variant where there are several."""
        return f"{self.dataset} ({self.variant})" if self.variant else self.dataset

    @property
    def headline(self) -> MetricRow:
        """The metric that the task is known by."""
        return next(row for row in self.metrics if row.headline)


def compare_pair(
    key: str,
    pair: Pair,
    resamples: int,
    seed: int,
    trainings: Mapping[str, Record],
    margin: float | None = None,
    measured: SideBySide | None = None,
    run_sd: float | None = None,
) -> Comparison:
    """Compare twins; without ``resamples`` by their records alone.

    Args:
        trainings: training runs by the SHA-256 of the weights they wrote.
        margin, run_sd: points, as `build_table` has them; None: the metric's, none stated.
    """
    first, plain = pair.candidate[0], pair.plain[0]
    found, why = _compare_files(pair, resamples, seed)
    metrics = _metric_rows(pair, found.metrics, why, margin)
    differences = {row.name: row.difference for row in metrics}
    trained = [training_of(run, trainings) or run for run in pair.runs]
    return Comparison(
        pair=pair,
        key=key,
        task=first.task,
        dataset=f"{first.dataset.name} {first.dataset.split}",
        images=first.dataset.images,
        synthetic=first.synthetic or plain.synthetic,
        protocol=str(first.protocol.name),
        recipe=first.experiment.recipe,
        plain=describe_network(plain.backbone),
        candidate=describe_network(first.backbone),
        seeds=tuple(record.seed for record in pair.candidate),
        marks=marks_of(pair, trained),
        not_counted=says_little(pair.runs, trained),
        unequal=bool(pair.unequal),
        class_metric=TASKS[first.task].class_metric,
        cost_scope=first.cost.scope,
        caption=protocol_line(pair.runs),
        experiments=Hashes(*(tuple(r.hash for r in side) for side in (pair.plain, pair.candidate))),
        metrics=metrics,
        scores=tuple(Score(name, *SCORES[name], one) for name, one in found.scores.items()),
        classes=tuple(_class_rows(pair, found.classes, found.variation)),
        variation=found.variation,
        at=pair.at,
        costs=_costs(pair),
        measured=(measured or {}).get((network_key(plain.backbone), network_key(first.backbone))),
        errors={kind: Sides(*sides) for kind, sides in found.errors.items()},
        references=tuple(references_beside(pair, differences, trainings, margin, run_sd)),
    )


def _costs(pair: Pair) -> dict[str, Sides]:
    plain, candidate = pair.plain[0], pair.candidate[0]
    return {name: Sides(get(plain), get(candidate)) for name, get in COSTS.items()}


def _compare_files(pair: Pair, resamples: int, seed: int) -> tuple[Compared, str]:
    """What the runs' files say, and why a metric that they say nothing of has no interval."""
    why = f"no interval: {TOO_MANY}"
    if resamples:
        try:
            compared = load_function(TASKS[pair.plain[0].task].compare)(pair, resamples, seed)
            return compared, "no interval is computed for this metric"
        except ValueError as error:
            why = f"no interval: {explain(error, pair.runs)}"
    return Compared({}, {}, {}), why


def _metric_rows(
    pair: Pair, found: Mapping[str, Difference], why: str, margin: float | None
) -> tuple[MetricRow, ...]:
    """Of the metrics that all runs have, and the headline, if only to say why it is not there."""
    headline, costs = TASKS[pair.candidate[0].task].headline[0], _costs(pair)
    added = [
        None if c.plain is None or c.candidate is None else round(c.candidate - c.plain)
        for c in (costs["parameters"], costs["multiply_adds"])
    ]
    rows = []
    for name, kind in METRICS.items():
        everywhere = all(name in record.metrics for record in pair.runs)
        if name != headline and not everywhere:
            continue
        difference = found.get(name) if everywhere else None
        if difference is None:
            difference = _from_records(name, pair, why)
        change = difference.difference
        rows.append(
            MetricRow(
                name,
                kind.label,
                kind.unit,
                kind.higher_is_better,
                name == headline,
                difference,
                gain=change if change is None or kind.higher_is_better else -change,
                p_holm=None,
                outcome=Outcome(UNTESTED, margin or margin_of(name), difference.about_weights),
                effects=statistics.effect_sizes(change, difference.plain, *added),
            )
        )
    return tuple(rows)


def _from_records(name: str, pair: Pair, why: str) -> Difference:
    """The difference alone, where nothing but the records' values is to be had."""
    seeds = len(pair.plain)
    if not all(name in record.metrics for record in pair.runs):
        reason = f"{METRICS[name].label} is not in every record"
        return Difference(None, None, None, seeds=seeds, reason=reason)
    metrics = [record.metrics[name] for record in pair.runs]
    for metric in metrics:
        if metric.value is None:
            return Difference(None, None, None, seeds=seeds, reason=metric.reason)
    values = np.array([metric.value for metric in metrics])
    plain, candidate = values[:seeds], values[seeds:]
    several = seeds > 1
    return Difference(
        float(plain.mean()),
        float(candidate.mean()),
        float(candidate.mean() - plain.mean()),
        n=metrics[0].n,
        seeds=seeds,
        plain_sd=float(plain.std(ddof=1)) if several else None,
        candidate_sd=float(candidate.std(ddof=1)) if several else None,
        reason=why,
    )


def _class_rows(
    pair: Pair, classes: dict[str, Difference], variation: Variation | None
) -> list[ClassRow]:
    sides = [
        [{row.name: row for row in record.per_class} for record in side]
        for side in (pair.plain, pair.candidate)
    ]
    p_values = statistics.benjamini_hochberg([found.p_value for found in classes.values()])
    adjusted = dict(zip(classes, p_values, strict=True))
    compared = [name for name, found in classes.items() if found.standard_error is not None]
    guesses = variation.shrunken if variation is not None else ()
    shrunken = dict(zip(compared, guesses, strict=True)) if len(guesses) == len(compared) else {}
    rows = []
    for name, row in sides[1][0].items():
        plain, candidate = (_mean_of_class(side, name) for side in sides)
        known = plain is not None and candidate is not None
        found = classes.get(name)
        rows.append(
            ClassRow(
                str(name),
                row.images,
                plain,
                candidate,
                candidate - plain if known else None,  # type: ignore[operator]
                found.low if found else None,
                found.high if found else None,
                shrunken.get(name),
                adjusted.get(name),
                None if known else row.reason or "not measured in every run",
            )
        )
    return sorted(rows, key=lambda row: (row.difference is None, -(row.difference or 0), row.name))


def _mean_of_class(side: list[dict[str, ClassScore]], name: str) -> float | None:
    """The mean over seeds; None where the class was not measured in each."""
    scores = [table[name].value for table in side if name in table]
    known = [score for score in scores if score is not None]
    return sum(known) / len(side) if len(known) == len(side) else None
