"""Training by Detectron2's trainer and hooks, so that a run that was stopped goes on as if not.

What a step does depends on the seed and on its number alone: the order of the pictures, their
augmentation and the sampling of boxes are drawn anew from (seed, number), not from a generator
that has run since the start. So a resumed run ends with the same weights to the bit where the
arithmetic itself repeats (it does on the CPU), whatever the number of reading processes.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from .config import DetectionConfig, reader_processes

logger = logging.getLogger("detectron2.sebench")

CHECKPOINT, CURVE = "checkpoint.pt", "curve.jsonl"


def train_detector(
    config: DetectionConfig,
    cfg: CfgNode,
    model: nn.Module,
    directory: Path,
    resume: bool,
    validate: Callable[[], dict[str, float | None]],
) -> dict[str, float]:
    """Train `model` in place, in every process of the run.

    Args:
        validate: metrics of the model as it is, for the curve; called in every process.
    Returns:
        {seconds, images_per_second}, of all parts of a resumed run together.
    Raises:
        ValueError: the loss is not finite (iteration and learning rate are named), or the
            checkpoint to go on from is damaged or of another model.
    """
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    optimizer = build_optimizer(cfg, model)
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    parallel = create_ddp_model(
        model, broadcast_buffers=False, **({"device_ids": None} if on_cpu else {})
    )
    if config.train.precision == "float32":
        trainer = SimpleTrainer(parallel, None, optimizer)
    else:
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
        # bfloat16 has float32's range: nothing to scale.
        scaler = torch.amp.GradScaler("cuda", enabled=precision == torch.float16)
        trainer = AMPTrainer(parallel, None, optimizer, precision=precision, grad_scaler=scaler)

    clock = _Clock(config.train.batch_size)
    checkpointer = _WholeCheckpointer(model, str(directory), trainer=trainer)
    schedule = hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))
    trainer.register_hooks([_SeedOfStep(config.seed), hooks.IterationTimer(), clock, schedule])
    start = 0
    if resume and checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
        start = trainer.iter + 1
    # A stop between the last checkpoint and the evaluation leaves nothing to train.
    start = min(start, cfg.SOLVER.MAX_ITER)
    trainer.data_loader = _build_loader(config, cfg, records, start)
    trainer.register_hooks(_reporting_hooks(config, cfg, directory, start, len(records), validate))
    if comm.is_main_process():
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, period)])

    try:
        trainer.train(start, cfg.SOLVER.MAX_ITER)
    except FloatingPointError as error:
        raise ValueError(
            f"the loss is not finite at iteration {trainer.iter + 1}, learning rate "
            f"{optimizer.param_groups[0]['lr']:g}; lower train.lr, warm up longer "
            "(train.warmup_iterations) or set train.clip_grad"
        ) from error
    return {"seconds": clock.seconds, "images_per_second": clock.images_per_second}


# Data ----------------------------------------------------------------------------------------------


class _SeededBatches(Sampler[list[tuple[int, int]]]):
    """One process's batches without end: lists of (place in the stream, index of the picture).

    The stream is one permutation after another; process r of n takes every nth place from r on.
    Pictures wider than high and the others are gathered apart, as Detectron2 does to pad less.
    """

    def __init__(
        self, wide: Sequence[bool], batch_size: int, seed: int, start: int, rank: int, count: int
    ) -> None:
        self._wide, self._batch_size, self._seed = wide, batch_size, seed
        self._start, self._rank, self._count = start, rank, count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # What was seen before `start` is gone through again, without reading a picture.
        return itertools.islice(self._batches(), self._start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        gathered: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        epoch, order = -1, np.empty(0, int)
        for place in itertools.count(self._rank, self._count):
            if place // len(self._wide) != epoch:
                epoch = place // len(self._wide)
                order = np.random.default_rng([self._seed, epoch]).permutation(len(self._wide))
            index = int(order[place % len(self._wide)])
            batch = gathered[self._wide[index]]
            batch.append((place, index))
            if len(batch) == self._batch_size:
                yield list(batch)
                batch.clear()


class _SeededPictures(Dataset[dict[str, Any]]):
    """Detectron2's mapper, each picture augmented by its place in the stream."""

    def __init__(self, records: list[dict[str, Any]], mapper: DatasetMapper, seed: int) -> None:
        self._records = DatasetFromList(records, copy=False)
        self._mapper, self._seed = mapper, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        place, index = key
        # Detectron2's augmentations draw from numpy's global generator.
        state = np.random.get_state()
        np.random.seed(_seed_of(self._seed, place))
        try:
            return self._mapper(self._records[index])
        finally:
            np.random.set_state(state)


def _build_loader(
    config: DetectionConfig, cfg: CfgNode, records: list[dict[str, Any]], start: int
) -> DataLoader[Any]:
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    batches = _SeededBatches(
        [grouping and record["width"] > record["height"] for record in records],
        config.train.batch_size // comm.get_world_size(),
        config.seed,
        start,
        comm.get_rank(),
        comm.get_world_size(),
    )
    return DataLoader(
        _SeededPictures(records, DatasetMapper(cfg, is_train=True), config.seed),
        batch_sampler=batches,
        num_workers=reader_processes(config.data),
        collate_fn=trivial_batch_collator,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
        generator=torch.Generator(),  # or it would draw from the one that the steps use
    )


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


# Hooks ---------------------------------------------------------------------------------------------


class _SeedOfStep(HookBase):
    """Each iteration draws from its own seed, so that a resumed run repeats what was to come."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        torch.manual_seed(_seed_of(self._seed, self.trainer.iter, comm.get_rank()))


class _Clock(HookBase):
    """Seconds of training, kept over resumes."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self.seconds, self._steps = batch_size, 0.0, 0

    def before_step(self) -> None:
        self._began = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self._began
        self._steps += 1

    @property
    def images_per_second(self) -> float:
        return self._steps * self._batch_size / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "steps": self._steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds, self._steps = state["seconds"], int(state["steps"])


class _WholeCheckpointer(DetectionCheckpointer):
    """One `checkpoint.pt`, written whole or not at all, loaded strictly and without running code."""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_to_disk:
            return
        state = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.get_checkpoint_file())
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            torch.save({"model": self.model.state_dict(), **state, **kwargs}, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def get_checkpoint_file(self) -> str:
        return str(Path(self.save_dir) / CHECKPOINT)

    def has_checkpoint(self) -> bool:
        return Path(self.get_checkpoint_file()).is_file()

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises what it likes for a damaged file
            raise ValueError(
                f"{f} is not a whole checkpoint ({str(error).splitlines()[0]}); start anew without "
                "--resume, in another directory"
            ) from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        wrong = super()._load_model(checkpoint)
        if wrong.missing_keys or wrong.unexpected_keys or wrong.incorrect_shapes:
            first = [*wrong.missing_keys, *wrong.unexpected_keys, *wrong.incorrect_shapes][0]
            raise ValueError(f"{self.get_checkpoint_file()} is of another model (e.g. {first})")
        return wrong


class _CurveWriter(EventWriter):
    """curve.jsonl: a line each time, of the mean since the last."""

    def __init__(self, path: Path, batch_size: int, images: int, start: int) -> None:
        self._path, self._batch_size, self._images = path, batch_size, images
        self._written = start
        _cut_curve(path, start)

    def write(self) -> None:
        storage = get_event_storage()
        if "total_loss" not in storage.latest():
            return
        step = storage.latest()["total_loss"][1] + 1
        passed = step - self._written
        if not passed:
            return
        seconds = storage.history("time").avg(passed) if "time" in storage.latest() else None
        self.append(
            step,
            lr=storage.history("lr").latest(),
            loss=float(storage.history("total_loss").avg(passed)),
            images_per_second=self._batch_size / seconds if seconds else None,
        )
        self._written = step

    def append(self, step: int, **values: float | None) -> None:
        row = {"step": step, "epoch": step * self._batch_size / self._images, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _cut_curve(path: Path, start: int) -> None:
    """Drop the points that lie after the iteration training goes on from."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # a kill may have cut the last line
        if row["step"] <= start:
            kept.append(line + "\n")
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class _ProgressBar(HookBase):
    """For a person at a terminal; log.txt has Detectron2's own lines, with the time left."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("iteration {task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s  loss {task.fields[loss]:.3f}"),
            console=Console(stderr=True),
            transient=True,
        )

    def before_train(self) -> None:
        total, done = self.trainer.max_iter, self.trainer.start_iter
        self._task = self._bar.add_task("training", total=total, completed=done, rate=0.0, loss=0.0)
        if self._bar.console.is_terminal:
            self._bar.start()

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        seconds, loss = latest.get("time", (0.0, 0))[0], latest["total_loss"][0]
        rate = self._batch_size / seconds if seconds else 0.0
        self._bar.update(self._task, completed=self.trainer.iter + 1, rate=rate, loss=loss)

    def after_train(self) -> None:
        self._bar.stop()


def _reporting_hooks(
    config: DetectionConfig,
    cfg: CfgNode,
    directory: Path,
    start: int,
    images: int,
    validate: Callable[[], dict[str, float | None]],
) -> list[HookBase]:
    main = comm.is_main_process()
    curve = None
    if main:
        curve = _CurveWriter(directory / CURVE, config.train.batch_size, images, start)

    def point_of_the_curve() -> dict[str, float]:
        metrics = {f"val_{name}": value for name, value in validate().items()}
        if curve is not None:
            curve.append(get_event_storage().iter + 1, **metrics)
        return {name: value for name, value in metrics.items() if value is not None}

    found: list[HookBase] = []
    if main:
        writers: list[EventWriter] = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), curve]
        if config.train.tensorboard:
            writers.append(TensorboardXWriter(str(directory / "tensorboard")))
        found += [_ProgressBar(config.train.batch_size)]
        found += [hooks.PeriodicWriter(writers, period=config.train.log_every)]
    # The door evaluates the last iteration.
    found += [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, point_of_the_curve, eval_after_train=False)]
    return found
