"""Top-k accuracy from one row an image: intervals, and twins compared image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from scipy import stats

from tools.statistics.differences import (
    CONFIDENCE,
    RESAMPLES,
    Difference,
    difference_over_seeds,
    paired_seeds_test,
)


@dataclass(frozen=True)
class Predictions:
    """Rows of a ``samples.parquet``: image names (N,), labels (N,), classes best first (N, K)."""

    image: np.ndarray
    label: np.ndarray
    top: np.ndarray

    def correct(self, k: int) -> np.ndarray:
        """Whether the label is among the first ``k`` classes, (N,) bool."""
        return (self.top[:, :k] == self.label[:, None]).any(axis=1)


def load_predictions(path: str | Path) -> Predictions:
    """Read ``samples.parquet``.

    Raises:
        ValueError: not a Parquet file, columns missing, or rows of unequal length.
    """
    try:
        table = parquet.read_table(path, columns=["image", "label", "top5"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not readable as per-image rows ({error})") from None
    top = table["top5"].combine_chunks()
    values = top.flatten().to_numpy(zero_copy_only=False)
    if len(table) == 0 or len(values) % len(table):
        raise ValueError(f"{path}: {len(table)} images with {len(values)} ranked classes in all")
    return Predictions(
        table["image"].to_numpy(), table["label"].to_numpy(), values.reshape(len(table), -1)
    )


def wilson_interval(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of an accuracy, in percent.

    Raises:
        ValueError: not 0 <= correct <= n, or n is 0.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: expected 0 <= correct <= n and n >= 1")
    interval = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mcnemar(plain: np.ndarray, candidate: np.ndarray) -> float:
    """Exact two-sided McNemar test of two classifiers on the same images, (N,) bool each."""
    gained = int(np.sum(candidate & ~plain))
    lost = int(np.sum(plain & ~candidate))
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


def class_p_values(
    label: np.ndarray, plain: np.ndarray, candidate: np.ndarray
) -> dict[int, float | None]:
    """p-value of each class that has images, tested as ``compare_accuracy`` tests all of them.

    Args:
        label: classes, (N,) integers.
        plain, candidate: right or wrong, (S, N) bool: S seeds, N images.

    None where seeds leave no spread to judge by.
    """
    order = np.argsort(label, kind="stable")
    classes, starts = np.unique(label[order], return_index=True)
    p_values = {}
    for index, images in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        sides = plain[:, images], candidate[:, images]
        if len(plain) == 1:
            p_values[index] = mcnemar(sides[0][0], sides[1][0])
        else:
            p_values[index] = paired_seeds_test(*(100 * side.mean(axis=1) for side in sides))
    return p_values


def compare_accuracy(
    plain: np.ndarray, candidate: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare accuracies of twins over the same images.

    Args:
        plain, candidate: right or wrong, (S, N) bool: S seeds, N images.

    Returns the difference in percent points. One seed is tested by McNemar's exact test, several
    by a paired t-test over seeds.
    """
    seeds, n = plain.shape
    # A resample of images is a multinomial draw of the few distinct outcomes: exact, and cheap.
    outcomes, counts = np.unique(
        np.packbits(np.concatenate([plain, candidate]), axis=0), axis=1, return_counts=True
    )
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    right = np.unpackbits(outcomes, axis=0)[: 2 * seeds]  # (2 S, outcomes)
    resampled = 100 * right @ drawn.T / n  # (2 S, B)
    test = {"p_value": mcnemar(plain[0], candidate[0]), "p_value_method": "exact McNemar test"}
    return difference_over_seeds(
        100 * plain.mean(axis=1),
        100 * candidate.mean(axis=1),
        resampled[:seeds],
        resampled[seeds:],
        n=n,
        seed=seed,
        **(test if seeds == 1 else {}),
    )
