"""The numbers of COCO from boxes: by hotcoco, or by pycocotools itself; equal to the bit.

Imports neither torch nor Detectron2, so that scoring a results file starts at once.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.config import check_choice
from backbones.files import SYNTHETIC
from backbones.result import ClassScore, Dataset, Protocol

from .annotations import Annotations, Results, read_annotations, read_results
from .config import DetectionConfig

# In the order of COCOeval's stats; each with why it can be missing.
METRICS = {
    "AP": "box",
    "AP50": "box",
    "AP75": "box",
    "APs": "box under 32 x 32 pixels of area",
    "APm": "box from 32 x 32 to 96 x 96 pixels of area",
    "APl": "box over 96 x 96 pixels of area",
    "AR1": "box",
    "AR10": "box",
    "AR100": "box",
    "ARs": "box under 32 x 32 pixels of area",
    "ARm": "box from 32 x 32 to 96 x 96 pixels of area",
    "ARl": "box over 96 x 96 pixels of area",
}
EVALUATORS = ("hotcoco", "pycocotools")
# How images became the boxes of a results file is not known.
RESULTS_FILE = Protocol("coco-bbox", {"max_detections": 100})


@dataclass(frozen=True)
class Scores:
    """COCO's numbers, in percent; nothing is -1 or NaN."""

    metrics: dict[str, float | None]  # of METRICS; None: see missing
    missing: dict[str, str]  # name -> why there is no value
    per_class: list[ClassScore]  # AP


def score_results(
    results: Path | str, annotations: Path | str, evaluator: str = "hotcoco"
) -> dict[str, Any]:
    """Score a file of COCO results: `[{"image_id", "category_id", "bbox", "score"}, ...]`.

    Returns:
        What `Scores` holds as plain values, and `dataset` and `protocol` as a record has them.

    Raises:
        ValueError: a file cannot be read, or a detection names an image or category that the
            annotations do not have.
    """
    truth = read_annotations(annotations)
    found = read_results(results, truth)
    return {
        **asdict(score(truth, found, evaluator)),
        "dataset": asdict(describe_annotations(truth)),
        "protocol": asdict(RESULTS_FILE),
    }


def describe_annotations(truth: Annotations) -> Dataset:
    """The set of an annotation file alone, without its images."""
    folder = truth.path.parent
    return Dataset(
        name="custom",
        split=truth.split,
        images=len(truth.image_ids),
        classes=len(truth.category_names),
        class_names=truth.category_names,
        synthetic=any((place / SYNTHETIC).is_file() for place in (folder, folder.parent)),
        root=str(folder),
        annotations=str(truth.path),
        sha256=truth.sha256,
        reported_sha256=truth.sha256,
    )


def is_results(config: DetectionConfig) -> bool:
    """Whether the weights are none, but detections that came from somewhere else."""
    return Path(config.backbone.weights or "").suffix == ".json"


def describe_protocol(config: DetectionConfig) -> Protocol:
    """How images become boxes and boxes scores."""
    if is_results(config):
        return RESULTS_FILE
    settings = config.evaluate
    name = "coco-bbox-tta" if settings.tta else f"coco-bbox-{settings.min_size}-{settings.max_size}"
    values = {
        "min_size": settings.min_size,
        "max_size": settings.max_size,
        "max_detections": 100,
        "evaluator": settings.evaluator,
        "inference": settings.inference,
        "tta": settings.tta,
    }
    return Protocol(name, values | ({"tta_sizes": settings.tta_sizes} if settings.tta else {}))


def score(truth: Annotations, found: Results, evaluator: str = "hotcoco") -> Scores:
    """The twelve numbers of COCO and the AP of each category.

    Source: cocodataset.org/#detection-eval; pycocotools 2.0 cocoeval.py.
    """
    return _numbers(match(truth, found, evaluator), truth)


def match(truth: Annotations, found: Results, evaluator: str = "hotcoco") -> Any:
    """The evaluator's own `COCOeval` of boxes, matched and not yet summed up."""
    check_choice("evaluator", evaluator, EVALUATORS)
    build = _by_hotcoco if evaluator == "hotcoco" else _by_pycocotools
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = build(truth, found)
        evaluation.evaluate()
    return evaluation


class Scorer:
    """hotcoco's numbers while detections arrive: each image is matched as soon as it is there."""

    def __init__(self, truth: Annotations) -> None:
        from hotcoco import StreamingEval

        self._truth = truth
        self._order = np.argsort(truth.image, kind="stable")
        self._starts = np.searchsorted(
            truth.image, np.arange(len(truth.image_ids) + 1), sorter=self._order
        )
        self._matched = StreamingEval(_categories(truth), "bbox")

    def add(self, image: int, found: Results) -> None:
        """Match all detections of the image that stands at `image` in the annotations."""
        boxes = self._order[self._starts[image] : self._starts[image + 1]]
        self._matched.update([{"id": image + 1}], _boxes(self._truth, boxes), found.as_rows())

    def shard(self) -> bytes:
        """What was matched so far, for the `finish` of another process."""
        return self._matched.to_bytes()

    def finish(self, shards: Sequence[bytes] | None = None) -> Scores:
        """The numbers of the images added here, or of those in `shards` alone."""
        from hotcoco import StreamingEval

        matched = self._matched
        if shards is not None:
            matched = StreamingEval.merge(StreamingEval.from_bytes(shard) for shard in shards)
        return _numbers(matched.finalize(), self._truth)


# What the evaluators take: images and categories counted from 1, so that no id is rounded ---------


def _by_hotcoco(truth: Annotations, found: Results) -> Any:
    from hotcoco import COCO, COCOeval

    known = COCO.from_arrays(
        images=_images(truth),
        categories=_categories(truth),
        image_ids=truth.image + 1,
        category_ids=truth.category + 1,
        boxes=truth.box,
        area=truth.area,
        iscrowd=truth.crowd,
    )
    return COCOeval(known, known.load_res(found.as_rows()), "bbox")


def _by_pycocotools(truth: Annotations, found: Results) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def dataset(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": _images(truth),
            "categories": _categories(truth),
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    known = dataset(_boxes(truth, np.arange(len(truth.box))))
    # loadRes cannot read an empty list.
    return COCOeval(known, known.loadRes(found.as_rows()) if len(found) else dataset([]), "bbox")


def _images(truth: Annotations) -> list[dict[str, Any]]:
    return [{"id": place + 1} for place in range(len(truth.image_ids))]


def _categories(truth: Annotations) -> list[dict[str, Any]]:
    return [{"id": place + 1, "name": name} for place, name in enumerate(truth.category_names)]


def _boxes(truth: Annotations, rows: np.ndarray) -> list[dict[str, Any]]:
    columns = {
        "id": rows + 1,
        "image_id": truth.image[rows] + 1,
        "category_id": truth.category[rows] + 1,
        "bbox": truth.box[rows],
        "area": truth.area[rows],
        "iscrowd": truth.crowd[rows].astype(int),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _numbers(evaluation: Any, truth: Annotations) -> Scores:
    """The numbers of what was matched."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, float | None] = {}
    missing = {}
    for (name, what), value in zip(METRICS.items(), evaluation.stats, strict=True):
        metrics[name] = None if value < 0 else 100 * float(value)
        if value < 0:
            missing[name] = f"the set has no {what}"
    # (threshold, recall, category, area, most detections): all areas, 100 detections
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = []
    for index, name in enumerate(truth.category_names):
        known = precision[:, :, index][precision[:, :, index] > -1]
        value = 100 * float(known.mean()) if known.size else None
        reason = None if known.size else "the set has no box of this category"
        per_class.append(ClassScore(name, truth.images_of(index), value, reason))
    return Scores(metrics, missing, per_class)
