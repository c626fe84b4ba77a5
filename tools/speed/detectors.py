"""Faster R-CNN on our SE-ResNet-50-FPN against Detectron2's own on its R50-FPN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from backbones.device import choose_device
from backbones.inference import prepare_for_inference
from detection.backbone import build_detectron2_backbone
from detection.reference import SIZE, build_ours, build_reference, build_step, make_inputs
from tools.speed.networks import ALLOWED, calibrate_norms, compare_twins, conditions, images, place
from tools.speed.timing import Measurement, check_equal, compare


def backbone_over_twin() -> Iterator[Measurement]:
    """SE-ResNet-50 over ResNet-50 as backbones of detectors with frozen norms, compiled."""
    for device, dtype, count in conditions(1):
        x = images(count, SIZE, device, dtype)
        se, plain = (
            place(calibrate_norms(build_detectron2_backbone(name)), device, dtype)
            for name in ("se_resnet50", "resnet50")
        )
        yield compare_twins(se, plain, "compiled", x)


def train_against_detectron2() -> Iterator[Measurement]:
    """Time of Detectron2's training step over ours: images a second of ours over theirs.

    A processor has smaller images, or a step would take half a minute.
    """
    device = choose_device("auto").type
    count, size = (2, SIZE) if device == "cuda" else (1, (480, 640))
    steps = []
    for model, cfg in (build_ours("se_resnet50", device), build_reference(device)):
        calibrate_norms(model.backbone.bottom_up)
        steps.append(build_step(model, cfg, count, size))
    ours, theirs = steps
    yield compare(theirs, ours, _settings(count, size, "training, frozen norms"))


def detect_against_detectron2() -> Iterator[Measurement]:
    """Time of Detectron2's inference over ours, for one image."""
    device = choose_device("auto").type
    plain, theirs = build_ours("se_resnet50", device)[0], build_reference(device)[0]
    for model in (plain.eval(), theirs.eval()):
        calibrate_norms(model.backbone.bottom_up)
    ours: Any = prepare_for_inference(plain, "eager")
    inputs = make_inputs(1)
    with torch.inference_mode():
        x = plain.preprocess_image(inputs).tensor
        difference = check_equal(ours.backbone(x), plain.backbone(x), ALLOWED[torch.float32])
        settings = _settings(1, SIZE, "eager, norms folded")
        yield compare(partial(theirs, inputs), partial(ours, inputs), settings, difference)


def _settings(count: int, size: tuple[int, int], mode: str) -> dict[str, Any]:
    return {
        "device": choose_device("auto").type,
        "precision": "float32",
        "images": f"{count}x3x{size[0]}x{size[1]}",
        "memory_format": "as it comes",
        "mode": mode,
    }
