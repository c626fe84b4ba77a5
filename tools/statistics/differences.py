"""What a difference between twins is made of: estimate, interval, p-value, size for its cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
RESAMPLES = 1000
NO_SPREAD = 1e-9  # percent points: a rounding, where one image of a million is 1e-4


@dataclass(frozen=True)
class Difference:
    """Candidate minus plain, in the unit of the metric (percent points for percent).

    ``low`` and ``high`` bound the difference at ``CONFIDENCE``; ``p_value`` is two-sided for
    "no difference". What could not be had is None and ``reason`` says why.
    """

    plain: float | None
    candidate: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    interval_method: str | None = None
    p_value_method: str | None = None
    n: int | None = None  # images
    seeds: int = 1
    plain_sd: float | None = None  # over seeds
    candidate_sd: float | None = None
    plain_interval: tuple[float, float] | None = None  # of the value itself, not paired
    candidate_interval: tuple[float, float] | None = None
    reason: str | None = None


def holm(p_values: list[float | None]) -> list[float | None]:
    """p-values adjusted for their number by Holm's step-down rule; None stays None, uncounted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    known = [index for index, value in enumerate(p_values) if value is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for step, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, p_values[index] * (len(known) - step)))
        adjusted[index] = highest
    return adjusted


def effect_sizes(
    difference: float | None,
    plain: float | None,
    added_parameters: int | None,
    added_multiply_adds: int | None,
) -> dict[str, float | None]:
    """The difference absolute, relative, and for what it cost.

    ``relative`` is in percent of the plain value, the others in the unit of the metric: per
    million added parameters and per million added multiply-adds. None where nothing was added.
    """

    def per_million(added: int | None) -> float | None:
        return None if difference is None or not added else difference / (added / 1e6)

    return {
        "absolute": difference,
        "relative": None if difference is None or not plain else 100 * difference / plain,
        "per_million_parameters": per_million(added_parameters),
        "per_million_multiply_adds": per_million(added_multiply_adds),
    }


def paired_seeds_test(plain: list[float], candidate: list[float]) -> float | None:
    """p-value of a paired t-test over seeds, of values in percent; None for fewer than two.

    The same difference in all seeds leaves no spread to judge by: 1 if it is zero, else None. On
    few images, as those of one class, that is common and no proof.
    """
    if len(plain) < 2:
        return None
    differences = np.subtract(candidate, plain)
    if np.ptp(differences) < NO_SPREAD:
        return 1.0 if abs(differences[0]) < NO_SPREAD else None
    n = len(differences)
    t = np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(n))
    return float(2 * special.stdtr(n - 1, -abs(t)))  # scipy.stats.ttest_rel, a hundredfold faster


def bootstrap_p_value(resampled: np.ndarray) -> float:
    """Two-sided p-value of "no difference" from resampled differences, never below 2/(B + 1)."""
    tail = min(np.sum(resampled <= 0), np.sum(resampled >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))


def difference_over_seeds(
    plain: np.ndarray,
    candidate: np.ndarray,
    plain_resampled: np.ndarray,
    candidate_resampled: np.ndarray,
    *,
    n: int,
    seed: int = 0,
    p_value: float | None = None,
    p_value_method: str | None = None,
) -> Difference:
    """Sum up one metric of a pair of twins.

    Args:
        plain, candidate: the metric of each seed, (S,), in percent.
        plain_resampled, candidate_resampled: the metric in the same B resamples of the images,
            (S, B). Resamples with NaN, which could not be scored, are left out.
        n: images in the set.
        p_value, p_value_method: a test better than the bootstrap's own for a single seed.

    With several seeds the interval is from a hierarchical bootstrap (seeds, then images) and
    the p-value from a paired t-test over seeds, which also counts the noise of training.
    """
    seeds, resamples = plain_resampled.shape
    # Which seeds a resample holds; a single seed is always itself.
    drawn = np.random.default_rng([seed, seeds]).integers(0, seeds, (seeds, resamples))
    means = [
        np.take_along_axis(values, drawn, axis=0).mean(axis=0)
        for values in (plain_resampled, candidate_resampled)
    ]
    means = [values[~np.isnan(means[0] + means[1])] for values in means]
    shared = {
        "plain": float(np.mean(plain)),
        "candidate": float(np.mean(candidate)),
        "difference": float(np.mean(candidate) - np.mean(plain)),
        "n": n,
        "seeds": seeds,
        "plain_sd": float(np.std(plain, ddof=1)) if seeds > 1 else None,
        "candidate_sd": float(np.std(candidate, ddof=1)) if seeds > 1 else None,
    }
    change = means[1] - means[0]
    if len(change) == 0:
        return Difference(**shared, reason="no resample of the images could be scored")
    if seeds > 1:
        p_value, p_value_method = paired_seeds_test(plain, candidate), "paired t-test over seeds"
    elif p_value_method is None:
        p_value, p_value_method = bootstrap_p_value(change), "paired bootstrap over images"
    over = "hierarchical bootstrap over seeds and images" if seeds > 1 else ""
    low, high = percentile_interval(change)
    return Difference(
        **shared,
        low=low,
        high=high,
        p_value=p_value,
        interval_method=over or "paired bootstrap over images",
        p_value_method=p_value_method,
        plain_interval=percentile_interval(means[0]),
        candidate_interval=percentile_interval(means[1]),
        reason="the same difference in every seed" if p_value is None else None,
    )


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Bounds that leave out equal shares of the values at both ends."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
