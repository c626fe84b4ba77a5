"""COCO's numbers: from a results file, and from arrays while detections arrive."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.device import choose_device
from backbones.inference import prepare_for_inference
from detection.annotations import Results, read_annotations, read_results
from detection.reference import build_ours, make_inputs
from detection.scoring import METRICS, Scorer, score_results
from tools.speed.timing import Measurement, compare, summarize

IMAGES, CATEGORIES, DETECTIONS = 1000, 80, 100


def score_file() -> Iterator[Measurement]:
    """From two JSON files to the 12 numbers: time of pycocotools over ours."""
    with tempfile.TemporaryDirectory() as folder:
        truth, results = _make_files(Path(folder))
        numbers = score_results(results, truth)["metrics"]
        _check_equal_to_the_bit(numbers, _by_pycocotools(results, truth))
        yield compare(
            lambda: _by_pycocotools(results, truth),
            lambda: score_results(results, truth),
            _SETTINGS | {"AP": numbers["AP"]},
            (0.0, 0.0),
            wall=True,  # hotcoco has threads of its own
        )


def score_arrays() -> Iterator[Measurement]:
    """Scoring's share of an evaluation that detects on this machine, at 800x1088.

    Scoring is measured over all images, detecting over a few.
    """
    device = choose_device("auto").type
    model = prepare_for_inference(build_ours("se_resnet50", device)[0])
    given = make_inputs(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        truth, results = _make_files(Path(folder))
        annotations = read_annotations(truth)
        found = read_results(results, annotations)
        columns = (found.image, found.category, found.box, found.score)
        parts = zip(*(np.split(column, IMAGES) for column in columns), strict=True)
        batches = [Results(*part) for part in parts]
        model(given)
        shares = []
        for _ in range(5):
            start = time.perf_counter()
            scorer = Scorer(annotations)
            for image, batch in enumerate(batches):
                scorer.add(image, batch)
            metrics = scorer.finish().metrics
            scoring = (time.perf_counter() - start) / IMAGES
            start = time.perf_counter()
            model(given)
            detecting = time.perf_counter() - start
            shares.append(scoring / (scoring + detecting))
        _check_equal_to_the_bit(metrics, _by_pycocotools(results, truth))
    per_image = {
        "scoring_seconds": round(IMAGES * scoring, 3),
        "detecting_seconds_an_image": round(detecting, 3),
    }
    yield summarize(shares, _SETTINGS | per_image | {"device": device}, (0.0, 0.0))


_SETTINGS = {"images": IMAGES, "categories": CATEGORIES, "detections_an_image": DETECTIONS}


def _by_pycocotools(results: Path, truth: Path) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        evaluation = COCOeval(annotations, annotations.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, (100 * float(value) for value in evaluation.stats), strict=True))


def _check_equal_to_the_bit(ours: dict[str, Any], theirs: dict[str, float]) -> None:
    for name in METRICS:
        if ours[name] != theirs[name]:
            raise ValueError(f"{name} is {ours[name]!r} here, {theirs[name]!r} by pycocotools")


def _make_files(folder: Path) -> tuple[Path, Path]:
    """Ground truth with seven boxes an image, and results that hit most of them."""
    rng = np.random.default_rng(0)
    images = [
        {"id": i + 1, "file_name": f"{i + 1:012}.jpg", "width": 640, "height": 480}
        for i in range(IMAGES)
    ]
    categories = [{"id": i + 1, "name": f"category {i + 1}"} for i in range(CATEGORIES)]
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image in images:
        count = int(rng.integers(1, 14))
        corners, sizes = rng.uniform(0, 300, (count, 2)), rng.lognormal(4, 0.9, (count, 2)) + 2
        boxes = np.round(np.concatenate([corners, sizes], axis=1), 2)
        kinds = rng.integers(1, CATEGORIES + 1, count)
        for box, kind in zip(boxes, kinds, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(kind),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
        near = rng.integers(0, count, DETECTIONS)
        shift = rng.normal(0, 1, (DETECTIONS, 4)) * rng.choice([2, 40], (DETECTIONS, 1))
        found = np.abs(boxes[near] + shift) + 0.1
        right = rng.random(DETECTIONS) < 0.7
        named = np.where(right, kinds[near], rng.integers(1, CATEGORIES + 1, DETECTIONS))
        scores = rng.random(DETECTIONS)
        rows += [
            {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(
                *(a.tolist() for a in (named, found, scores)), strict=True
            )
        ]
    truth, results = folder / "instances_val.json", folder / "results.json"
    content = {"images": images, "categories": categories, "annotations": annotations}
    truth.write_text(json.dumps(content), encoding="utf-8")
    results.write_text(json.dumps(rows), encoding="utf-8")
    return truth, results
