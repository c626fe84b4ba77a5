"""Training by Detectron2's trainer and hooks, so that a run that was stopped goes on as if not.

What a step does depends on the seed and on its number alone: the order of the images, their
augmentation and the sampling of boxes are drawn anew from (seed, number), not from a generator
that has run since the start. So a resumed run ends with the same weights to the bit where the
arithmetic itself repeats (it does on the CPU), whatever the number of reading processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from torch import nn
from torch.utils.data import DataLoader, Dataset

from backbones.checkpoint import StopRequest, load_checkpoint, save_checkpoint, taking_over
from backbones.device import StepOutOfMemory, is_out_of_memory
from backbones.files import CHECKPOINT
from backbones.monitor import Monitor
from backbones.result import Timing
from backbones.synced_norm import sync_norms

from .config import DetectionConfig, reader_processes
from .detector import ImageMapper
from .parts import pad_alike, take_in_parts

_ADVICE = "lower train.lr, warm up longer (train.warmup_iterations) or set train.clip_grad"


def train_detector(
    config: DetectionConfig,
    cfg: CfgNode,
    model: nn.Module,
    directory: Path,
    resume: bool,
    dataset: str,
    validate: Callable[[], dict[str, float | None]],
) -> Timing:
    """Train `model` in place, in every process of the run.

    Args:
        resume: go on from the checkpoint in `directory`, if there is one.
        dataset: SHA-256 of the annotations, which a checkpoint must share.
        validate: metrics of the model as it is, for the curve; called in every process.

    Returns:
        The time of all parts of a resumed run together.

    Raises:
        ValueError: the loss is not finite (iteration and learning rate are named), or the
            checkpoint to go on from is damaged or of another model or data set.
        StepOutOfMemory: an iteration needs more memory than there is.
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the checkpoint is saved.
    """
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    trainer, steps = _build_trainer(config, cfg, model), cfg.SOLVER.MAX_ITER
    scheduler = build_lr_scheduler(cfg, trainer.optimizer)
    trainer.register_hooks(
        [hooks.IterationTimer(), hooks.LRScheduler(trainer.optimizer, scheduler)]
    )
    is_first = comm.is_main_process()
    if is_first:
        period, printer = config.train.log_every, _Printer(steps)
        trainer.register_hooks([hooks.PeriodicWriter([printer], period=period)])
    monitor = Monitor(directory, config, steps, len(records), ("loss",), list, _ADVICE, is_first)
    path, stop = directory / CHECKPOINT, StopRequest()
    # Last, so that a checkpoint holds all that its iteration did.
    trainer.register_hooks([_Run(config, model, dataset, path, monitor, validate, stop)])
    resume = any(comm.all_gather(resume))
    # A stop between the last checkpoint and the evaluation leaves nothing to train.
    start = _load_state(path, model, trainer, dataset) if resume and path.is_file() else 0
    trainer.data_loader = _build_loader(config, cfg, records, start)
    with stop, monitor.watch(start):
        trainer.train(start, steps)
    return monitor.timing(steps)


class _Printer(CommonMetricPrinter):
    """Leaves out what cannot be estimated: it divides by zero for a second line on one early iteration."""

    def write(self) -> None:
        with suppress(ZeroDivisionError):  # or it would hide why the training ends
            super().write()


class _Trainer(SimpleTrainer):
    """Says what went wrong in an iteration in words of the settings."""

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:
            raise ValueError(
                f"the loss is not finite at iteration {self.iter + 1}, learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g}; {_ADVICE}"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise StepOutOfMemory(str(error)) from None
            raise


class _AMPTrainer(_Trainer, AMPTrainer):
    pass


def _build_trainer(config: DetectionConfig, cfg: CfgNode, model: nn.Module) -> SimpleTrainer:
    optimizer = build_optimizer(cfg, model)
    on_cpu, processes = cfg.MODEL.DEVICE == "cpu", comm.get_world_size()
    if config.detector.norm == "SyncBN" and processes > 1:
        model = sync_norms(model)
        model.get_submodule("backbone").register_forward_pre_hook(pad_alike)
    if config.train.accumulate > 1:
        take_in_parts(model, config.train.batch_size // processes // config.train.accumulate)
    parallel = create_ddp_model(
        model, broadcast_buffers=False, **({"device_ids": None} if on_cpu else {})
    )
    if config.train.precision == "float32":
        return _Trainer(parallel, None, optimizer)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    # bfloat16 has float32's range: nothing to scale.
    scaler = torch.amp.GradScaler("cuda", enabled=precision == torch.float16)
    return _AMPTrainer(parallel, None, optimizer, precision=precision, grad_scaler=scaler)


# Data ----------------------------------------------------------------------------------------------


def seeded_batches(
    wide: Sequence[bool], batch_size: int, seed: int, start: int, rank: int, count: int
) -> Iterator[list[tuple[int, int]]]:
    """One process's share of batches without end: lists of (place in the stream, index of the image).

    The stream is one permutation after another. Images wider than high and the others are gathered
    apart, as Detectron2 does to pad less. `batch_size` is that of all processes together, so that
    the images of a step are the same however many there are; process `rank` of `count` takes every
    `count`-th of them. What was seen before batch `start` is gone through again, unread.
    """
    gathered: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    epoch, order, batches = -1, np.empty(0, int), 0
    for place in itertools.count():
        if place // len(wide) != epoch:
            epoch = place // len(wide)
            order = np.random.default_rng([seed, epoch]).permutation(len(wide))
        index = int(order[place % len(wide)])
        batch = gathered[wide[index]]
        batch.append((place, index))
        if len(batch) == batch_size:
            batches += 1
            if batches > start:
                yield batch[rank::count]
            batch.clear()


class _SeededImages(Dataset[dict[str, Any]]):
    """Detectron2's mapper, each image augmented by its place in the stream."""

    def __init__(self, records: list[dict[str, Any]], mapper: ImageMapper, seed: int) -> None:
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
    batches = seeded_batches(
        [grouping and record["width"] > record["height"] for record in records],
        config.train.batch_size,
        config.seed,
        start,
        comm.get_rank(),
        comm.get_world_size(),
    )
    return DataLoader(
        _SeededImages(records, ImageMapper(cfg, is_train=True), config.seed),
        batch_sampler=batches,
        num_workers=reader_processes(config.data),
        collate_fn=trivial_batch_collator,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
        generator=torch.Generator(),  # or it would draw from the one that the steps use
    )


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


# Each iteration ------------------------------------------------------------------------------------


class _Run(HookBase):
    """Seeds each iteration, reports it, looks at validation, and writes checkpoints.

    Each iteration draws from its own seed, so that a resumed run repeats what was to come.
    """

    def __init__(
        self,
        config: DetectionConfig,
        model: nn.Module,
        dataset: str,
        path: Path,
        monitor: Monitor,
        validate: Callable[[], dict[str, float | None]],
        stop: StopRequest,
    ) -> None:
        self._config, self._model, self._dataset, self._path = config, model, dataset, path
        self._monitor, self._validate, self._stop = monitor, validate, stop
        # The state of a hook is part of a checkpoint.
        self.state_dict, self.load_state_dict = monitor.state_dict, monitor.load_state_dict

    def before_step(self) -> None:
        torch.manual_seed(_seed_of(self._config.seed, self.trainer.iter, comm.get_rank()))

    def after_step(self) -> None:
        step, steps = self.trainer.iter + 1, self.trainer.max_iter
        if comm.is_main_process():
            latest = self.trainer.storage.latest()
            self._monitor.note(step, latest["lr"][0], [latest["total_loss"][0]])
            if self._monitor.is_due or step == steps:
                self._monitor.flush()
        every = self._config.evaluate.every
        if every and step % every == 0 and step < steps:
            with self._monitor.paused():
                metrics = self._validate()
            self._monitor.write(step, **{f"val_{name}": value for name, value in metrics.items()})
            comm.synchronize()  # or the others would wait for rank 0 within the next iteration
        # All processes stop after the same iteration.
        stopped = any(comm.all_gather(self._stop.asked is not None)) and step < steps
        is_due = step % self._config.train.checkpoint_every == 0
        if stopped or is_due or step == steps:
            normalizers = comm.all_gather(getattr(_trained(self.trainer), _NORMALIZER, None))
            if comm.is_main_process():
                state = {"model": self._model.state_dict(), "trainer": self.trainer.state_dict()}
                state |= {"step": step, "dataset": self._dataset, "normalizers": normalizers}
                save_checkpoint(state, self._path)
        if stopped:
            comm.synchronize()
            raise KeyboardInterrupt(
                f"stopped by {self._stop.asked or 'another process'} after iteration {step} of "
                f"{steps}; {self._path} is saved, --resume goes on from it"
            )


# RetinaNet's running number of positive anchors, which each process has and no state dict.
_NORMALIZER = "loss_normalizer"


def _trained(trainer: SimpleTrainer) -> nn.Module:
    return getattr(trainer.model, "module", trainer.model)


def _load_state(path: Path, model: nn.Module, trainer: SimpleTrainer, dataset: str) -> int:
    """Take over what `_Run` wrote. Returns the iterations that are done."""
    kinds = {"step": int, "dataset": str, "model": dict, "trainer": dict}
    state = load_checkpoint(path, "detection", kinds)
    if state["dataset"] != dataset:
        raise ValueError(f"{path} was made with other annotations than this run has")
    with taking_over(path, "model"):
        model.load_state_dict(state["model"])
        trainer.load_state_dict(state["trainer"])
        normalizers = state.get("normalizers") or [None]
        if (normalizer := normalizers[comm.get_rank() % len(normalizers)]) is not None:
            setattr(_trained(trainer), _NORMALIZER, float(normalizer))
    return state["step"]
