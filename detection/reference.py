"""Detectron2's own Faster R-CNN R50-FPN beside this suite's, at equal settings, to measure against."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from backbones import BackboneSettings, InputFormat

from .config import Build, DetectionConfig
from .detector import build_cfg

SIZE = (800, 1088)  # of the images: 4:3 at COCO's usual size, padded for the pyramid


def build_ours(backbone: str, device: str) -> tuple[Any, CfgNode]:
    """Faster R-CNN on a backbone of this suite, as it is trained, random weights."""
    config = DetectionConfig(backbone=BackboneSettings(backbone))
    cfg = build_cfg(Build(config, 80, InputFormat(), device))
    torch.manual_seed(0)
    return build_model(cfg), cfg


def build_reference(device: str) -> tuple[Any, CfgNode]:
    """Detectron2's faster_rcnn_R_50_FPN_1x, random weights; pixels are scaled as ours are."""
    zoo = resources.files("detectron2") / "model_zoo" / "configs" / "COCO-Detection"
    cfg = get_cfg()
    cfg.merge_from_file(str(zoo / "faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = list(InputFormat().std)
    torch.manual_seed(0)
    return build_model(cfg), cfg


def make_inputs(count: int, size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """Random images of `size` (H, W) with seven boxes each, as many as COCO has on average."""
    inputs = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        corners = torch.rand(7, 2, generator=generator) * 0.6 * min(size)
        sizes = 20 + torch.rand(7, 2, generator=generator) * 0.3 * min(size)
        boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
        classes = torch.randint(0, 80, (7,), generator=generator)
        instances = Instances(size, gt_boxes=boxes, gt_classes=classes)
        height, width = size
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def build_step(
    model: nn.Module, cfg: CfgNode, count: int, size: tuple[int, int] = SIZE
) -> Callable[[], Tensor]:
    """Return a function that makes a training step on `count` images and returns the loss."""
    optimizer = build_optimizer(cfg, model.train())
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # random weights would diverge without a warm-up
    inputs = make_inputs(count, size)

    def step() -> Tensor:
        torch.manual_seed(0)  # which proposals are sampled
        with EventStorage():
            loss = sum(model(inputs).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
