"""Runs that left detections: COCO's numbers compared, kinds of error, and boxes on images."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from detection.annotations import Annotations, Results, read_annotations, read_results
from detection.scoring import match, score
from tools import statistics
from tools.experiments.record import Record
from tools.report.compared import (
    SHOWN_EACH_WAY,
    Box,
    Compared,
    Picture,
    file_of,
    make_picture,
)
from tools.report.pairs import Pair
from tools.statistics.matching import Detections, match_detections

SCORE = 0.5  # detections drawn and counted from here on
_SCENE = 320  # pixels, the longer side
_KINDS = {
    "Cls": "wrong class", "Loc": "badly placed", "Both": "wrong class and badly placed",
    "Dupe": "found twice", "Bkg": "background taken for an object", "Miss": "not found",
}  # fmt: skip


def compare(pair: Pair, resamples: int, seed: int) -> Compared:
    """Compare COCO's metrics over the same resamples of the images.

    Raises:
        ValueError: a file is missing or damaged, or files and records do not agree.
    """
    truth = _annotations(pair.candidate[0])
    plain, candidate = ([_results(run, truth) for run in s] for s in (pair.plain, pair.candidate))
    found, classes = statistics.compare_coco_metrics(truth, plain, candidate, resamples, seed)
    _check_scored(found["AP"].plain, pair.plain)
    _check_scored(found["AP"].candidate, pair.candidate)
    variation = statistics.variation_of(list(classes.values()))
    return Compared(found, classes, _errors(truth, plain[0], candidate[0]), variation)


def recompute(record: Record) -> tuple[dict[str, float | None], list[float | None]]:
    """COCO's numbers in percent from the detections alone, and AP by class; None where undefined.

    Raises:
        ValueError: a file is missing, damaged or not that of the record's data.
    """
    truth = _annotations(record)
    expected = record.dataset.reported_sha256
    if expected and truth.sha256 != expected:
        raise ValueError("the annotation file is not the one that is recorded")
    scores = score(truth, _results(record, truth))
    return scores.metrics, [row.value for row in scores.per_class]


def find_pictures(plain: Record, candidate: Record) -> list[Picture]:
    """Find images in which one twin finds more objects than the other, or fewer false ones.

    Raises:
        ValueError: a file is missing or damaged, or the images are no longer there.
    """
    truth = _annotations(candidate)
    sides = [match_detections(truth, _results(run, truth)) for run in (plain, candidate)]
    quality = [_quality(found, len(truth.image_ids)) for found in sides]
    change = quality[1] - quality[0]
    order = np.argsort(-change, kind="stable")
    best = [i for i in order[:SHOWN_EACH_WAY] if change[i] > 0]
    worst = [i for i in order[::-1][:SHOWN_EACH_WAY] if change[i] < 0]
    folder = _image_folder(candidate)
    pictures = []
    for index in (*best, *worst):
        boxes = tuple(
            _box(truth.box[row], truth.category_names[truth.category[row]])
            for row in np.flatnonzero((truth.image == index) & ~truth.crowd)
        )
        drawn = [_boxes(found, truth, int(index)) for found in sides]
        right = [sum(box.right for box in side) for side in drawn]
        false = [len(side) - hits for side, hits in zip(drawn, right, strict=True)]
        caption = (
            f"{truth.file_names[index]}: of {len(boxes)} objects plain finds {right[0]} with"
            f" {false[0]} false, its twin {right[1]} with {false[1]} false"
        )
        image = Image.open(truth.file(folder, int(index)))
        pictures.append(make_picture(image, _SCENE, caption, (boxes, *drawn)))
    return pictures


def _annotations(record: Record) -> Annotations:
    if not record.dataset.annotations:
        raise ValueError("the record names no annotation file")
    return read_annotations(record.annotations or record.dataset.annotations)


def _results(record: Record, truth: Annotations) -> Results:
    return read_results(file_of(record, "detections"), truth)


def _check_scored(ap: float | None, records: tuple[Record, ...]) -> None:
    """Raise where the files give another AP than the records say, on average."""
    metrics = [record.metrics.get("AP") for record in records]
    measured = [m.value for m in metrics if m is not None and m.value is not None]
    if len(measured) == len(metrics) and ap is not None and abs(np.mean(measured) - ap) > 1e-6:
        raise ValueError("detections and annotations give another AP than the record")


def _errors(
    truth: Annotations, plain: Results, candidate: Results
) -> dict[str, tuple[float, float]]:
    """What each kind of error costs, in points of AP50 (TIDE, arXiv 2008.08115)."""
    lost = []
    for results in (plain, candidate):
        evaluation = match(truth, results)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                lost.append(evaluation.tide_errors()["delta_ap"])
        except (ValueError, RuntimeError):  # a result without detections has no errors
            return {}
    return {label: (100 * lost[0][kind], 100 * lost[1][kind]) for kind, label in _KINDS.items()}


def _shown(found: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are drawn, and which of all found a box, (D,) bool each."""
    return found.score >= SCORE, found.matched[0, 0] & ~found.ignored[0, 0]


def _quality(found: Detections, images: int) -> np.ndarray:
    """Right less false detections of every image, (images,)."""
    shown, right = _shown(found)
    false = shown & ~right & ~found.ignored[0, 0]
    hits = np.bincount(found.image[shown & right], minlength=images)
    return hits - np.bincount(found.image[false], minlength=images)


def _boxes(found: Detections, truth: Annotations, index: int) -> tuple[Box, ...]:
    shown, right = _shown(found)
    return tuple(
        _box(
            found.box[row],
            f"{truth.category_names[found.category[row]]} {found.score[row]:.2f}",
            bool(right[row]),
        )
        for row in np.flatnonzero(shown & (found.image == index))
    )


def _box(sides: np.ndarray, label: str, right: bool = True) -> Box:
    x, y, width, height = sides.tolist()
    return Box(x, y, width, height, label, right)


def _image_folder(record: Record) -> Path:
    data = record.experiment.settings.get("data", {})
    split = record.dataset.split
    path = Path(record.dataset.annotations or "")  # where it was, wherever it was read from
    root = path.parent.parent
    year = "val2014" if "2014" in split else split
    places = [root / split, root / year, root / f"coco_{year}", path.parent]
    given = data.get("val_images")
    places = [Path(given).expanduser(), *places] if given else places
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"no image folder beside {path}")
