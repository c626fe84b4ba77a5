"""Top-k accuracy from one row an image: intervals, and twins compared image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as parquet
from scipy import special, stats

from tools.statistics.differences import (
    CONFIDENCE,
    Difference,
    Noise,
    differences_over_seeds,
    variance_between_seeds,
)
from tools.statistics.planning import detectable_with_images
from tools.statistics.pooling import Variation, variation


@dataclass(frozen=True)
class Predictions:
    """Rows of a ``samples.parquet``: image names (N,), labels (N,), classes best first (N, K).

    Of files that hold them: the probability of the first class and of the label (0 to 1), and the Brier
    score over all classes (0 to 2), (N,) each.
    """

    image: np.ndarray
    label: np.ndarray
    top: np.ndarray
    confidence: np.ndarray | None = None
    probability: np.ndarray | None = None
    brier: np.ndarray | None = None

    def correct(self, k: int) -> np.ndarray:
        """Whether the label is among the first ``k`` classes, (N,) bool."""
        return (self.top[:, :k] == self.label[:, None]).any(axis=1)


_MOST_VALUES, _LARGEST = 300_000_000, 4 << 30  # of a file of rows: 20 million images
_ROWS = pa.schema(
    {"image": pa.string(), "label": pa.int64(), "top5": pa.list_(pa.int64())}  # best class first
)
_SCORES = pa.schema(
    {"scores": pa.list_(pa.float64()), "probability": pa.float64(), "brier": pa.float64()}
)
_ROUNDED = 1e-6  # float32 may sum to a little more than 1


def load_predictions(path: str | Path, images: int | None = None) -> Predictions:
    """Read ``samples.parquet``.

    Args:
        images: how many rows there must be; looked at before any row is read.

    Raises:
        ValueError: not a Parquet file, columns missing or of other types, values missing, or rows
            of unequal length.
    """
    try:
        rows = parquet.read_metadata(path).num_rows
        if rows == 0 or (images is not None and rows != images):
            wanted = "at least 1" if images is None else images
            raise ValueError(f"{path}: {rows} rows, expected {wanted}")
        _refuse_large(path)
        scored = set(_SCORES.names) <= set(parquet.read_schema(path).names)
        schema = pa.unify_schemas([_ROWS, _SCORES]) if scored else _ROWS
        table = parquet.read_table(path, columns=schema.names).select(schema.names).cast(schema)
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not readable as per-image rows ({reason})") from None
    ranked = table["top5"].combine_chunks()
    values = ranked.flatten()
    if values.null_count or any(column.null_count for column in table.columns):
        raise ValueError(f"{path}: an image, a label or a class is missing")
    lengths = pa.compute.unique(pa.compute.list_value_length(ranked)).to_pylist()
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"{path}: rows rank {sorted(lengths)} classes; expected one length")
    scores = _read_scores(path, table, ranked) if scored else (None, None, None)
    return Predictions(
        table["image"].to_numpy(),
        table["label"].to_numpy(),
        values.to_numpy().reshape(len(table), lengths[0]),
        *scores,
    )


def _read_scores(
    path: str | Path, table: pa.Table, ranked: pa.ListArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, the label's probability and the Brier score, float64 (N,) each."""
    listed = table["scores"].combine_chunks()
    scores = listed.flatten().to_numpy(zero_copy_only=False)
    probability, brier = (table[name].to_numpy() for name in ("probability", "brier"))
    kept = pa.compute.list_value_length(listed).equals(pa.compute.list_value_length(ranked))
    if not kept or not all(
        np.all((values >= 0) & (values <= most))  # NaN is neither
        for values, most in (
            (scores, 1 + _ROUNDED),
            (probability, 1 + _ROUNDED),
            (brier, 2 + _ROUNDED),
        )
    ):
        raise ValueError(f"{path}: scores that are no probabilities, one for each class ranked")
    return scores.reshape(len(table), -1)[:, 0], probability, brier


def _refuse_large(path: str | Path) -> None:
    """Raise a ValueError for a file that takes gigabytes once it is read; it may be a stranger's."""
    told = parquet.read_metadata(path)
    columns = [
        told.row_group(group).column(column)
        for group in range(told.num_row_groups)
        for column in range(told.num_columns)
    ]
    values = sum(column.num_values for column in columns)
    size = sum(column.total_uncompressed_size for column in columns)
    if values <= _MOST_VALUES and size <= _LARGEST:
        # A name stands once in a file, however many rows have it, and once a row when it is read.
        names = parquet.read_table(path, columns=["image"], read_dictionary=["image"])["image"]
        for chunk in names.chunks if pa.types.is_dictionary(names.type) else ():
            longest = pa.compute.max(pa.compute.binary_length(chunk.dictionary)).as_py() or 0
            size = max(size, longest * told.num_rows)
    if values > _MOST_VALUES or size > _LARGEST:
        raise ValueError(f"{path}: {values} values of {size} bytes, more than images have")


def wilson_interval(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of an accuracy, in percent.

    Raises:
        ValueError: not 0 <= correct <= n, or n is 0.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: expected 0 <= correct <= n and n >= 1")
    interval = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mid_p(gained: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Two-sided mid-p value of McNemar's test, from counts of images gained and lost.

    Source: Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data: mid-p
    and asymptotic are better than exact conditional", 2013.
    """
    gained, lost = np.asarray(gained), np.asarray(lost)
    larger = np.maximum(gained, lost)
    tail = special.bdtrc(larger - 1, gained + lost, 0.5)
    tail = tail - stats.binom.pmf(larger, gained + lost, 0.5) / 2
    return np.where(larger > 0, np.minimum(1.0, 2 * tail), 1.0)


def score_interval(
    gained: np.ndarray, lost: np.ndarray, n: np.ndarray, tail: float = (1 - CONFIDENCE) / 2
) -> tuple[np.ndarray, np.ndarray]:
    """Tango's score interval of a difference of paired shares, (gained - lost) / n.

    Args:
        gained, lost, n: counts of images, whole numbers, of one shape; n of at least 1.
        tail: what it leaves out at each end.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", 1998.
    """
    gained, lost, n = (np.asarray(count, dtype=float) for count in (gained, lost, n))
    estimate, z = (gained - lost) / n, special.ndtri(1 - tail)

    def excess(delta: np.ndarray) -> np.ndarray:
        """Squared score statistic of the hypothesis ``delta``, less z squared."""
        linear = -gained - lost + (2 * n - gained + lost) * delta
        root = np.sqrt(np.maximum(linear**2 + 8 * n * lost * delta * (1 - delta), 0.0))
        variance = n * ((root - linear) / (2 * n) + delta * (1 - delta))
        return (gained - lost - n * delta) ** 2 - z**2 * np.maximum(variance, 0.0)

    ends = []
    for far in (-1.0, 1.0):
        inside, outside = estimate.copy(), np.full_like(estimate, far)
        for _ in range(60):
            middle = (inside + outside) / 2
            beyond = excess(middle) > 0
            inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
        ends.append(inside)
    return ends[0], ends[1]


def compare_accuracy(plain: np.ndarray, candidate: np.ndarray) -> Difference:
    """Compare accuracies of twins over the same images.

    Args:
        plain, candidate: right or wrong, (S, N) bool: S seeds, N images.

    Returns the difference in percent points; the variance of a mean over images is known without a
    bootstrap. One seed: Tango's score interval and McNemar's mid-p,
    about these weights. Several: variance components (``differences_over_seeds``).

    Raises:
        ValueError: the sides are not of one shape (S, N), or hold nothing.
    """
    _check_sides(plain, candidate)
    everything = np.zeros(plain.shape[1], dtype=int)
    return _compare_groups(everything, plain, candidate)[0][0]


def compare_classes(
    label: np.ndarray, plain: np.ndarray, candidate: np.ndarray
) -> tuple[dict[int, Difference], Variation | None]:
    """Compare each class that has images, as ``compare_accuracy`` compares all of them.

    Args:
        label: classes, (N,) integers.
        plain, candidate: right or wrong, (S, N) bool: S seeds, N images.

    Returns the differences by class and whether they differ at all, of two classes or more with two
    images each.

    Raises:
        ValueError: the sides are not of one shape (S, N), hold nothing, or N labels are not given.
    """
    _check_sides(plain, candidate)
    if label.shape != plain.shape[1:]:
        raise ValueError(f"labels of shape {label.shape} for {plain.shape[1]} images")
    differences, variances = _compare_groups(label, plain, candidate)
    found = dict(zip(np.unique(label).tolist(), differences, strict=True))
    sizes = np.array([one.n for one in differences], dtype=float)
    if len(found) < 2 or sizes.min() < 2:  # of one image there is no variance
        return found, None
    smoothed = np.array([one.standard_error or 0.0 for one in differences]) ** 2
    values = np.array([one.difference for one in differences])
    return found, variation(values, variances, sizes, np.maximum(smoothed, variances))


def _check_sides(plain: np.ndarray, candidate: np.ndarray) -> None:
    if plain.ndim != 2 or plain.shape != candidate.shape or plain.size == 0:
        raise ValueError(
            f"plain of shape {plain.shape} and candidate of shape {candidate.shape}: expected both"
            " (seeds, images), of as many seeds and the same images"
        )


def _compare_groups(
    label: np.ndarray, plain: np.ndarray, candidate: np.ndarray
) -> tuple[list[Difference], np.ndarray]:
    """Differences of the groups of images in order of their label, and their plain variances.

    The variances, (G,) squared percent points, are right on average: without the floors, and the
    two images more, that make each difference safe where few images or seeds tell of it.
    """
    order = np.argsort(label, kind="stable")
    _, starts, sizes = np.unique(label[order], return_index=True, return_counts=True)
    sides = [np.asarray(side, dtype=np.int8)[:, order] for side in (plain, candidate)]
    change = sides[1] - sides[0]
    if len(plain) == 1:
        return _compare_weights(sides[0][0], change[0], starts, sizes)
    cells = [_Cells(values, starts, sizes) for values in (*sides, change)]
    plain_cells, candidate_cells, paired = cells
    noise = Noise(
        paired.image_variance(paired.like_those_seen()),
        plain_cells.image_variance(_one_of_each()),
        candidate_cells.image_variance(_one_of_each()),
        plain_cells.churn(), candidate_cells.churn(), paired.churn(),
    )  # fmt: skip
    means = [100 * cell.sums / sizes for cell in (plain_cells, candidate_cells)]
    differences = differences_over_seeds(means[0], means[1], noise, sizes, sizes)
    between, churn, _ = variance_between_seeds(means[0], means[1], noise)
    of_seeds = max(0.0, float(sizes @ (between - churn)) / sizes.sum())  # one for all groups
    return differences, paired.image_variance((0, 0.0, 0.0)) + of_seeds / len(plain)


def _compare_weights(
    plain: np.ndarray, change: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> tuple[list[Difference], np.ndarray]:
    """One seed: plain right or wrong and candidate minus plain, (N,) int8 each, group by group."""
    gained, lost, right = (
        np.add.reduceat(values.astype(int), starts) for values in (change > 0, change < 0, plain)
    )
    low, high = score_interval(gained, lost, sizes)
    low_90, high_90 = score_interval(gained, lost, sizes, tail=0.05)
    p_values = mid_p(gained, lost)
    # The score test of "none" rejects whatever mid-p rejects (so for every count of up to 100,000
    # images that differ), and now and then a little more: there the interval is closed at zero.
    undecided = p_values >= 1 - CONFIDENCE
    low, high = (
        np.where(undecided, np.minimum(low, 0), low),
        np.where(undecided, np.maximum(high, 0), high),
    )
    share, shift = (gained + lost + 2) / (sizes + 2), (gained - lost) / (sizes + 2)
    error = np.sqrt((share - shift**2) / (sizes + 2))
    detectable = detectable_with_images(sizes, share)
    shares = {
        "plain": right / sizes,
        "candidate": (right + gained - lost) / sizes,
        "difference": (gained - lost) / sizes,
        "low": low,
        "high": high,
        "low_90": low_90,
        "high_90": high_90,
        "standard_error": error,
        "image_sd": error,
        "detectable": detectable,
    }
    columns = {name: 100 * values for name, values in shares.items()} | {"p_value": p_values}
    rows: list[dict[str, Any]] = [
        {name: float(values[k]) for name, values in columns.items()} for k in range(len(sizes))
    ]
    if len(sizes) == 1:
        for name, correct in (("plain", right), ("candidate", right + gained - lost)):
            rows[0][f"{name}_interval"] = wilson_interval(int(correct[0]), int(sizes[0]))
    found = [
        Difference(
            **row,
            interval_method="Tango's score interval, about these weights",
            p_value_method="McNemar's mid-p test, about these weights",
            n=int(n),
        )
        for row, n in zip(rows, sizes, strict=True)
    ]
    raw = ((gained + lost) / sizes - ((gained - lost) / sizes) ** 2) / np.maximum(sizes - 1, 1)
    return found, 100**2 * raw


class _Cells:
    """Sums over the images of each group, of whole numbers for each seed and image, (S, N)."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, sizes: np.ndarray):
        self._seeds, self._sizes = len(values), sizes
        over_seeds = values.sum(axis=0, dtype=np.int32)
        squares = (values != 0).sum(axis=0, dtype=np.int32)  # of -1, 0 and 1
        mean = over_seeds / self._seeds
        self.sums = np.add.reduceat(values, starts, axis=1, dtype=np.int64)  # (S, G)
        self._mean_sum = np.add.reduceat(mean, starts)
        self._mean_squares = np.add.reduceat(mean**2, starts)
        self._within = np.add.reduceat(squares - mean * over_seeds, starts)
        self._touched = np.add.reduceat((over_seeds != 0).astype(int), starts)

    def image_variance(self, more: tuple) -> np.ndarray:
        """Of the mean over seeds and images, percent squared.

        ``more``: images to add, the sum of their values and of their squares.
        """
        images, total, squares = more
        n = self._sizes + images
        mean = (self._mean_sum + total) / n
        spread = (self._mean_squares + squares) / n - mean**2
        return 100**2 * np.maximum(spread, 0.0) / np.maximum(n - 1, 1)

    def like_those_seen(self) -> tuple:
        """Two more images that differ, one each way, as much as those that do, or wholly.

        Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
        proportions based on paired data", 2012.
        """
        seen = np.where(self._touched > 0, self._mean_squares / np.maximum(self._touched, 1), 1.0)
        return 2, 0.0, 2 * seen

    def churn(self) -> np.ndarray:
        """Of a mean over images, seed x image alone, percent squared."""
        means = self.sums / self._sizes
        between = self._sizes * np.sum((means - means.mean(axis=0)) ** 2, axis=0)
        degrees = (self._seeds - 1) * np.maximum(self._sizes - 1, 1)
        return 100**2 * np.maximum(self._within - between, 0.0) / degrees / self._sizes


def _one_of_each() -> tuple:
    """Two more images, one right and one wrong: an accuracy of 100 % is no certainty."""
    return 2, 1.0, 1.0
