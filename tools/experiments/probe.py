"""A few real steps of a training and of its evaluation, timed: what the whole of it will cost."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import NonNegative, WholeNumber
from backbones.heartbeat import Stage, listen
from tools.experiments.experiment import Experiment
from tools.experiments.settings import build_settings, merge
from tools.experiments.tasks import TASKS, settings_class

_WARM_UP = 3  # steps, or batches, that are not counted
_FEWEST = 4  # steps that are


@dataclass(frozen=True)
class Cost:
    """Of one run, on this machine and with the processes and threads it has here."""

    train_seconds: NonNegative
    evaluate_seconds: NonNegative  # of one pass over the reported images
    looks: WholeNumber  # passes while it trains, for its curve
    other_seconds: NonNegative  # starting, reading lists, saving, scoring
    memory_bytes: WholeNumber  # the most at a time, of the device that computes
    disk_bytes: WholeNumber

    @property
    def seconds(self) -> float:
        """From its start to its record."""
        passes = (1 + self.looks) * self.evaluate_seconds
        return self.train_seconds + passes + self.other_seconds


def measure(experiment: Experiment, seconds: float = 10.0) -> Cost:
    """Time a training's steps and its evaluation's, in a process of its own.

    Network, batch, data and reading processes are the experiment's. Training is ended after
    `seconds` of steady steps; a training of two steps then leads to the evaluation, which ends so too.

    Raises:
        ValueError: the experiment cannot be run; what its check says.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_measure, experiment, seconds).result()


class _Enough(Exception):
    pass


class _Watch:
    """Notes when each step was done, and ends a stage that was watched long enough."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.began = self.ended = time.monotonic()
        self.done: dict[Stage, list[tuple[int, float]]] = {}
        self.total: dict[Stage, int] = {}

    def __call__(self, stage: Stage, step: int, total: int, images: float) -> None:
        rows = self.done.setdefault(stage, [])
        if rows and step <= rows[-1][0]:  # the next pass
            rows.clear()
        rows.append((step, time.monotonic()))
        self.total[stage] = total
        counted = rows[_WARM_UP:]
        if len(counted) > _FEWEST and counted[-1][1] - counted[0][1] > self._seconds:
            raise _Enough

    def whole(self, stage: Stage) -> float | None:
        """Seconds that all of a stage takes; None: too little of it was seen."""
        rows = self.done.get(stage, [])
        rows = rows[_WARM_UP:] if len(rows) > _WARM_UP + _FEWEST else rows
        if len(rows) < 2:
            return None
        (first, begun), (last, ended) = rows[0], rows[-1]
        return (ended - begun) / (last - first) * self.total[stage]


def _measure(experiment: Experiment, seconds: float) -> Cost:
    from backbones.device import choose_device, keep_large_tensors_on_heap, peak_memory

    logging.disable(logging.ERROR)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    keep_large_tensors_on_heap()
    config = experiment.config
    if config.backbone.weights and not Path(config.backbone.weights).exists():
        # Those of a cell that has yet to run: it costs the same without them.
        config = replace(config, backbone=replace(config.backbone, weights=None))
        experiment = replace(experiment, config=config)
    with tempfile.TemporaryDirectory() as folder:
        whole = _run(experiment, Path(folder) / "whole", seconds)
        short = whole
        if not (Path(folder) / "whole" / files.RECORD).exists():
            short = _run(_of_two_steps(experiment), Path(folder) / "short", seconds)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    peak = peak_memory(choose_device(config.device))
    train = whole.whole("training") or 0.0
    evaluate = short.whole("evaluating") or 0.0
    seen = sum(watched[-1][1] - watched[0][1] for watched in short.done.values())
    other = max(0.0, short.ended - short.began - seen)
    memory = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    looks = _looks(config, whole.total.get("training", 0))
    return Cost(train, evaluate, looks, other, memory, disk)


def _run(experiment: Experiment, directory: Path, seconds: float) -> _Watch:
    from tools.experiments.run import run_experiment

    watch = _Watch(seconds)
    with listen(watch), suppress(_Enough):
        run_experiment(experiment, directory)
    watch.ended = time.monotonic()
    return watch


def _of_two_steps(experiment: Experiment) -> Experiment:
    row = TASKS[experiment.task]
    short = merge(experiment.settings, row.two_steps)
    config: Any = build_settings(settings_class(row), [("the probe's settings", short)])
    return replace(experiment, config=config)


def _looks(config: Any, steps: int) -> int:
    """How often a training is evaluated before its end: `evaluate.every` counts epochs or steps."""
    every = config.evaluate.every
    length = getattr(config.train, "epochs", None) or steps
    return (length - 1) // every if every else 0
