"""One pair of twins compared: differences, classes, costs, and the published numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from backbones.result import ClassScore
from tools import statistics
from tools.experiments.measured import Measured
from tools.experiments.record import METRICS, Record
from tools.experiments.tasks import TASKS, load_function
from tools.references import training_of
from tools.report.caveats import marks_of, says_little
from tools.report.compared import explain
from tools.report.costs import COSTS, SideBySide, network_key
from tools.report.pairs import Pair, describe_network
from tools.report.published import ReferenceRow, effects_beside, published_beside
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

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        return self.outcome.word


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


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its plain twin: everything that a report says of the pair."""

    pair: Pair
    key: str  # unique, a word: for links
    task: str
    dataset: str  # name and split
    images: int
    synthetic: bool
    protocol: str
    recipe: str
    plain: str
    candidate: str
    seeds: tuple[int, ...]
    marks: tuple[str, ...]  # what a reader must know beside the numbers
    not_counted: tuple[str, ...]  # those of them that keep it out of the headline
    metrics: tuple[MetricRow, ...]
    class_metric: str
    classes: tuple[ClassRow, ...]
    variation: Variation | None  # of the classes: do their differences differ at all
    costs: dict[str, tuple[float | None, float | None]]  # plain, candidate
    measured: Measured | None  # the same two, side by side
    cost_scope: str | None
    tide: dict[str, tuple[float, float]]  # error type -> AP50 points lost by plain, candidate
    references: tuple[ReferenceRow, ...]
    variant: str = ""  # what tells it from others of the same networks and data
    # Of probabilities, by `SCORES`; none where the rows hold no probabilities.
    scores: dict[str, Difference] = field(default_factory=dict)

    @property
    def benchmark(self) -> str:
        """Data set and split, and the variant where there are several."""
        return f"{self.dataset} ({self.variant})" if self.variant else self.dataset

    @property
    def unequal(self) -> bool:
        """Whether the twins differ in more than the backbone, and were paired all the same."""
        return bool(self.pair.unequal)

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
) -> Comparison:
    """Compare twins; without ``resamples`` by their records alone.

    Args:
        trainings: training runs by the SHA-256 of the weights they wrote.
        margin: a difference that does not matter, points; None for that of the metric.
        measured: costs by the networks that they were measured of.
    """
    first, plain = pair.candidate[0], pair.plain[0]
    task = first.task
    found: dict[str, Difference] = {}
    classes: dict[str, Difference] = {}
    variation: Variation | None = None
    tide: dict[str, tuple[float, float]] = {}
    scores: dict[str, Difference] = {}
    if resamples == 0:
        why = f"no interval: {TOO_MANY}"
    else:
        try:
            compared = load_function(TASKS[task].compare)(pair, resamples, seed)
            found, classes = compared.metrics, compared.classes
            tide, variation, scores = compared.errors, compared.variation, compared.scores
            why = "no interval is computed for this metric"
        except ValueError as error:
            why = f"no interval: {explain(error, (*pair.plain, *pair.candidate))}"
    costs = {name: (get(plain), get(first)) for name, get in COSTS.items()}
    metrics = tuple(
        _metric_row(name, pair, found, why, costs, margin) for name in _shared_metrics(pair)
    )
    data = first.dataset
    trained = [training_of(run, trainings) or run for run in (*pair.plain, *pair.candidate)]
    return Comparison(
        pair,
        key,
        task,
        f"{data.name} {data.split}",
        data.images,
        first.synthetic or plain.synthetic,
        str(first.protocol.name),
        first.experiment.recipe,
        describe_network(plain.backbone),
        describe_network(first.backbone),
        tuple(record.seed for record in pair.candidate),
        marks_of(pair, trained),
        says_little([*pair.plain, *pair.candidate], trained),
        metrics,
        TASKS[task].class_metric,
        tuple(_class_rows(pair, classes, variation)),
        variation,
        costs,
        (measured or {}).get((network_key(plain.backbone), network_key(first.backbone))),
        first.cost.scope,
        tide,
        (
            *published_beside(pair.plain, trainings, margin),
            *published_beside(pair.candidate, trainings, margin),
            *effects_beside(pair, {row.name: row.difference for row in metrics}, trainings, margin),
        ),
        scores=scores,
    )


def _shared_metrics(pair: Pair) -> list[str]:
    runs = [*pair.plain, *pair.candidate]
    headline = TASKS[runs[0].task].headline[0]  # always there, if only to say why it is not
    return [
        name
        for name in METRICS
        if name == headline or all(name in record.metrics for record in runs)
    ]


def _metric_row(
    name: str,
    pair: Pair,
    found: Mapping[str, Difference],
    why: str,
    costs: Mapping[str, tuple[float | None, float | None]],
    margin: float | None,
) -> MetricRow:
    kind = METRICS[name]
    difference = found.get(name)
    if difference is None or not all(
        name in record.metrics for record in (*pair.plain, *pair.candidate)
    ):
        difference = _from_records(name, pair, why)
    change = difference.difference
    gain = None if change is None else (change if kind.higher_is_better else -change)
    added = [_added(costs[cost]) for cost in ("parameters", "multiply_adds")]
    effects = statistics.effect_sizes(change, difference.plain, *added)
    headline = name == TASKS[pair.candidate[0].task].headline[0]
    return MetricRow(
        name, kind.label, kind.unit, kind.higher_is_better, headline, difference, gain, None,
        Outcome(UNTESTED, margin or margin_of(name), difference.about_weights), effects,
    )  # fmt: skip


def _added(costs: tuple[float | None, float | None]) -> int | None:
    plain, candidate = costs
    return None if plain is None or candidate is None else round(candidate - plain)


def _from_records(name: str, pair: Pair, why: str) -> Difference:
    """The difference alone, where nothing but the records' values is to be had."""
    if not all(name in record.metrics for record in (*pair.plain, *pair.candidate)):
        reason = f"{METRICS[name].label} is not in every record"
        return Difference(None, None, None, seeds=len(pair.plain), reason=reason)
    sides = [[record.metrics[name] for record in side] for side in (pair.plain, pair.candidate)]
    for metric in (*sides[0], *sides[1]):
        if metric.value is None:
            return Difference(None, None, None, seeds=len(pair.plain), reason=metric.reason)
    plain, candidate = (np.array([metric.value for metric in side]) for side in sides)
    several = len(plain) > 1
    return Difference(
        float(plain.mean()),
        float(candidate.mean()),
        float(candidate.mean() - plain.mean()),
        n=sides[0][0].n,
        seeds=len(plain),
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
                None if plain is None or candidate is None else candidate - plain,
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
