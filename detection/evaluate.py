"""A detector over a data set: boxes as arrays, scored where they are, and written for others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm

from backbones.heartbeat import tell
from backbones.inference import prepare_for_inference

from .annotations import Results, join_results
from .coco import CocoPart, register_dataset
from .config import EvaluateSettings
from .detector import Detector, ImageMapper
from .scoring import Scorer, Scores, score


@dataclass(frozen=True)
class Detections:
    """What a detector found in a data set."""

    results: Results
    scores: Scores
    seconds: float  # of reading, detecting and, with hotcoco, scoring as it went


class _Collector(DatasetEvaluator):
    """Keeps the boxes of every image as arrays, and lets `scorer` match them at once.

    Rank 0 gets those of all processes.
    """

    def __init__(self, scorer: Scorer | None, advance: Callable[[], None]) -> None:
        self._scorer = scorer
        self._advance = advance

    def reset(self) -> None:
        self._found: list[Results] = []
        self._seen: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy().copy()  # (N, 4) x1, y1, x2, y2
            boxes[:, 2:] -= boxes[:, :2]  # in float32, as Detectron2's COCOEvaluator has it
            image = given["image_id"]
            found = Results(
                image=np.full(len(boxes), image, np.int64),
                category=instances.pred_classes.numpy(),
                box=boxes.astype(np.float64),
                score=instances.scores.numpy().astype(np.float64),
            )
            self._found.append(found)
            self._seen.append(image)
            if self._scorer is not None:
                self._scorer.add(image, found)
            self._advance()

    def evaluate(self) -> dict[str, Any] | None:
        shard = None
        if self._scorer is not None and comm.get_world_size() > 1:
            shard = self._scorer.shard()
        shares = comm.gather((self._found, self._seen, shard), dst=0)
        if not comm.is_main_process():
            return None
        seen = [image for _, images, _ in shares for image in images]
        assert len(seen) == len(set(seen)), "an image was evaluated twice"
        shards = None if shard is None else [shard for *_, shard in shares]
        return {
            "results": join_results([each for found, *_ in shares for each in found]),
            "images": len(seen),
            "scores": self._scorer.finish(shards) if self._scorer is not None else None,
        }


def detect(
    detector: Detector,
    part: CocoPart,
    settings: EvaluateSettings,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Detections | None:
    """Run a detector over every image of `part`, once each, shared among the processes.

    Args:
        settings: how the backbone computes, who scores (hotcoco while boxes arrive, pycocotools at
            the end), and whether Detectron2's test-time augmentation is used, with the sizes of the
            detector's config.
        workers: processes that read images.
        advance: called after each image.

    Returns:
        The boxes of all processes and their scores on rank 0, elsewhere None.
    """
    records = get_detection_dataset_dicts(register_dataset(part), filter_empty=False)
    mapper = ImageMapper(detector.cfg, is_train=False)
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=workers)
    if comm.get_world_size() > 1:
        # Batch norms saw each process's own images; what is saved, and counts, are rank 0's.
        for buffer in detector.model.buffers():
            dist.broadcast(buffer, src=0)
    model = prepare_for_inference(detector.model, settings.inference)
    own = -(-len(records) // comm.get_world_size())
    done = itertools.count(1)

    def each() -> None:
        advance()
        tell("evaluating", next(done), own, comm.get_world_size())

    if settings.tta:
        model = GeneralizedRCNNWithTTA(detector.cfg, model)
    scorer = Scorer(part.annotations) if settings.evaluator == "hotcoco" else None
    collector = _Collector(scorer, each)
    start = time.perf_counter()
    collected = inference_on_dataset(model, loader, collector)
    seconds = time.perf_counter() - start
    if not comm.is_main_process():
        return None
    assert collected["images"] == part.image_count, "images were left out"
    results = collected["results"]
    scores = collected["scores"] or score(part.annotations, results, settings.evaluator)
    return Detections(results, scores, seconds)
