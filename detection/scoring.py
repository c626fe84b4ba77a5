"""The numbers of COCO from boxes: by hotcoco, or by pycocotools itself; equal to the bit.

Imports neither torch nor Detectron2, so that scoring a results file starts at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .coco import read_annotations

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


def score_results(
    results: Path | str, annotations: Path | str, evaluator: str = "hotcoco"
) -> dict[str, Any]:
    """Score a file of COCO results: `[{"image_id", "category_id", "bbox", "score"}, ...]`.

    Returns:
        What `score` returns, and `dataset` and `protocol` as in the result of an evaluation.
    Raises:
        ValueError: a file cannot be read, or a detection names an image or category that the
            annotations do not have.
    """
    results, annotations = Path(results), Path(annotations)
    scored = _score_files(results, annotations) if evaluator == "hotcoco" else None
    scores, images, detections = scored or _score_rows(results, annotations, evaluator)
    class_names = [row["class"] for row in scores["per_class"]]
    return {
        **scores,
        "dataset": {
            "name": "custom",
            "split": annotations.stem.removeprefix("instances_"),
            "images": images,
            "classes": len(class_names),
            "class_names": class_names,
            "synthetic": any(
                (folder / "SYNTHETIC").is_file()
                for folder in (annotations.parent, annotations.parent.parent)
            ),
            "root": str(annotations.parent),
            "annotations": str(annotations),
            "train_images": None,
            "sha256": hashlib.sha256(annotations.read_bytes()).hexdigest(),
        },
        "protocol": {"name": "coco-bbox", "max_detections": 100, "detections": detections},
    }


def score(
    annotations: Path | str, detections: np.ndarray, evaluator: str = "hotcoco"
) -> dict[str, Any]:
    """The twelve numbers of COCO and the AP of each category, in percent.

    Args:
        annotations: the COCO file of the ground truth.
        detections: (N, 7) float64: image id, x, y, width, height (pixels), score, category id.
    Returns:
        `metrics` name -> value or None, `missing` name -> reason, `per_class` a list of
        {class, images, AP, reason}. Nothing is -1 or NaN.
    Source: cocodataset.org/#detection-eval; pycocotools 2.0 cocoeval.py.
    """
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator {evaluator!r}: choose from {', '.join(EVALUATORS)}")
    detections = np.ascontiguousarray(detections, dtype=np.float64).reshape(-1, 7)
    with contextlib.redirect_stdout(io.StringIO()):
        if evaluator == "hotcoco":
            from hotcoco import COCO, COCOeval

            truth = COCO(str(annotations))
            found = truth.load_res(detections)
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            truth = COCO(str(annotations))
            # hotcoco's defaults for what a file leaves out
            for row in truth.dataset["annotations"]:
                row.setdefault("area", row["bbox"][2] * row["bbox"][3])
                row.setdefault("iscrowd", 0)
            found = truth.loadRes(detections) if len(detections) else _nothing_found(truth)
        return _evaluate(COCOeval(truth, found, "bbox"), truth)


class Scorer:
    """hotcoco's numbers while detections arrive: each picture is matched as soon as it is there.

    Raises:
        KeyError: a detection of a category that the annotations do not have.
    """

    def __init__(self, annotations: Path | str) -> None:
        from hotcoco import COCO, StreamingEval

        self._truth = COCO(str(annotations))
        categories = self._truth.loadCats(self._truth.getCatIds())
        self._matched = StreamingEval(categories, "bbox")

    def add(self, image_ids: Sequence[int], detections: np.ndarray) -> None:
        """Match the detections of some pictures, all of each: an array as `score` takes it."""
        annotations = self._truth.loadAnns(self._truth.getAnnIds(imgIds=list(image_ids)))
        images = [{"id": image_id} for image_id in image_ids]
        self._matched.update(images, annotations, np.ascontiguousarray(detections, np.float64))

    def shard(self) -> bytes:
        """What was matched so far, for the `finish` of another process."""
        return self._matched.to_bytes()

    def finish(self, shards: Sequence[bytes] | None = None) -> dict[str, Any]:
        """What `score` returns, of the pictures added here, or of those in `shards` alone."""
        from hotcoco import StreamingEval

        matched = self._matched
        if shards is not None:
            matched = StreamingEval.merge(StreamingEval.from_bytes(shard) for shard in shards)
        return _numbers(matched.finalize(), self._truth)


def _score_files(results: Path, annotations: Path) -> tuple[dict[str, Any], int, int] | None:
    """What `score` returns, the images and the detections; None where a file is odd.

    hotcoco reads and checks both files many times faster than Python does, which is left for naming
    what is wrong.

    Raises:
        ValueError: from `read_annotations`.
    """
    from hotcoco import COCO, COCOeval

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            truth = COCO(str(annotations))
            found = truth.load_res(str(results))
            content = results.read_bytes()
        except Exception:  # whatever a broken file makes of it
            return None
        with ThreadPoolExecutor(1) as pool:  # hotcoco evaluates without Python's lock
            scores = pool.submit(_evaluate, COCOeval(truth, found, "bbox"), truth)
            health = truth.healthcheck(found)
            if health["errors"] or not _has_whole_rows(truth, annotations.read_bytes()):
                read_annotations(annotations)  # which lets minival repeat ids
            odd = {each["code"] for each in health["errors"] + health["warnings"]} & _ODD
            detections = len(found.getAnnIds())
            # hotcoco takes whole data sets too, and rows without a box.
            is_list = content[:100].lstrip().startswith(b"[")
            if odd or not is_list or _count_boxes(content) != detections:
                return None
            return scores.result(), len(truth.getImgIds()), detections


_ODD = {"dt_orphan_image_id", "dt_orphan_category_id", "dt_missing_score"}


def _has_whole_rows(truth: Any, content: bytes) -> bool:
    """Whether hotcoco had nothing to fill in for the annotations.

    It warns of names that it makes up; file names become empty, ids 0, and boxes may lack.
    """
    boxes = truth.getAnnIds()
    return (
        not truth.load_warnings
        and bool(boxes)
        and 0 not in boxes
        and content.count(b'"file_name"') == len(truth.getImgIds())
        and _count_boxes(content) == len(boxes)
    )


def _count_boxes(content: bytes) -> int:
    """How often JSON says "bbox": [, spaced as it does so first; a null is no box."""
    first = re.search(rb'"bbox"\s*:\s*\[', content)
    return content.count(first.group()) if first else 0


def _score_rows(
    results: Path, annotations: Path, evaluator: str
) -> tuple[dict[str, Any], int, int]:
    """What `_score_files` returns, of files read row by row.

    Raises:
        ValueError: naming the first row at fault.
    """
    content = read_annotations(annotations)
    detections = _read_results(results)
    tables = {"image_id": (0, content["images"]), "category_id": (6, content["categories"])}
    for key, (column, rows) in tables.items():
        strange = set(detections[:, column].tolist()) - {row["id"] for row in rows}
        if strange:
            raise ValueError(
                f"{results}: {key} {min(strange):g} is not in {annotations} "
                f"({len(strange)} such ids); the results are of another set"
            )
    return score(annotations, detections, evaluator), len(content["images"]), len(detections)


def _evaluate(evaluation: Any, truth: Any) -> dict[str, Any]:
    """What `score` returns."""
    evaluation.evaluate()
    return _numbers(evaluation, truth)


def _numbers(evaluation: Any, truth: Any) -> dict[str, Any]:
    """What `score` returns, from what was matched."""
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
    categories = truth.loadCats(sorted(truth.getCatIds()))
    per_class = []
    for index, category in enumerate(categories):
        known = precision[:, :, index][precision[:, :, index] > -1]
        row: dict[str, Any] = {
            "class": str(category["name"]),
            "images": len(truth.getImgIds(catIds=[category["id"]])),
            "AP": 100 * float(known.mean()) if known.size else None,
        }
        if not known.size:
            row["reason"] = "the set has no box of this category"
        per_class.append(row)
    return {"metrics": metrics, "missing": missing, "per_class": per_class}


def _nothing_found(truth: Any) -> Any:
    """pycocotools' loadRes cannot read an empty list."""
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": [],
    }
    found.createIndex()
    return found


def _read_results(path: Path) -> np.ndarray:
    """A results file as the (N, 7) array that `score` takes."""
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"no results file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: COCO results are a list of detections, not a {type(rows)}")
    detections = np.empty((len(rows), 7))
    for index, row in enumerate(rows):
        try:
            x, y, width, height = row["bbox"]
            numbers = (row["image_id"], x, y, width, height, row["score"], row["category_id"])
            detections[index] = numbers
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: detection {index} is not "
                "{image_id, category_id, bbox: [x, y, width, height], score}"
            ) from error
    if not np.isfinite(detections).all():
        index = int(np.argmin(np.isfinite(detections).all(axis=1)))
        raise ValueError(f"{path}: detection {index} holds a number that is not finite")
    return detections


def results_json(detections: np.ndarray) -> str:
    """`detections` as the text of a COCO results file, in their order; numbers exactly."""
    return json.dumps(
        [
            {
                "image_id": int(row[0]),
                "category_id": int(row[6]),
                "bbox": row[1:5],
                "score": row[5],
            }
            for row in detections.tolist()
        ]
    )
