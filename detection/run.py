"""Entry points: check, train and evaluate a detection experiment."""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from backbones import (
    build_backbone,
    count_multiply_adds,
    count_parameters,
    measure_latency,
    prepare_for_inference,
)
from backbones.checkpoint import StopRequest
from backbones.device import StepOutOfMemory, choose_device, peak_memory
from backbones.files import CURVE, DETECTIONS, LOG, WEIGHTS, log_to, sha256, write_whole
from backbones.heartbeat import keep_heartbeat
from backbones.result import (
    Cost,
    Dataset,
    Latency,
    Result,
    Timing,
    Weights,
)
from backbones.weights.load import fit_backbone

from .annotations import read_annotations, read_results
from .backbone import Detectron2Backbone, opened_weights
from .check import check_experiment, describe_shared_images, load_trained
from .coco import CocoData, load_coco, register_dataset
from .config import Build, DetectionConfig, reader_processes, resolve_schedule
from .detector import (
    FORMAT,
    Detector,
    backbone_input_size,
    build_cfg,
    choose_input_format,
    save_detector,
)
from .evaluate import detect
from .scoring import describe_annotations, describe_protocol, is_results, score
from .train import train_detector

logger = logging.getLogger(__name__)


def check(config: DetectionConfig, training: bool = True) -> dict[str, Any]:
    """Find what is wrong with an experiment before anything is computed.

    Returns:
        The data set and the protocol as a record has them; when `training` the schedule too, and
        warnings: what is likely a mistake.

    Raises:
        ValueError: naming what is wrong, what was allowed, and the mend.
    """
    if not training and is_results(config):
        result = _score_results(config)
        return {"dataset": asdict(result.dataset), "protocol": asdict(result.protocol)}
    data, _ = check_experiment(config, training)
    if not training:
        load_trained(config, data, "cpu")
    summary: dict[str, Any] = {
        "dataset": asdict(_describe_dataset(config, data)),
        "protocol": asdict(describe_protocol(config)),
    }
    if training:
        summary["schedule"] = asdict(resolve_schedule(config))
        summary["warnings"] = describe_shared_images(data)
    return summary


def inspect(config: DetectionConfig) -> list[str]:
    """Look at every file of large sets, which `check` leaves out; a line for each thing found.

    Raises:
        ValueError: as `check`, of the data.
    """
    return describe_shared_images(load_coco(config.data), thorough=True)


def train(config: DetectionConfig, directory: Path, resume: bool = False) -> Result | None:
    """Train a detector, evaluate it, and leave weights, curve and detections in `directory`.

    With `config.processes` above 1 Detectron2's `launch` starts them here; under torchrun every
    process calls this, and rank 0 gets the result.

    Raises:
        ValueError: bad input, or the loss is not finite.
        KeyboardInterrupt: the run was asked to stop; the checkpoint is saved.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if config.processes == 1 or "WORLD_SIZE" in os.environ:
        return _train(config, directory, resume)
    check_experiment(config, training=True)
    return _launch(config, directory, resume)


def evaluate(config: DetectionConfig, directory: Path) -> Result | None:
    """Evaluate the detector `config.backbone.weights`, leaving its detections in `directory`.

    Where the weights are a COCO results file (`.json`), its detections are scored as they are.

    Raises:
        ValueError: the file holds no detector, or another than the settings describe.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if is_results(config):
        return _score_results(config, directory)
    with _processes(config) as device, _quiet():
        data, _ = check_experiment(config, training=False)
        detector, origin = load_trained(config, data, str(device))
        return _evaluate(config, directory, data, detector, origin, Timing())


def _launch(config: DetectionConfig, directory: Path, resume: bool) -> Result:
    """Train in processes of our own, which stop and fail as one."""
    with tempfile.TemporaryDirectory(dir=directory) as folder, _ForwardedStop() as stop:
        result, error = Path(folder) / "result.json", Path(folder) / "error.txt"
        arguments = (config, directory, resume, result, error)
        try:
            launch(_launched, config.processes, dist_url="auto", args=arguments)
        except (ProcessExitedException, ProcessRaisedException):
            if stop.asked is None and not error.exists():
                raise
        if error.exists():
            kind, text = error.read_text(encoding="utf-8").split("\n", 1)
            raise StepOutOfMemory(text) if kind == StepOutOfMemory.__name__ else ValueError(text)
        if not result.exists():
            raise KeyboardInterrupt(
                f"stopped by {stop.asked}; --resume goes on from the checkpoint"
            )
        return TypeAdapter(Result).validate_json(result.read_bytes())


class _ForwardedStop(StopRequest):
    """Passes SIGTERM on to the processes that train; Ctrl-C at a terminal reaches them anyway."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        for process in multiprocessing.active_children():
            process.terminate()


def _launched(
    config: DetectionConfig, directory: Path, resume: bool, result: Path, error: Path
) -> None:
    loggers = ("backbones", "detection", "detectron2", "fvcore")
    try:
        with ExitStack() as stack:
            if comm.is_main_process():
                stack.enter_context(log_to(directory / LOG, loggers))
                stack.enter_context(keep_heartbeat(directory))
            found = _train(config, directory, resume)
    except (ValueError, StepOutOfMemory) as wrong:
        error.write_text(f"{type(wrong).__name__}\n{wrong}", encoding="utf-8")
        raise
    if found is not None:
        result.write_bytes(TypeAdapter(Result).dump_json(found))


def _train(config: DetectionConfig, directory: Path, resume: bool) -> Result | None:
    with _processes(config) as device, _quiet():
        data, weights = check_experiment(config, training=True)
        for doubt in describe_shared_images(data) if comm.is_main_process() else ():
            logger.warning(doubt)
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
            plain = replace(config.evaluate, tta=False)
            found = detect(detector, data.val, plain, reader_processes(config.data))
            names = ("AP", "AP50", "AP75")
            return {name: found.scores.metrics[name] for name in names} if found else {}

        timing = train_detector(config, cfg, model, directory, resume, data.sha256(), validate)
        initial = _backbone_of(model).loaded
        digest = None
        if comm.is_main_process():
            digest = save_detector(detector, directory / WEIGHTS, config, initial)
        origin = Weights(WEIGHTS, digest, FORMAT, len(model.state_dict()), initial=initial)
        return _evaluate(config, directory, data, detector, origin, timing)


def _evaluate(
    config: DetectionConfig,
    directory: Path,
    data: CocoData,
    detector: Detector,
    origin: Weights,
    timing: Timing,
) -> Result | None:
    images, workers = data.val.image_count, reader_processes(config.data)
    with _progress(images) as advance:
        found = detect(detector, data.val, config.evaluate, workers, advance)
    if found is None:
        return None
    write_whole(directory / DETECTIONS, found.results.as_json(data.val.annotations))
    logger.info("metrics: %s", found.scores.metrics)
    return Result(
        **vars(found.scores),
        dataset=_describe_dataset(config, data),
        protocol=describe_protocol(config),
        weights=origin,
        cost=_describe_cost(config, detector),
        timing=replace(
            timing,
            evaluate_seconds=found.seconds,
            evaluate_images_per_second=images / found.seconds,
            peak_memory_bytes=peak_memory(torch.device(detector.cfg.MODEL.DEVICE)),
        ),
        selection="last iteration",
        input_format=detector.input_format.describe(),
        chance=0.0,
        steps=resolve_schedule(config).iterations if timing.train_seconds is not None else None,
        detections=DETECTIONS,
        curve=CURVE if (directory / CURVE).exists() else None,
    )


# Detections of somewhere else ----------------------------------------------------------------------


def _score_results(config: DetectionConfig, directory: Path | None = None) -> Result:
    """Score a results file; of the network nothing is known but its name."""
    path, annotations = config.backbone.weights, config.data.val_annotations
    if annotations is None:
        raise ValueError(
            f"data.val_annotations is missing: {path} is scored against the annotations it is of"
        )
    truth = read_annotations(Path(annotations).expanduser())
    found = read_results(Path(path or ""), truth)
    if directory is not None:
        write_whole(directory / DETECTIONS, found.as_json(truth))
    return Result(
        **vars(score(truth, found, config.evaluate.evaluator)),
        dataset=describe_annotations(truth),
        protocol=describe_protocol(config),
        weights=Weights(str(path), sha256(path or ""), "coco-results"),
        cost=_describe_cost(config, None),
        timing=Timing(),
        selection="unknown: a results file was scored",
        input_format={},
        chance=0.0,
        detections=DETECTIONS,
    )


# What the record says ------------------------------------------------------------------------------


def _describe_dataset(config: DetectionConfig, data: CocoData) -> Dataset:
    return replace(
        describe_annotations(data.val.annotations),
        name=config.data.name,
        images=data.val.image_count,
        synthetic=data.synthetic,
        root=str(data.root),
        train_images=sum(part.image_count for part in data.train) or None,
        sha256=data.sha256(),
        bad_boxes=sum(part.bad_boxes for part in (*data.train, data.val)),
        skipped_train_images=sum(len(part.bad_images) for part in data.train),
    )


def _describe_cost(config: DetectionConfig, detector: Detector | None) -> Cost:
    """What a detector costs; where it is not known, what its backbone does."""
    size = backbone_input_size(config.evaluate.min_size)
    with torch.device("meta"):
        backbone = build_backbone(config.backbone.name, **config.backbone.options)
    if detector is None:
        parameters = count_parameters(backbone)
        latency = Latency(None, reason="a results file was scored; nothing was run")
        scope = "of the backbone alone: the detector of a results file is not known"
    else:
        parameters = count_parameters(detector.model)
        stages = _backbone_of(detector.model).stages
        latency = measure_latency([prepare_for_inference(stages, config.evaluate.inference)], size)
        scope = (
            "parameters of the whole detector that are learned; multiply-adds and latency of the "
            "backbone"
        )
    return Cost(parameters, count_multiply_adds(backbone, size), list(size), latency, scope)


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
