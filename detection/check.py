"""What is wrong with a detection experiment, found before anything is computed."""

from __future__ import annotations

import os

import numpy as np
import torch

from backbones import describe_backbone, load_user_module
from backbones.config import printable
from backbones.device import choose_device
from backbones.duplicates import describe_shared, find_shared_files
from backbones.result import Weights as WeightsUsed
from backbones.tracker import check_tracker
from backbones.weights.load import Weights, read_weights

from .backbone import build_detectron2_backbone
from .coco import CocoData, CocoPart, load_coco
from .config import Build, DetectionConfig
from .detector import Detector, build_cfg, choose_input_format, load_detector

_STRIDE = 32  # of res5


def check_experiment(config: DetectionConfig, training: bool) -> tuple[CocoData, Weights | None]:
    """Find what is wrong before anything is computed.

    Returns:
        What was read on the way: the data, and the weights that training starts from.

    Raises:
        ValueError: naming what is wrong, what was allowed, and the mend.
    """
    for path in config.backbone.imports:
        load_user_module(path)
    backbone, detector = config.backbone, config.detector
    reason = describe_backbone(backbone.name).detection
    if reason is not None:
        raise ValueError(f"backbone.name={backbone.name} cannot serve detection: {reason}")
    device = choose_device(config.device)
    if config.evaluate.tta and detector.architecture != "faster_rcnn":
        raise ValueError(
            f"evaluate.tta: Detectron2 has it for faster_rcnn, not for {detector.architecture}"
        )
    weights = None
    if training:
        weights = _check_training(config, device)
    elif not backbone.weights:
        raise ValueError(
            "backbone.weights is missing: evaluation needs the weights.safetensors that `sebench "
            "train detection` wrote"
        )
    data = load_coco(config.data, ("train", "val") if training else ("val",))
    settings = config.evaluate
    sizes = settings.tta_sizes if settings.tta else [settings.min_size]
    _check_sizes(data.val, min(sizes), settings.max_size, "evaluate")
    for part in data.train:
        _check_sizes(part, min(config.train.min_size), config.train.max_size, "train")
    return data, weights


def describe_shared_images(data: CocoData, thorough: bool = False) -> list[str]:
    """A line on the reported images that are trained on, as far as it is cheap to know; or none.

    Files are compared by their paths, those of small sets by their content, and where `thorough`
    those of large ones too.
    """
    train = [(part.folder, part.annotations.file_names) for part in data.train]
    reported = data.val.annotations.file_names
    how, shared = find_shared_files(train, (data.val.folder, reported), thorough)
    named = [printable(name) for name in shared]
    return describe_shared(named, how, len(reported), f"images of {data.val.annotations.path}")


def _check_sizes(part: CocoPart, shorter: int, longer: int, group: str) -> None:
    """Refuse images of which resizing would leave nothing."""
    sizes = part.annotations.sizes
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    left = short * np.minimum(shorter / short, longer / long)  # pixels, before rounding
    gone = np.flatnonzero(left < 0.5)
    if gone.size:
        width, height = sizes[gone[0]]
        raise ValueError(
            f"{part.annotations.path}: {printable(part.annotations.file_names[gone[0]])} has "
            f"{width} x {height} pixels, of which {group}.max_size={longer} leaves none of the "
            f"shorter side ({len(gone)} such images); leave them out of the file, or set "
            f"{group}.max_size higher"
        )


def _check_training(config: DetectionConfig, device: torch.device) -> Weights | None:
    backbone, detector, train = config.backbone, config.detector, config.train
    check_tracker(train.tracker)
    if not backbone.weights and (detector.norm == "FrozenBN" or detector.freeze_at > 0):
        raise ValueError(
            f"detector.norm={detector.norm} with detector.freeze_at={detector.freeze_at} from "
            "scratch: frozen norms without statistics do nothing, frozen stages stay random, and "
            "training diverges; give backbone.weights=FILE, or set detector.norm=BN (or SyncBN, "
            "GN) and detector.freeze_at=0"
        )
    processes = int(os.environ.get("WORLD_SIZE", config.processes))
    parts = processes * train.accumulate
    if train.batch_size % parts:
        among = f" x {train.accumulate} parts (train.accumulate)" if train.accumulate > 1 else ""
        raise ValueError(
            f"train.batch_size={train.batch_size} does not divide among {processes} processes{among}"
        )
    smallest = min(*train.min_size, train.max_size)
    if train.batch_size == parts and detector.norm == "BN" and smallest <= _STRIDE:
        raise ValueError(
            f"train.batch_size={train.batch_size} with train.min_size={smallest}: res5 of one image "
            f"at a time may be a single pixel, of which detector.norm=BN has no statistics; give "
            f"images above {_STRIDE} pixels, more of them at a time, or another norm"
        )
    if train.precision != "float32" and device.type == "cpu":
        raise ValueError(f"train.precision={train.precision}: needs a CUDA device; use float32")
    # Options, norms, input format and weights that do not fit show here.
    weights = read_weights(backbone.weights, backbone.name) if backbone.weights else None
    build_cfg(Build(config, 1, choose_input_format(config.input, weights)))
    with torch.random.fork_rng(devices=[]):
        build_detectron2_backbone(
            backbone.name,
            backbone.options,
            freeze_at=detector.freeze_at,
            norm=detector.norm,
            weights=weights,
            allow_missing=backbone.allow_missing,
        )
    return weights


def load_trained(
    config: DetectionConfig, data: CocoData, device: str
) -> tuple[Detector, WeightsUsed]:
    """The detector that is evaluated, and its file for the record.

    Raises:
        ValueError: as `load_detector`; also where it was trained on other categories than `data` has.
    """
    path = str(config.backbone.weights)
    detector, origin = load_detector(path, config, device)
    if (detector.category_ids, detector.class_names) != (data.category_ids, data.class_names):
        raise ValueError(
            f"{path} knows {len(detector.class_names)} categories ({detector.class_names[0]}, ...)"
            f", {data.val.annotations.path} has {len(data.class_names)} "
            f"({data.class_names[0]}, ...): they are of different sets"
        )
    return detector, origin
