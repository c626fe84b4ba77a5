"""A detector over a data set: boxes as arrays, scored where they are, and written for others."""

from __future__ import annotations

import copy
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
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from backbones.inference import prepare_for_inference

from .coco import CocoPart, register_dataset
from .detector import Detector
from .scoring import results_json, score, score_results

__all__ = ["Detections", "detect", "score", "score_results", "write_detections"]


@dataclass(frozen=True)
class Detections:
    rows: np.ndarray  # (N, 7) float64: image id, x, y, width, height (pixels), score, category id
    images: int  # pictures seen
    seconds: float  # of reading and detecting, without scoring


class _Collector(DatasetEvaluator):
    """Keeps the boxes of every picture as arrays; rank 0 gets those of all processes."""

    def __init__(self, category_ids: Sequence[int], advance: Callable[[], None]) -> None:
        self._category_ids = np.asarray(category_ids)
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
            self._advance()

    def evaluate(self) -> dict[str, Any] | None:
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, 7))
        shares = comm.gather((rows, self._seen), dst=0)
        if not comm.is_main_process():
            return None
        seen = [image_id for _, ids in shares for image_id in ids]
        assert len(seen) == len(set(seen)), "a picture was evaluated twice"
        return {"rows": np.concatenate([rows for rows, _ in shares]), "images": len(seen)}


def detect(
    detector: Detector,
    part: CocoPart,
    workers: int = 0,
    tta: bool = False,
    inference: str = "eager",
    advance: Callable[[], None] = lambda: None,
) -> Detections | None:
    """Run a detector over every picture of `part`, once each, shared among the processes.

    Args:
        inference: how the backbone computes: a mode of `backbones.inference`.
        tta: Detectron2's test-time augmentation, with the sizes of the detector's config.
        advance: called after each picture.
    Returns:
        The boxes of all processes on rank 0, elsewhere None.
    """
    records = get_detection_dataset_dicts(register_dataset(part), filter_empty=False)
    mapper = DatasetMapper(detector.cfg, is_train=False)
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=workers)
    if comm.get_world_size() > 1:
        # Batch norms saw each process's own pictures; what is saved, and counts, are rank 0's.
        for buffer in detector.model.buffers():
            dist.broadcast(buffer, src=0)
    model = _prepared(detector.model, inference)
    if tta:
        model = GeneralizedRCNNWithTTA(detector.cfg, model)
    start = time.perf_counter()
    collected = inference_on_dataset(model, loader, _Collector(detector.category_ids, advance))
    seconds = time.perf_counter() - start
    if not comm.is_main_process():
        return None
    assert collected["images"] == part.image_count, "pictures were left out"
    return Detections(collected["rows"], collected["images"], seconds)


def _prepared(model: nn.Module, inference: str) -> nn.Module:
    if inference == "plain":
        return model
    # A frozen norm is a norm in evaluation mode, which is what the rewriting knows.
    thaw = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d
    return prepare_for_inference(thaw(copy.deepcopy(model)), inference)


def write_detections(detections: Detections, path: Path) -> None:
    """Write COCO's results format, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(results_json(detections.rows), encoding="utf-8")
    os.replace(partial, path)
