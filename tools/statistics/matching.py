"""Detections matched to the boxes of a COCO annotation file, as pycocotools matches them.

Detections are taken by falling score, of all images and categories at once, for ten IoU
thresholds and four area ranges together.

Source: COCOeval of pycocotools 2.0, ``evaluateImg``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detection.annotations import Annotations, Results

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {  # square pixels, both ends included
    "all": (0.0, 1e5**2),
    "s": (0.0, 32.0**2),
    "m": (32.0**2, 96.0**2),
    "l": (96.0**2, 1e5**2),
}
MAX_DETECTIONS = 100  # an image and category
MATCHED_AT_ONCE = 4_000_000  # elements of the largest array of the matching


@dataclass(frozen=True)
class Detections:
    """Detections that count, as columns, ordered by image, category and falling score.

    ``rank`` counts from 0 within an image and category; ``box`` is (D, 4) x, y, width, height in
    pixels, ``area`` their square pixels; ``matched`` and ``ignored``, (areas, IoU thresholds, D):
    matched to a box, and not counted because that box is not.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    box: np.ndarray
    area: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray


def match_detections(truth: Annotations, results: Results) -> Detections:
    """Match detections to the ground truth."""
    columns = (results.image, results.category, results.box, results.score)
    # stable, as COCOeval's merge sort
    order = np.lexsort((-results.score, results.category, results.image))
    image, category, box, score = (column[order] for column in columns)
    group = image * len(truth.category_ids) + category
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    kept = rank < MAX_DETECTIONS
    image, category, box, score = image[kept], category[kept], box[kept], score[kept]
    matched, ignored = _match(truth, group[kept], box)
    area = box[:, 2] * box[:, 3]
    return Detections(image, category, score, rank[kept], box, area, matched, ignored)


def _match(truth: Annotations, group: np.ndarray, box: np.ndarray):
    """Greedy matching of every area range and IoU threshold.

    Returns two arrays (areas, IoU thresholds, detections): matched, and ignored because the
    match is. Detections are taken by rank, all images and categories at once.
    """
    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS), len(group))
    matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    truth_group = truth.image * len(truth.category_ids) + truth.category
    truth_order = np.argsort(truth_group, kind="stable")
    groups, truth_start, truth_count = np.unique(
        truth_group[truth_order], return_index=True, return_counts=True
    )
    start = np.searchsorted(group, groups, side="left")
    count = np.searchsorted(group, groups, side="right") - start
    outside = np.stack(
        [(truth.area < low) | (truth.area > high) for low, high in AREA_RANGES.values()], axis=1
    )
    out_of_count = outside | truth.crowd[:, None]  # (boxes, areas)
    width = 2 ** np.ceil(np.log2(np.maximum(truth_count, 1))).astype(int)
    for boxes in np.unique(width[count > 0]):
        picked = np.flatnonzero((width == boxes) & (count > 0))
        picked = picked[np.argsort(-count[picked], kind="stable")]
        at_once = max(1, MATCHED_AT_ONCE // (len(AREA_RANGES) * len(IOU_THRESHOLDS) * int(boxes)))
        for part in np.split(picked, range(at_once, len(picked), at_once)):
            slot = np.arange(boxes)
            there = slot < truth_count[part, None]
            rows = truth_order[np.where(there, truth_start[part, None] + slot, 0)]
            _match_groups(
                box, start[part], count[part], truth.box[rows], truth.crowd[rows],
                there, out_of_count[rows].transpose(0, 2, 1), matched, ignored,
            )  # fmt: skip
    return matched, ignored


def _match_groups(box, start, count, truth_box, crowd, there, uncounted, matched, ignored) -> None:
    """Match groups (an image and a category each), ordered by falling number of detections.

    Shapes: start, count (P,); truth_box (P, G, 4); crowd, there (P, G);
    uncounted (P, A, G). Writes into matched and ignored (A, T, D).
    """
    groups, boxes = there.shape
    free = np.ones((groups, len(AREA_RANGES), len(IOU_THRESHOLDS), boxes), dtype=bool)
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    for rank in range(int(count[0])):
        active = int(np.searchsorted(-count, -rank, side="left"))  # groups with more than rank
        detection = start[:active] + rank
        overlap = _overlap(box[detection][:, None], truth_box[:active], crowd[:active])
        near = (overlap[:, None] >= limits[:, None]) & there[:active, None]  # (P, T, G)
        open_ = near[:, None] & (free[:active] | crowd[:active, None, None])
        counted = open_ & ~uncounted[:active, :, None]
        choice = np.where(counted.any(axis=-1, keepdims=True), counted, open_)
        value = np.where(choice, overlap[:, None, None], -1.0)
        best = boxes - 1 - np.argmax(value[..., ::-1], axis=-1)  # of equals the last, (P, A, T)
        found = choice.any(axis=-1)
        group, area, threshold = np.nonzero(found)
        chosen = best[group, area, threshold]
        free[group, area, threshold, chosen] = False
        matched[area, threshold, detection[group]] = True
        ignored[area, threshold, detection[group]] = uncounted[group, area, chosen]


def _overlap(one: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes; over a crowd, intersection over the first box's area."""
    low = np.maximum(one[..., :2], others[..., :2])
    high = np.minimum(one[..., 2:] + one[..., :2], others[..., 2:] + others[..., :2])
    size = high - low
    common = np.where((size > 0).all(axis=-1), size[..., 0] * size[..., 1], 0.0)
    first, second = one[..., 2] * one[..., 3], others[..., 2] * others[..., 3]
    union = np.where(crowd, first, first + second - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)
