"""COCO's twelve numbers of bootstrap resamples of the images, from one matching pass.

Whether a detection is a true positive depends on its own image alone, so detections are matched
to the ground truth once. A resample of the images is then a vector of multiplicities.

Average precision: weighted counts run along the detections, sorted once by score, and give
precision and recall. Between two rows that can raise recall only the number of false positives
matters, so runs of them are added up by one sparse product for a block of resamples at a time.
Average recall: the order does not matter, so the weighted true positives over the weighted boxes
are two such products in all.

Source: COCOeval of pycocotools 2.0 (``evaluateImg``, ``accumulate``, ``summarize``). The estimates
themselves are hotcoco's, which are pycocotools' to the bit; but it counts an image drawn twice once
(1.3), which makes intervals too narrow, so resamples are scored here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from detection.annotations import Annotations, Results
from detection.scoring import METRICS, score
from tools.statistics.differences import (
    RESAMPLES,
    Difference,
    differences_over_seeds,
    noise_of_resamples,
)
from tools.statistics.matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    Detections,
    match_detections,
)

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
# metric -> (index into AREA_RANGES, IoU thresholds averaged over)
AVERAGE_PRECISIONS = {
    "AP": (0, slice(None)),
    "AP50": (0, slice(0, 1)),
    "AP75": (0, slice(5, 6)),
    "APs": (1, slice(None)),
    "APm": (2, slice(None)),
    "APl": (3, slice(None)),
}
# metric -> (index into AREA_RANGES, most detections of an image and category)
AVERAGE_RECALLS = {
    "AR1": (0, 1),
    "AR10": (0, 10),
    "AR100": (0, 100),
    "ARs": (1, 100),
    "ARm": (2, 100),
    "ARl": (3, 100),
}
assert (*AVERAGE_PRECISIONS, *AVERAGE_RECALLS) == tuple(METRICS)
RESAMPLES_AT_ONCE = 125
_RECALL_AREAS = [area for area, _ in AVERAGE_RECALLS.values()]


@dataclass(frozen=True)
class _Block:
    """What AP needs of a category and area range: rows that can raise recall, and what lies between."""

    runs: sparse.csr_matrix  # (runs, images): detections in the area range, run by run
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]  # a threshold: image, run,
    # true positive, to be taken off the false positives


class MatchedDetections:
    """One result matched to its ground truth, ready for any number of resamples.

    Args:
        truth: the ground truth.
        results: the detections.
    """

    def __init__(self, truth: Annotations, results: Results):
        self.truth = truth
        found, counted = match_detections(truth, results), _counted(truth)
        by_category = np.lexsort((-found.score, found.category))
        categories = range(len(truth.category_ids))
        bounds = np.searchsorted(found.category[by_category], np.arange(len(categories) + 1))
        self._blocks = {
            (category, area): _block(
                found,
                truth.image_ids,
                area,
                by_category[bounds[category] : bounds[category + 1]],
            )
            if (counted[area] & (truth.category == category)).any()
            else None
            for category in categories
            for area in range(len(AREA_RANGES))
        }
        area, box = np.nonzero(counted)
        self._boxes = _tally(truth, len(AREA_RANGES), area, truth.category[box], truth.image[box])
        self._found = _true_positives(truth, found)

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """METRICS and each category's AP in percent of resamples, NaN where undefined.

        ``weights``, (resamples, images): how often a resample holds an image. Returns
        (resamples, len(METRICS) + categories).
        """
        by_image = np.ascontiguousarray(weights.T)
        boxes = self._per_category(self._boxes, by_image)
        precision = self._resampled_precision(weights, by_image, boxes)
        columns = [_mean(precision[area, t], (0, 1)) for area, t in AVERAGE_PRECISIONS.values()]
        recall = self._resampled_recall(by_image, boxes[_RECALL_AREAS])
        return np.stack([*columns, *_mean(recall, 1), *_mean(precision[0], 0)], axis=1)

    def _resampled_precision(
        self, weights: np.ndarray, by_image: np.ndarray, boxes: np.ndarray
    ) -> np.ndarray:
        """AP, (areas, IoU thresholds, categories, resamples), in percent."""
        areas, categories, resamples = boxes.shape
        result = np.full((areas, len(IOU_THRESHOLDS), categories, resamples), np.nan)
        for (category, area), block in self._blocks.items():
            if block is None:
                continue
            counted = boxes[area, category]
            for t, (envelope, reached) in enumerate(_curves(block, counted, weights, by_image)):
                steps = np.diff(reached, axis=1, prepend=0)
                result[area, t, category] = np.einsum("ij,ij->i", envelope, steps)
            result[area, :, category, counted == 0] = np.nan
        result *= 100 / len(RECALL_THRESHOLDS)
        return result

    def _resampled_recall(self, by_image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Recall over the IoU thresholds, percent: (len(AVERAGE_RECALLS), categories, resamples)."""
        found = self._per_category(self._found, by_image)
        found *= 100 / len(IOU_THRESHOLDS)
        return np.divide(found, boxes, out=np.full(boxes.shape, np.nan), where=boxes > 0)

    def _per_category(self, rows: sparse.csr_matrix, by_image: np.ndarray) -> np.ndarray:
        """Sums over the images, (-1, categories, resamples), of rows whose category runs last."""
        return (rows @ by_image).reshape(-1, len(self.truth.category_ids), by_image.shape[1])


def resample_weights(images: int, resamples: int, seed) -> np.ndarray:
    """Multiplicities of the images in each resample, (resamples, images), float64.

    ``seed``: whatever ``numpy.random.default_rng`` takes.
    """
    draws = np.random.default_rng(seed).integers(0, images, (resamples, images))
    flat = (draws + np.arange(resamples)[:, None] * images).ravel()
    return np.bincount(flat, minlength=resamples * images).reshape(resamples, images).astype(float)


def bootstrap_coco_metrics(
    results: list[MatchedDetections], resamples: int = RESAMPLES, seed: int = 0, workers: int = 2
) -> np.ndarray:
    """METRICS and each category's AP of every result in the same resamples of the images.

    Returns (results, resamples, len(METRICS) + categories) in percent, NaN where a resample
    holds no box to find. The same for any number of ``workers`` (threads).
    """
    images = len(results[0].truth.image_ids)
    starts = list(range(0, resamples, RESAMPLES_AT_ONCE))

    def chunk(start: int) -> np.ndarray:
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        weights = resample_weights(images, size, [seed, start])
        return np.stack([result.resampled(weights) for result in results])

    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(chunk, starts)), axis=1)


def compare_coco_metrics(
    truth: Annotations,
    plain: list[Results],
    candidate: list[Results],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Compare detectors, one result a seed, by resamples of the images shared by all of them.

    Returns the differences of METRICS and those of each category's AP, by name, in percent
    points. A category without a box that counts has None and the reason. One seed: the bootstrap's
    standard deviation with t and m - 1 degrees of freedom, m images that hold a box that counts.
    Several: variance components (``differences_over_seeds``).

    Scores tied within an image are taken with all its true positives first; detectors hardly tie.
    """
    values, boot = _centred_bootstrap(truth, [*plain, *candidate], resamples, seed)
    holding = _images_holding(truth)
    n = [len(truth.image_ids)] * len(METRICS) + holding[len(METRICS) :]
    differences = [
        _compare_column(values[:, column], boot[:, :, column], len(plain), holding[column], images)
        for column, images in enumerate(n)
    ]
    metrics = dict(zip(METRICS, differences, strict=False))
    return metrics, dict(zip(truth.category_names, differences[len(METRICS) :], strict=True))


def _compare_column(
    values: np.ndarray, boot: np.ndarray, seeds: int, holding: int, n: int
) -> Difference:
    """One metric of all results, (2 S,) and (2 S, B), the plain ones first."""
    if np.isnan(values).any():
        reason = "the annotations hold no box that counts here"
        return Difference(None, None, None, seeds=seeds, reason=reason)
    noise = noise_of_resamples(boot[:seeds], boot[seeds:], holding)
    sides = values[:seeds, None], values[seeds:, None]
    return differences_over_seeds(*sides, noise, np.array([holding]), np.array([n]))[0]


def _images_holding(truth: Annotations) -> list[int]:
    """How many images hold a box that counts, for each of METRICS, then for each category."""
    counted = _counted(truth)
    areas = [area for area, _ in (*AVERAGE_PRECISIONS.values(), *AVERAGE_RECALLS.values())]
    of_metrics = [len(np.unique(truth.image[counted[area]])) for area in areas]
    category, image = truth.category[counted[0]], truth.image[counted[0]]
    pairs = np.unique(category.astype(np.int64) * len(truth.image_ids) + image)
    categories = np.bincount(pairs // len(truth.image_ids), minlength=len(truth.category_ids))
    return [*of_metrics, *categories.tolist()]


def _centred_bootstrap(
    truth: Annotations, results: list[Results], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (results, columns) and the bootstrap (results, resamples, columns) about them.

    Columns are METRICS, then each category's AP, in percent, NaN where undefined. Centred: an
    image drawn twice agrees with itself, which flatters AP.
    """
    matched = [MatchedDetections(truth, result) for result in results]
    scores = [score(truth, result) for result in results]
    values = np.array(
        [[*one.metrics.values(), *(row.value for row in one.per_class)] for one in scores],
        dtype=float,
    )
    boot = bootstrap_coco_metrics(matched, resamples, seed)
    scored = ~np.isnan(boot).all(axis=1)
    boot -= np.where(scored, _mean(boot, 1) - values, 0.0)[:, None]
    return values, boot


def _counted(truth: Annotations) -> np.ndarray:
    """Which boxes count in which of AREA_RANGES, (areas, boxes) bool."""
    inside = [(truth.area >= low) & (truth.area <= high) for low, high in AREA_RANGES.values()]
    return np.stack(inside) & ~truth.crowd


def _true_positives(truth: Annotations, found: Detections) -> sparse.csr_matrix:
    """What is found of each of AVERAGE_RECALLS, over the IoU thresholds: (recalls x categories, images)."""
    area, _, detection = np.nonzero(found.matched & ~found.ignored)
    rank = found.rank[detection]
    hits = [(area == wanted) & (rank < most) for wanted, most in AVERAGE_RECALLS.values()]
    row, hit = np.nonzero(np.stack(hits))
    which = detection[hit]
    return _tally(truth, len(hits), row, found.category[which], found.image[which])


def _tally(
    truth: Annotations, kinds: int, kind: np.ndarray, category: np.ndarray, image: np.ndarray
) -> sparse.csr_matrix:
    """How many there are of each kind, category and image, (kinds x categories, images)."""
    categories = len(truth.category_ids)
    return sparse.csr_matrix(
        (np.ones(len(kind)), (kind * categories + category, image)),
        shape=(kinds * categories, len(truth.image_ids)),
    )


def _block(found: Detections, image_ids: np.ndarray, area: int, detections: np.ndarray) -> _Block:
    """``detections``: those of a category that has boxes, by falling score."""
    low, high = list(AREA_RANGES.values())[area]
    images = found.image[detections]
    inside = (found.area[detections] >= low) & (found.area[detections] <= high)
    seen = np.cumsum(inside)  # detections of the area range up to and with this one
    matched, ignored = found.matched[area, :, detections], found.ignored[area, :, detections]
    positive = matched & ~ignored  # (D, T)
    removed = (matched | ignored) & inside[:, None]
    picked = [np.flatnonzero(column) for column in (positive | removed).T]
    ends = np.unique(seen[np.concatenate(picked)])
    last = int(ends[-1]) if len(ends) else 0  # no later false positive can matter
    runs = sparse.csr_matrix(
        (np.ones(last), images[inside][:last], np.r_[0, ends]),
        shape=(len(ends), len(image_ids)),
    )
    rows = [
        (images[row], np.searchsorted(ends, seen[row]), positive[row, t], removed[row, t])
        for t, row in enumerate(picked)
    ]
    return _Block(runs, rows)


def _curves(block: _Block, boxes: np.ndarray, weights: np.ndarray, by_image: np.ndarray):
    """For each IoU threshold: highest precision at or after each row, recall thresholds reached with it.

    Both (resamples, rows): running sums want their axis last. ``boxes``, (resamples,): how many count.
    """
    boxes = np.maximum(boxes, 1)
    passed = np.cumsum(np.ascontiguousarray((block.runs @ by_image).T), axis=1)
    for image, run, positive, removed in block.rows:
        row_weights = np.take(weights, image, axis=1)
        counted = np.take(passed, run, axis=1)  # true and false positives up to each row
        if np.array_equal(positive, removed):  # mostly so: nothing out of range or ignored
            true = np.cumsum(row_weights if positive.all() else row_weights * positive, axis=1)
        else:
            true = np.cumsum(row_weights * positive, axis=1)
            counted += true - np.cumsum(row_weights * removed, axis=1)
        counted += np.spacing(1)
        envelope = np.maximum.accumulate((true / counted)[:, ::-1], axis=1)[:, ::-1]
        true /= boxes[:, None]
        yield envelope, _thresholds_reached(true)


def _thresholds_reached(recall: np.ndarray) -> np.ndarray:
    """How many of the 101 recall thresholds are at or below each recall.

    The same as ``searchsorted(RECALL_THRESHOLDS, recall, "right")``, several times as fast: the
    thresholds are evenly spaced, so a guess is at most one off.
    """
    reached = (recall * 100).astype(np.intp)
    too_high = np.take(RECALL_THRESHOLDS, reached, mode="clip") > recall
    next_too = np.take(_NEXT_THRESHOLD, reached, mode="clip") <= recall
    reached += 1
    reached -= too_high
    reached += next_too
    return reached


_NEXT_THRESHOLD = np.append(RECALL_THRESHOLDS[1:], np.inf)


def _mean(values: np.ndarray, axis) -> np.ndarray:
    """Mean over ``axis`` of the values that are defined; NaN where none is."""
    count = np.sum(~np.isnan(values), axis=axis)
    return np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)
