"""Entry points: check, train and evaluate a detection experiment."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from rich.console import Console
from rich.progress import Progress
from torch import nn

from backbones import (
    build_backbone,
    count_multiply_adds,
    count_parameters,
    describe_backbone,
    describe_latency,
    load_user_module,
    prepare_for_inference,
)
from backbones.config import printable
from backbones.device import choose_device, peak_memory
from backbones.files import CURVE, DETECTIONS, LOG, WEIGHTS, log_to
from backbones.weights.load import Weights, fit_backbone, read_weights

from .backbone import Detectron2Backbone, build_detectron2_backbone, opened_weights
from .coco import CocoData, CocoPart, load_coco, register_dataset
from .config import Build, DetectionConfig, reader_processes, resolve_schedule
from .detector import (
    FORMAT,
    Detector,
    backbone_input_size,
    build_cfg,
    choose_input_format,
    load_detector,
    plain_input_format,
    save_detector,
)
from .evaluate import detect, write_detections
from .train import train_detector

logger = logging.getLogger(__name__)

_STRIDE = 32  # of res5


def check(config: DetectionConfig, training: bool = True) -> dict[str, Any]:
    """Find what is wrong with an experiment before anything is computed.

    Returns:
        The data set and the protocol as a record has them, and the schedule when `training`.
    Raises:
        ValueError: naming what is wrong, what was allowed, and the mend.
    """
    data, _ = _check(config, training)
    summary = {
        "dataset": _describe_dataset(config, data),
        "protocol": _describe_protocol(config),
    }
    if training:
        summary["schedule"] = asdict(resolve_schedule(config))
    else:
        detector, _ = load_detector(config.backbone.weights, config, "cpu")
        _require_same_classes(detector, data, config.backbone.weights)
    return summary


def train(config: DetectionConfig, directory: Path, resume: bool = False) -> dict[str, Any] | None:
    """Train a detector, evaluate it, and leave weights, curve and detections in `directory`.

    With `config.processes` above 1 Detectron2's `launch` starts them here; under torchrun every
    process calls this, and rank 0 gets the result.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if config.processes == 1 or "WORLD_SIZE" in os.environ:
        return _train(config, directory, resume)
    _check(config, training=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        result = Path(folder) / "result.json"
        arguments = (config, directory, resume, result)
        launch(_launched, config.processes, dist_url="auto", args=arguments)
        return json.loads(result.read_text(encoding="utf-8"))


def evaluate(config: DetectionConfig, directory: Path) -> dict[str, Any] | None:
    """Evaluate the detector `config.backbone.weights`, leaving its detections in `directory`.

    Raises:
        ValueError: the file holds no detector, or another than the settings describe.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _processes(config) as device, _quiet():
        data, _ = _check(config, training=False)
        detector, origin = load_detector(config.backbone.weights, config, str(device))
        _require_same_classes(detector, data, config.backbone.weights)
        return _evaluate(config, directory, data, detector, origin, {})


def _launched(config: DetectionConfig, directory: Path, resume: bool, result: Path) -> None:
    loggers = ("backbones", "detection", "detectron2", "fvcore")
    with log_to(directory / LOG, loggers) if comm.is_main_process() else nullcontext():
        found = _train(config, directory, resume)
    if found is not None:
        result.write_text(json.dumps(found), encoding="utf-8")


def _train(config: DetectionConfig, directory: Path, resume: bool) -> dict[str, Any] | None:
    with _processes(config) as device, _quiet():
        data, weights = _check(config, training=True)
        # The file of the detector names every option its backbone was built with.
        config = replace(config, backbone=fit_backbone(config.backbone, weights))
        input_format = choose_input_format(config.input, weights)
        build = Build(
            config,
            num_classes=len(data.class_names),
            input_format=input_format,
            device=str(device),
            weights=config.backbone.weights,
            train_datasets=tuple(register_dataset(part) for part in data.train),
        )
        cfg = build_cfg(build)
        torch.manual_seed(config.seed)
        with opened_weights(config.backbone.weights, weights):
            model = build_model(cfg)
        detector = Detector(model, cfg, data.class_names, data.category_ids, input_format)

        def validate() -> dict[str, float | None]:
            found = detect(
                detector,
                data.val,
                reader_processes(config.data),
                inference=config.evaluate.inference,
                evaluator=config.evaluate.evaluator,
            )
            if found is None:
                return {}
            return {name: found.scores["metrics"][name] for name in ("AP", "AP50", "AP75")}

        timing = train_detector(config, cfg, model, directory, resume, data.sha256(), validate)
        loaded = _backbone_of(model).loaded
        initial = loaded.describe() if loaded else None
        origin = {"path": WEIGHTS, "format": FORMAT, "sha256": None, "initial": initial}
        if comm.is_main_process():
            path = directory / WEIGHTS
            origin["sha256"] = save_detector(detector, path, config, initial)
        times = {
            "train_seconds": timing["seconds"],
            "train_images_per_second": timing["images_per_second"],
        }
        return _evaluate(config, directory, data, detector, origin, times)


def _evaluate(
    config: DetectionConfig,
    directory: Path,
    data: CocoData,
    detector: Detector,
    origin: dict[str, Any],
    times: dict[str, float],
) -> dict[str, Any] | None:
    settings = config.evaluate
    workers = reader_processes(config.data)
    with _progress(data.val.image_count) as advance:
        found = detect(
            detector,
            data.val,
            workers,
            settings.tta,
            settings.inference,
            settings.evaluator,
            advance,
        )
    if found is None:
        return None
    write_detections(found, data.val, directory / DETECTIONS)
    logger.info("metrics: %s", found.scores["metrics"])
    return {
        **found.scores,
        "dataset": _describe_dataset(config, data),
        "protocol": _describe_protocol(config),
        "selection": "last iteration",
        "samples": None,
        "detections": DETECTIONS,
        "curve": CURVE if (directory / CURVE).exists() else None,
        "weights": origin,
        "input_format": plain_input_format(detector.input_format),
        "timing": {
            "train_seconds": None,
            "train_images_per_second": None,
            **times,
            "evaluate_seconds": found.seconds,
            "evaluate_images_per_second": found.images / found.seconds,
            "peak_memory_bytes": peak_memory(torch.device(detector.cfg.MODEL.DEVICE)),
        },
        "cost": _describe_cost(config, detector),
    }


# Checks --------------------------------------------------------------------------------------------


def _check(config: DetectionConfig, training: bool) -> tuple[CocoData, Weights | None]:
    """Find what is wrong, and return what was read: the data, and the backbone's weights."""
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
    if not backbone.weights and (detector.norm == "FrozenBN" or detector.freeze_at > 0):
        raise ValueError(
            f"detector.norm={detector.norm} with detector.freeze_at={detector.freeze_at} from "
            "scratch: frozen norms without statistics do nothing, frozen stages stay random, and "
            "training diverges; give backbone.weights=FILE, or set detector.norm=BN (or SyncBN, "
            "GN) and detector.freeze_at=0"
        )
    processes = int(os.environ.get("WORLD_SIZE", config.processes))
    if train.batch_size % processes:
        raise ValueError(
            f"train.batch_size={train.batch_size} does not divide among {processes} processes"
        )
    smallest = min(*train.min_size, train.max_size)
    if train.batch_size == processes and detector.norm == "BN" and smallest <= _STRIDE:
        raise ValueError(
            f"train.batch_size={train.batch_size} with train.min_size={smallest}: res5 of one image "
            f"a process may be a single pixel, of which detector.norm=BN has no statistics; give "
            f"images above {_STRIDE} pixels, more of them, or another norm"
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


def _require_same_classes(detector: Detector, data: CocoData, path: str) -> None:
    if (detector.category_ids, detector.class_names) != (data.category_ids, data.class_names):
        raise ValueError(
            f"{path} knows {len(detector.class_names)} categories ({detector.class_names[0]}, ...)"
            f", {data.val.annotations.path} has {len(data.class_names)} "
            f"({data.class_names[0]}, ...): they are of different sets"
        )


# What the record says ------------------------------------------------------------------------------


def _describe_dataset(config: DetectionConfig, data: CocoData) -> dict[str, Any]:
    return {
        "name": config.data.name,
        "split": data.val.annotations.split,
        "images": data.val.image_count,
        "classes": len(data.class_names),
        "class_names": data.class_names,
        "synthetic": data.synthetic,
        "root": str(data.root),
        "annotations": str(data.val.annotations.path),
        "train_images": sum(part.image_count for part in data.train) or None,
        "sha256": data.sha256(),
        "bad_boxes": sum(part.bad_boxes for part in (*data.train, data.val)),
        "skipped_train_images": sum(len(part.bad_images) for part in data.train),
    }


def _describe_protocol(config: DetectionConfig) -> dict[str, Any]:
    settings = config.evaluate
    protocol = {
        "name": f"coco-bbox-{settings.min_size}-{settings.max_size}",
        "min_size": settings.min_size,
        "max_size": settings.max_size,
        "max_detections": 100,
        "evaluator": settings.evaluator,
        "inference": settings.inference,
        "tta": settings.tta,
    }
    if settings.tta:
        protocol |= {"name": "coco-bbox-tta", "tta_sizes": list(settings.tta_sizes)}
    return protocol


def _describe_cost(config: DetectionConfig, detector: Detector) -> dict[str, Any]:
    size = backbone_input_size(config.evaluate.min_size)
    stages = _backbone_of(detector.model).stages
    with torch.device("meta"):
        backbone = build_backbone(config.backbone.name, **config.backbone.options)
    return {
        "parameters": count_parameters(detector.model),
        "multiply_adds": count_multiply_adds(backbone, size),
        "input_size": list(size),
        "latency": describe_latency(
            [prepare_for_inference(stages, config.evaluate.inference)], size
        ),
        "scope": "parameters of the whole detector that are learned; multiply-adds and latency of "
        "the backbone",
    }


def _backbone_of(model: nn.Module) -> Detectron2Backbone:
    return next(part for part in model.modules() if isinstance(part, Detectron2Backbone))


# Surroundings --------------------------------------------------------------------------------------


@contextmanager
def _processes(config: DetectionConfig) -> Iterator[torch.device]:
    """Join what torchrun or `launch` has begun; gives this process's device."""
    count, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    joined = count > 1 and not dist.is_initialized()
    device = choose_device(config.device, comm.get_local_rank() if not joined else local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    try:
        yield device
    finally:
        if joined:
            dist.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Detectron2 calls by names that torch deprecated: users cannot mend it."""
    with warnings.catch_warnings():
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="torch.meshgrid|`broadcast_buffers`")
        yield


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar over the images of an evaluation, for a person at a terminal."""
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("evaluating", total=total)
    if bar.console.is_terminal and comm.is_main_process():
        bar.start()
    try:
        yield lambda: bar.advance(task)
    finally:
        bar.stop()
