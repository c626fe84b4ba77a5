"""Many differences together: corrected p-values, whether they differ at all, one number over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy import special

from tools.statistics.differences import CONFIDENCE, Difference


@dataclass(frozen=True)
class Variation:
    """Whether the differences of several groups differ from each other, and by how much.

    ``q``, ``p_value``: Cochran's statistic of "all are the same" and its p-value. ``mean`` and
    ``sd`` are of the true differences, ``shrunken`` (K,) the best guess at each: drawn towards the
    mean, the more the less is known of it.
    """

    q: float
    p_value: float
    mean: float
    sd: float
    shrunken: Annotated[tuple[float, ...], Field(exclude=True)]  # not in reports: classes have it


@dataclass(frozen=True)
class Pooled:
    """Random effects over k tasks: the mean effect, and what the next task may show.

    ``prediction_low`` and ``prediction_high`` are None for two tasks.
    """

    mean: float
    low: float
    high: float
    p_value: float
    sd: float  # of the true effects between tasks
    tasks: int
    prediction_low: float | None
    prediction_high: float | None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number by Holm's step-down rule.

    None and NaN, which stand for "not tested", become None and are not counted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    return _adjusted(
        p_values,
        lambda p: np.maximum.accumulate(np.minimum(1.0, p * np.arange(len(p), 0, -1))),
    )


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted so that of what lies below x, a share of x at most is false on average.

    None and NaN, which stand for "not tested", become None and are not counted.

    Source: Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
    """
    return _adjusted(
        p_values,
        lambda p: np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1],
    )


def variation(
    differences: np.ndarray,
    variances: np.ndarray,
    weights: np.ndarray | None = None,
    variances_to_shrink_by: np.ndarray | None = None,
) -> Variation:
    """Test whether differences differ at all, and shrink them by what they do.

    Args:
        differences, variances: of K groups, at least two, and of their errors, (K,).
        weights: (K,); the inverse variances unless given, which makes it the classic test. Counts
            of images serve where the variances themselves are rough: groups in which nothing
            differs have one of 0.
        variances_to_shrink_by: where they differ from those of the test.

    Groups are taken as independent. Source: Cochran, "The combination of estimates from different
    experiments", 1954; for any weights Jackson, "Confidence intervals for the between-study
    variance in random effects meta-analysis using generalised Cochran heterogeneity statistics",
    2013, with its first two moments matched to a scaled chi-square; DerSimonian and Laird's
    variance between groups; shrinkage of Efron and Morris, 1975.

    Raises:
        ValueError: fewer than two groups.
    """
    values, variances = np.asarray(differences, dtype=float), np.asarray(variances, dtype=float)
    if len(values) < 2:
        raise ValueError(f"{len(values)} group: expected two or more to compare")
    weights = 1 / variances if weights is None else np.asarray(weights, dtype=float)
    total = weights.sum()
    mean = float(weights @ values / total)
    q = float(weights @ (values - mean) ** 2)
    share = weights / total
    expected = float(np.sum(weights * (1 - share) * variances))
    own = np.sum((weights * (1 - share) * variances) ** 2)
    crossed = (weights @ (share * variances)) ** 2 - np.sum((weights * share * variances) ** 2)
    spread = float(2 * (own + crossed))
    if expected <= 0:  # nothing varies within a group, so whatever differs differs
        p_value = 1.0 if q == 0 else 0.0
    else:
        scale = spread / (2 * expected)
        p_value = float(special.chdtrc(expected / scale, q / scale))
    between = max(0.0, (q - expected) / float(total - weights @ share))
    within = variances if variances_to_shrink_by is None else variances_to_shrink_by
    kept = np.divide(between, between + within, out=np.zeros_like(values), where=between > 0)
    shrunken = mean + kept * (values - mean)
    return Variation(q, p_value, mean, float(np.sqrt(between)), tuple(shrunken.tolist()))


def variation_of(differences: Sequence[Difference]) -> Variation | None:
    """``variation`` of those that have a standard error, weighted by their images.

    None for fewer than two. Several seeds make it cautious: their standard errors have a floor.
    """
    known = [one for one in differences if one.standard_error is not None and one.n]
    if len(known) < 2:
        return None
    return variation(
        np.array([one.difference for one in known]),
        np.array([one.standard_error for one in known], dtype=float) ** 2,
        np.array([one.n for one in known], dtype=float),
    )


def pool_tasks(effects: Sequence[float], variances: Sequence[float]) -> Pooled:
    """Mean effect over tasks that are a sample of such tasks.

    Args:
        effects: one a task, of one kind and unit, at least two.
        variances: of their errors, above 0.

    Paule and Mandel's variance between tasks; Hartung and Knapp's interval, never narrower than
    the plain one (the modification); t with k - 1 degrees of freedom. Few tasks have little power:
    with three, effects must agree well before the mean is told from 0. The prediction interval of
    the next task's true effect has k - 2 degrees of freedom.

    Source: Paule and Mandel, 1982; Hartung and Knapp, 2001, and Roever, Knapp and Friede,
    "Hartung-Knapp-Sidik-Jonkman approach and its modification for random-effects meta-analysis
    with few studies", 2015; Higgins, Thompson and Spiegelhalter, 2009.

    Raises:
        ValueError: fewer than two effects, or a variance that is not above 0.
    """
    values, errors = np.asarray(effects, dtype=float), np.asarray(variances, dtype=float)
    if len(values) < 2 or values.shape != errors.shape or not (errors > 0).all():
        raise ValueError(
            f"effects {list(effects)} with variances {list(variances)}: expected two or more"
            " effects, each with a variance above 0"
        )
    between = _paule_mandel(values, errors)
    weights = 1 / (errors + between)
    mean = float(weights @ values / weights.sum())
    freedom = len(values) - 1
    scale = max(1.0, float(weights @ (values - mean) ** 2) / freedom)
    error = np.sqrt(scale / weights.sum())
    half = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    reach = None
    if freedom > 1:
        reach = special.stdtrit(freedom - 1, (1 + CONFIDENCE) / 2) * np.sqrt(between + error**2)
    return Pooled(
        mean,
        float(mean - half),
        float(mean + half),
        float(2 * special.stdtr(freedom, -abs(mean) / error)),
        float(np.sqrt(between)),
        len(values),
        None if reach is None else float(mean - reach),
        None if reach is None else float(mean + reach),
    )


def _paule_mandel(values: np.ndarray, errors: np.ndarray) -> float:
    """The variance between tasks at which Cochran's Q is what it is expected to be."""

    def excess(between: float) -> float:
        weights = 1 / (errors + between)
        mean = weights @ values / weights.sum()
        return float(weights @ (values - mean) ** 2) - (len(values) - 1)

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, float(np.ptp(values) ** 2 * len(values))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def _adjusted(
    p_values: Sequence[float | None], rule: Callable[[np.ndarray], np.ndarray]
) -> list[float | None]:
    """``rule`` adjusts those that are numbers, in rising order, (K,)."""
    values = np.array(p_values, dtype=float)  # NaN for None
    order = np.argsort(values, kind="stable")[: np.sum(~np.isnan(values))]
    adjusted: list[float | None] = [None] * len(values)
    for place, value in zip(order, rule(values[order]), strict=True):
        adjusted[place] = float(value)
    return adjusted
