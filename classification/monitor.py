"""What a person sees of training: progress, curve.jsonl, a tracker; and the finite-loss check."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from backbones.files import CURVE, cut_curve
from backbones.heartbeat import tell
from backbones.tracker import Tracker
from classification.config import ClassificationConfig
from classification.distributed import Processes

logger = logging.getLogger(__name__)

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("step {task.completed}/{task.total}"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[rate]:.0f} images/s  loss {task.fields[loss]:.3f}"),
)


class Monitor:
    """Collects the losses on the device and looks at them every `log_every` steps.

    Looking waits for the device, so it is not done at every step. Used in a `with` block.

    Attributes:
        seconds: of training so far; what is `paused` does not count.
    """

    def __init__(
        self,
        directory: Path,
        config: ClassificationConfig,
        processes: Processes,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._directory, self._processes = directory, processes
        self._all_settings, self._settings = config, config.train
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._pending: list[tuple[int, float, Tensor]] = []
        self._interval = 0.0  # seconds that the pending steps took, as far as it was looked
        self._since = self._told = time.perf_counter()
        self._tracker: Tracker | None = None
        self._progress: Progress | None = None
        self.seconds = 0.0

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Show the training that goes on from `step`, for the length of a `with` block."""
        if self._processes.is_first:
            cut_curve(self._directory / CURVE, step)
            wish = (self._settings.tracker, self._settings.tensorboard)
            self._tracker = Tracker(self._directory, *wish, self._all_settings, step)
            self._progress = Progress(*COLUMNS, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(
                "training", total=self._total_steps, completed=step, rate=0.0, loss=math.nan
            )
            if self._progress.console.is_terminal:
                self._progress.start()
        self._since = time.perf_counter()
        try:
            yield
        finally:
            if self._progress is not None and self._progress.console.is_terminal:
                self._progress.stop()
            if self._tracker is not None:
                self._tracker.close()

    @property
    def is_due(self) -> bool:
        """Whether enough steps were noted for a point of the curve."""
        return len(self._pending) >= self._settings.log_every

    def note(self, step: int, lr: float, loss: Tensor) -> None:
        """Remember learning rate and loss of `step`, just made, without waiting for the loss."""
        self._pending.append((step, lr, loss))
        tell("training", step, self._total_steps, self._settings.batch_size)

    def flush(self) -> None:
        """Write a point of the curve over the steps noted since the last.

        Raises:
            ValueError: a loss among them is not finite; step and learning rate are named.
        """
        if not self._pending:
            return
        losses = self._losses()
        elapsed = self._interval
        step, lr, _ = self._pending[-1]
        rate = len(self._pending) * self._settings.batch_size / elapsed
        self._write(step, lr=lr, loss=sum(losses) / len(losses), images_per_second=rate)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, rate=rate, loss=losses[-1])
            self._tell(step, lr, losses[-1], rate, elapsed)
        self._pending.clear()
        self._interval = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the time, and the steps that the curve lacks yet.

        Raises:
            ValueError: as `flush`.
        """
        losses = self._losses() if self._pending else []
        steps = [
            [step, lr, loss] for (step, lr, _), loss in zip(self._pending, losses, strict=True)
        ]
        return {"seconds": self.seconds, "pending": steps, "pending_seconds": self._interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._pending = [
            (int(step), float(lr), torch.tensor(float(loss), device=self._processes.device))
            for step, lr, loss in state["pending"]
        ]
        self.seconds, self._interval = float(state["seconds"]), float(state["pending_seconds"])

    def note_validation(self, step: int, top1_error: float, top5_error: float, loss: float) -> None:
        """Write a point of the validation curve: errors in percent, loss in nats."""
        is_finite = math.isfinite(loss)
        self._write(
            step,
            val_top1_error=top1_error,
            val_top5_error=top5_error,
            val_loss=loss if is_finite else None,
        )
        if self._processes.is_first:
            epoch, total = step / self._steps_per_epoch, self._total_steps / self._steps_per_epoch
            logger.info("epoch %.4g of %.4g: top-1 error %.2f %%", epoch, total, top1_error)
            if not is_finite:
                logger.warning("epoch %.4g: outputs of the network are not finite", epoch)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is not training time."""
        yield
        self._since = time.perf_counter()

    def _losses(self) -> list[float]:
        """Mean losses of the pending steps over all processes; counts their time."""
        losses = self._processes.mean(torch.stack([loss for *_, loss in self._pending])).tolist()
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        self.seconds += elapsed
        self._interval += elapsed
        for (step, lr, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                epoch = step / self._steps_per_epoch
                raise ValueError(
                    f"the loss is {loss} at step {step} (epoch {epoch:.2f}), learning rate {lr:g}; "
                    "lower train.optimizer.lr, warm up longer (train.schedule.warmup) or set "
                    "train.clip_grad"
                )
        return losses

    def _tell(self, step: int, lr: float, loss: float, rate: float, elapsed: float) -> None:
        """A line a minute, for logs and where no bar is shown."""
        now = time.perf_counter()
        if now - self._told < 60:
            return
        self._told = now
        left = timedelta(seconds=round((self._total_steps - step) * elapsed / len(self._pending)))
        logger.info(
            "step %d of %d: loss %.4f, learning rate %.4g, %.0f images/s, %s left",
            *(step, self._total_steps, loss, lr, rate, left),
        )

    def _write(self, step: int, **values: float | None) -> None:
        if not self._processes.is_first:
            return
        row = {"step": step, "epoch": step / self._steps_per_epoch, **values}
        with open(self._directory / CURVE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._tracker is not None:
            self._tracker.log(row)
