"""A few real steps of a training and of its evaluation, timed: what the whole of it will cost."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from backbones.config import Count, NonNegative, WholeNumber
from backbones.heartbeat import Stage, listen
from tools.experiments.executors.local import end_with_parent
from tools.experiments.experiment import Experiment
from tools.experiments.settings import build_settings, merge
from tools.experiments.tasks import TASKS, settings_class

_WARM_UP = 0.3  # of the steps, or batches, that are timed: not counted
_FEWEST = 4  # steps that are timed, at least


@dataclass(frozen=True)
class Cost:
    """Of one run, on this machine and with the processes and threads it has here."""

    train_seconds: NonNegative
    evaluate_seconds: NonNegative  # of one pass over the reported images
    looks: WholeNumber  # passes while it trains, for its curve or for choosing
    other_seconds: NonNegative  # starting, reading lists, saving, scoring
    memory_bytes: WholeNumber  # the most at a time, of the device that computes
    disk_bytes: WholeNumber
    devices: Count = 1  # GPUs, or threads of a processor
    gpu: bool = False

    @property
    def seconds(self) -> float:
        """From its start to its record."""
        passes = (1 + self.looks) * self.evaluate_seconds
        return self.train_seconds + passes + self.other_seconds


def measure(experiment: Experiment, seconds: float = 10.0) -> Cost:
    """Time a training's steps and its evaluation's, in a process of its own.

    Network, batch, data and reading processes are the experiment's. Training is ended after
    `seconds` of steps; a training of two steps then leads to the evaluation, which ends so too.

    Raises:
        ValueError: the experiment cannot be run; what its check says, or that it was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(_measure, experiment, seconds).result()
        except BrokenProcessPool:
            raise ValueError("the probe was killed, as happens where memory is short") from None


class _Enough(Exception):
    pass


class _Watch:
    """Notes when each step was done, and ends what was watched long enough."""

    def __init__(self, seconds: float, *, evaluates: bool) -> None:
        self._seconds, self._evaluates = seconds, evaluates
        self.began = self._last = time.monotonic()
        self._stage: Stage | None = None  # of what was told last: a step after another counts
        self.steps: list[float] = []  # seconds of those that nothing came between
        self.total = 0  # steps of the whole training
        self.batches: list[tuple[float, int]] = []  # of the latest evaluation: when, images so far
        self.passes = 0

    def __call__(self, stage: Stage, step: int, total: int, images: float) -> None:
        now = time.monotonic()
        if stage == "training":
            self.total = total
            if self._stage == "training":
                self.steps.append(now - self._last)
            enough = len(self.steps) >= _FEWEST and sum(self.steps) > self._seconds
            if enough or (step == total and not self._evaluates):
                raise _Enough
        elif stage == "evaluating":
            if not self.batches or step <= self.batches[-1][1]:
                self.passes, self.batches = self.passes + 1, [(self._last, 0)]
            self.batches.append((now, step))
            if now - self.batches[0][0] > self._seconds and step < total:
                raise _Enough
        self._stage, self._last = stage, now

    def evaluation(self, images: int) -> float:
        """Seconds of a whole pass, of which the beginning was watched."""
        if len(self.batches) < 2:
            return 0.0
        (begun, _), (first_at, first), (ended, last) = (self.batches[at] for at in (0, 1, -1))
        rest = (ended - first_at) / (last - first) * (images - last) if last > first else 0.0
        return ended - begun + max(0.0, rest)


def _measure(experiment: Experiment, seconds: float) -> Cost:
    import torch

    from backbones.device import choose_device, keep_large_tensors_on_heap, peak_memory

    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.disable(logging.ERROR)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    # Reading processes start as they do in a run, not as this one did.
    multiprocessing.set_start_method(None, force=True)
    keep_large_tensors_on_heap()
    config = experiment.config
    if config.backbone.weights and not Path(config.backbone.weights).exists():
        # Those of a cell that has yet to run: it costs the same without them.
        config = replace(config, backbone=replace(config.backbone, weights=None))
        experiment = replace(experiment, config=config)
    summary = experiment.entry_points().check(config)
    images = summary["dataset"]["images"]
    with tempfile.TemporaryDirectory() as folder:
        paced = _changed(experiment, {"evaluate": {"every": 0}})
        steps = _run(paced, Path(folder) / "steps", _Watch(seconds, evaluates=False))[0]
        short = _changed(experiment, TASKS[experiment.task].two_steps)
        watch, record, spent = _run(short, Path(folder) / "short", _Watch(seconds, evaluates=True))
        disk = sum(p.stat().st_size for p in (Path(folder) / "short").rglob("*") if p.is_file())
    counted = steps.steps[int(_WARM_UP * len(steps.steps)) :] or watch.steps
    evaluate = watch.evaluation(images)
    seen = watch.batches[-1][0] - watch.batches[0][0] if watch.batches else 0.0
    if record is not None:
        evaluate = seen = record.timing.evaluate_seconds
    on_gpu = (device := choose_device(config.device)).type == "cuda"
    kept = peak_memory(device)
    return Cost(
        fmean(counted) * steps.total if counted else 0.0,
        evaluate,
        _looks(config, summary),
        max(0.0, spent - seen * max(1, watch.passes) - sum(watch.steps)),
        max(kept, 0 if on_gpu else _of_children()),
        disk,
        1 if on_gpu else torch.get_num_threads(),
        on_gpu,
    )


def _of_children() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _run(experiment: Experiment, directory: Path, watch: _Watch) -> tuple[_Watch, Any, float]:
    """What was seen of a run, its record if it came to its end, and the seconds that it took."""
    from tools.experiments.run import run_experiment

    record = None
    watch.began = time.monotonic()
    with listen(watch), suppress(_Enough):
        record = run_experiment(experiment, directory)
    return watch, record, time.monotonic() - watch.began


def _changed(experiment: Experiment, changes: Any) -> Experiment:
    row = TASKS[experiment.task]
    settings = merge(experiment.settings, changes)
    config: Any = build_settings(settings_class(row), [("the probe's settings", settings)])
    return replace(experiment, config=config)


def _looks(config: Any, summary: dict[str, Any]) -> int:
    """How often a training is evaluated before its end; `evaluate.every` counts epochs or steps."""
    every = config.evaluate.every
    if "schedule" in summary:  # of steps
        return (summary["schedule"]["iterations"] - 1) // every if every else 0
    if config.train.select == "best" or config.train.schedule.name == "plateau":
        every = 1
    epochs = math.ceil(summary["steps"] / summary["steps_per_epoch"])
    return math.ceil(epochs / every) if every else 0  # the last epoch always
