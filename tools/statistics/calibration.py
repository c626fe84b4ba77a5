"""Whether probabilities mean what they say: proper scores and calibration, of twins in pairs.

Scores are losses: lower is better. They are in nats, or in their own unit (0 to 1, 0 to 2), not in
percent.
"""

from __future__ import annotations

import numpy as np

from tools.statistics.differences import (
    RESAMPLES,
    Difference,
    Noise,
    differences_over_seeds,
    noise_of_resamples,
)

BINS = 15
_LEAST = 1e-12  # a probability of 0 for what happened is a loss of 27.6 nats, not an infinite one


def log_losses(label_probability: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each image, in nats, from the label's own probability (0 to 1)."""
    return -np.log(np.maximum(label_probability, _LEAST))


def compare_scores(plain: np.ndarray, candidate: np.ndarray) -> Difference:
    """Compare mean scores of twins over the same images.

    Args:
        plain, candidate: score of each seed and image, (S, N): of ``log_losses``, or Brier's.

    One seed is about these weights; several are compared as accuracies are.
    """
    seeds, n = plain.shape
    sides = [np.asarray(side, dtype=float) for side in (plain, candidate)]
    change = sides[1] - sides[0]

    def image(values: np.ndarray) -> np.ndarray:
        return np.var(values.mean(axis=0), ddof=1, keepdims=True) / n

    def churn(values: np.ndarray) -> np.ndarray:
        rest = values - values.mean(axis=0)
        rest -= rest.mean(axis=1, keepdims=True)
        return np.array([np.sum(rest**2) / (max(seeds - 1, 1) * (n - 1)) / n])

    noise = Noise(*map(image, (change, *sides)), *map(churn, (*sides, change)))
    means = [side.mean(axis=1, keepdims=True) for side in sides]
    size = np.array([n])
    return differences_over_seeds(means[0], means[1], noise, size, size, (0.0, np.inf))[0]


def compare_calibration(
    plain: tuple[np.ndarray, np.ndarray],
    candidate: tuple[np.ndarray, np.ndarray],
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare expected calibration errors of twins, by resamples of the images they share.

    The error, 0 to 1, is how far confidence is from accuracy, bin by bin.

    Args:
        plain, candidate: probability of the class that was chosen, 0 to 1, and whether that class
            was the label, of each seed and image, (S, N) both.
        bins: of equal width.

    Source: Guo et al., "On calibration of modern neural networks", 2017, Eq. 3. Resamples are centred on the estimate: the error of a resample is larger than that of the set.
    """
    (seeds, n), generator = plain[0].shape, np.random.default_rng(seed)
    gaps = np.concatenate([_gaps(*side, bins) for side in (plain, candidate)])  # (2S, bins, N)
    values = np.abs(gaps.sum(axis=2)).sum(axis=1) / n
    boots = np.empty((2 * seeds, resamples))
    for index in range(resamples):
        weights = np.bincount(generator.integers(n, size=n), minlength=n).astype(float)
        boots[:, index] = np.abs(gaps @ weights).sum(axis=1) / n
    boots += (values - boots.mean(axis=1))[:, None]
    noise, size = noise_of_resamples(boots[:seeds], boots[seeds:], n), np.array([n])
    sides = values[:seeds, None], values[seeds:, None]
    return differences_over_seeds(*sides, noise, size, size, (0.0, 1.0))[0]


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """Right or wrong less confidence where an image's bin is, else 0, (S, bins, N)."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    own = place[:, None] == np.arange(bins)[:, None]
    return np.where(own, (right - confidence)[:, None], 0.0)
