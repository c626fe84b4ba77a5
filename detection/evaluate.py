"""A detector over a data set: boxes as arrays, scored where they are, and written for others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm

from backbones.inference import prepare_for_inference

from .coco import CocoPart, register_dataset
from .detector import Detector
from .scoring import Scorer, results_json, score, score_results

__all__ = ["Detections", "detect", "score", "score_results", "write_detections"]


@dataclass(frozen=True)
class Detections:
    rows: np.ndarray  # (N, 7) float64: image id, x, y, width, height (pixels), score, category id
    images: int  # pictures seen
    scores: dict[str, Any]  # what `scoring.score` returns
    seconds: float  # of reading, detecting and, with hotcoco, scoring as it went


class _Collector(DatasetEvaluator):
    """Keeps the boxes of every picture as arrays, and lets `scorer` match them at once.

    Rank 0 gets those of all processes.
    """

    def __init__(
        self, category_ids: Sequence[int], scorer: Scorer | None, advance: Callable[[], None]
    ) -> None:
        self._category_ids = np.asarray(category_ids)
        self._scorer = scorer
        self._advance = advance

    def reset(self) -> None:
        self._rows: list[np.ndarray] = []
        self._seen: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            boxes = found.pred_boxes.tensor.numpy().copy()  # (N, 4) x1, y1, x2, y2
            boxes[:, 2:] -= boxes[:, :2]  # in float32, as Detectron2's COCOEvaluator has it
            image_ids = np.full(len(boxes), given["image_id"])
            categories = self._category_ids[found.pred_classes.numpy()]
            scores = found.scores.numpy()
            self._rows.append(np.column_stack([image_ids, boxes, scores, categories]))
            self._seen.append(given["image_id"])
            if self._scorer is not None:
                self._scorer.add([given["image_id"]], self._rows[-1])
            self._advance()

    def evaluate(self) -> dict[str, Any] | None:
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, 7))
        shard = None
        if self._scorer is not None and comm.get_world_size() > 1:
            shard = self._scorer.shard()
        shares = comm.gather((rows, self._seen, shard), dst=0)
        if not comm.is_main_process():
            return None
        seen = [image_id for _, ids, _ in shares for image_id in ids]
        assert len(seen) == len(set(seen)), "a picture was evaluated twice"
        shards = None if shard is None else [shard for *_, shard in shares]
        return {
            "rows": np.concatenate([rows for rows, *_ in shares]),
            "images": len(seen),
            "scores": self._scorer.finish(shards) if self._scorer is not None else None,
        }


def detect(
    detector: Detector,
    part: CocoPart,
    workers: int = 0,
    tta: bool = False,
    inference: str = "auto",
    evaluator: str = "hotcoco",
    advance: Callable[[], None] = lambda: None,
) -> Detections | None:
    """Run a detector over every picture of `part`, once each, shared among the processes.

    Args:
        inference: how the backbone computes: a mode of `backbones.inference`.
        tta: Detectron2's test-time augmentation, with the sizes of the detector's config.
        evaluator: who scores: hotcoco, while boxes arrive, or pycocotools, at the end.
        advance: called after each picture.
    Returns:
        The boxes of all processes and their scores on rank 0, elsewhere None.
    """
    records = get_detection_dataset_dicts(register_dataset(part), filter_empty=False)
    mapper = DatasetMapper(detector.cfg, is_train=False)
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=workers)
    if comm.get_world_size() > 1:
        # Batch norms saw each process's own pictures; what is saved, and counts, are rank 0's.
        for buffer in detector.model.buffers():
            dist.broadcast(buffer, src=0)
    model = prepare_for_inference(detector.model, inference)
    if tta:
        model = GeneralizedRCNNWithTTA(detector.cfg, model)
    scorer = Scorer(part.annotations) if evaluator == "hotcoco" else None
    collector = _Collector(detector.category_ids, scorer, advance)
    start = time.perf_counter()
    collected = inference_on_dataset(model, loader, collector)
    seconds = time.perf_counter() - start
    if not comm.is_main_process():
        return None
    assert collected["images"] == part.image_count, "pictures were left out"
    scores = collected["scores"] or score(part.annotations, collected["rows"], evaluator)
    return Detections(collected["rows"], collected["images"], scores, seconds)


def write_detections(detections: Detections, path: Path) -> None:
    """Write COCO's results format, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(results_json(detections.rows), encoding="utf-8")
    os.replace(partial, path)
