"""Detections matched to the boxes of a COCO annotation file, as pycocotools matches them.

Detections are taken by falling score, of all images and categories at once, for ten IoU
thresholds and four area ranges together.

Source: COCOeval of pycocotools 2.0, ``evaluateImg``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
class GroundTruth:
    """Boxes of a COCO annotation file as columns, one row a box, in the order of the file.

    ``image`` and ``category`` index ``image_ids`` and ``category_ids``, which are sorted;
    ``box`` is (N, 4) x, y, width, height in pixels.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    category_names: list[str]
    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    identifier: np.ndarray


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


def load_ground_truth(annotations: str | Path | dict) -> GroundTruth:
    """Read a COCO annotation file (or its content).

    Raises:
        ValueError: it holds no images or categories, a field is missing, or a box names an image
            or category that is not there.
    """
    content = annotations if isinstance(annotations, dict) else _read_json(annotations)
    if not isinstance(content, dict) or not content.get("images") or not content.get("categories"):
        raise ValueError(f"{_name(annotations)}: a COCO annotation file has images and categories")
    try:
        return _ground_truth(content, annotations)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{_name(annotations)}: not as COCO writes it ({error!r})") from None


def _ground_truth(content: dict, annotations: str | Path | dict) -> GroundTruth:
    names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    image_ids = np.array(sorted({entry["id"] for entry in content["images"]}))
    category_ids = np.array(sorted(names))
    boxes = content.get("annotations", [])
    box = np.array([entry["bbox"] for entry in boxes], dtype=float).reshape(-1, 4)
    area = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in boxes]
    return GroundTruth(
        image_ids,
        category_ids,
        [names[identifier] for identifier in category_ids.tolist()],
        _positions(image_ids, [entry["image_id"] for entry in boxes], "image_id", annotations),
        _positions(
            category_ids, [entry["category_id"] for entry in boxes], "category_id", annotations
        ),
        box,
        np.array(area, dtype=float),
        np.array([bool(entry.get("iscrowd", 0)) for entry in boxes], dtype=bool),
        np.array([entry.get("id", row + 1) for row, entry in enumerate(boxes)]),
    )


def match_detections(truth: GroundTruth, results: str | Path | list[dict]) -> Detections:
    """Match a COCO results file (or its content) to the ground truth.

    Raises:
        ValueError: fields are missing, an image is not in the ground truth, or a score is not
            finite.
    """
    image, category, box, score = _read_results(truth, results)
    order = np.lexsort((-score, category, image))  # stable, as COCOeval's merge sort
    image, category, box, score = image[order], category[order], box[order], score[order]
    group = image * len(truth.category_ids) + category
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    kept = rank < MAX_DETECTIONS
    image, category, box, score = image[kept], category[kept], box[kept], score[kept]
    matched, ignored = _match(truth, group[kept], box)
    area = box[:, 2] * box[:, 3]
    return Detections(image, category, score, rank[kept], box, area, matched, ignored)


def _match(truth: GroundTruth, group: np.ndarray, box: np.ndarray):
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
                there, out_of_count[rows].transpose(0, 2, 1), truth.identifier[rows] != 0,
                matched, ignored,
            )  # fmt: skip
    return matched, ignored


def _match_groups(
    box, start, count, truth_box, crowd, there, uncounted, named, matched, ignored
) -> None:
    """Match groups (an image and a category each), ordered by falling number of detections.

    Shapes: start, count (P,); truth_box (P, G, 4); crowd, there, named (P, G);
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
        # COCOeval writes the id of the box as its mark, so a box with id 0 counts as no match.
        matched[area, threshold, detection[group]] = named[group, chosen]
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


def _read_results(truth: GroundTruth, results: str | Path | list[dict]):
    content = results if isinstance(results, list) else _read_json(results)
    if not isinstance(content, list):
        raise ValueError(f"{_name(results)}: a COCO results file holds a list of detections")
    try:
        image = [entry["image_id"] for entry in content]
        category = np.array(
            [entry["category_id"] for entry in content], dtype=truth.category_ids.dtype
        )
        box = np.array([entry["bbox"] for entry in content], dtype=float).reshape(-1, 4)
        score = np.array([entry["score"] for entry in content], dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{_name(results)}: a detection has image_id, category_id, bbox and score ({error!r})"
        ) from None
    if not np.isfinite(score).all():
        raise ValueError(
            f"{_name(results)}: score of detection {np.argmin(np.isfinite(score))} is not finite"
        )
    known = np.isin(category, truth.category_ids)  # COCOeval leaves out the others too
    image_index = _positions(truth.image_ids, image, "image_id", results)[known]
    return (
        image_index,
        np.searchsorted(truth.category_ids, category[known]),
        box[known],
        score[known],
    )


def _positions(known: np.ndarray, values: list, field: str, source) -> np.ndarray:
    if not values:
        return np.zeros(0, dtype=np.intp)
    values = np.asarray(values)
    positions = np.minimum(np.searchsorted(known, values), len(known) - 1)
    strange = known[positions] != values
    if strange.any():
        raise ValueError(
            f"{_name(source)}: {field} {values[np.argmax(strange)]} is not in the annotations"
        )
    return positions


def _read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None


def _name(source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the given data"
