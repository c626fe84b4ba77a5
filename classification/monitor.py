"""What a person sees of training: progress, curve.jsonl, TensorBoard; and the finite-loss check."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from classification.config import TrainSettings
from classification.distributed import Processes
from classification.evaluate import Predictions
from classification.metrics import count_correct

if TYPE_CHECKING:
    from classification.engine import Trainer

logger = logging.getLogger(__name__)

CURVE = "curve.jsonl"


class Monitor:
    """Collects the losses on the device and looks at them every `log_every` steps.

    Looking waits for the device, so it is not done at every step. Used in a `with` block.
    """

    def __init__(
        self, trainer: "Trainer", directory: Path, settings: TrainSettings, processes: Processes
    ) -> None:
        self._trainer, self._settings, self._processes = trainer, settings, processes
        self._directory = directory
        self._pending: list[tuple[int, float, Tensor]] = []
        self._since = self._told = time.perf_counter()
        self._progress = self._board = None

    def __enter__(self) -> "Monitor":
        if self._processes.is_first:
            self._cut_curve()
            if self._settings.tensorboard:
                self._board = SummaryWriter(
                    str(self._directory / "tensorboard"), purge_step=self._trainer.step
                )
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("step {task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[rate]:.0f} images/s  loss {task.fields[loss]:.3f}"),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(
                "training",
                total=self._trainer.total_steps,
                completed=self._trainer.step,
                rate=0.0,
                loss=math.nan,
            )
            if self._progress.console.is_terminal:
                self._progress.start()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None and self._progress.console.is_terminal:
            self._progress.stop()
        if self._board is not None:
            self._board.close()

    @property
    def is_due(self) -> bool:
        return len(self._pending) >= self._settings.log_every

    def note(self, lr: float, loss: Tensor) -> None:
        """Remember learning rate and loss of the step just made, without waiting for the loss."""
        self._pending.append((self._trainer.step, lr, loss))

    def flush(self) -> None:
        """Write the steps noted since the last time.

        Raises:
            ValueError: a loss among them is not finite; step and learning rate are named.
        """
        if not self._pending:
            return
        losses = self._processes.mean(torch.stack([loss for *_, loss in self._pending])).tolist()
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        self._trainer.seconds += elapsed
        for (step, lr, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                epoch = step / self._trainer.steps_per_epoch
                raise ValueError(
                    f"the loss is {loss} at step {step} (epoch {epoch:.2f}), learning rate {lr:g}; "
                    "lower train.optimizer.lr, warm up longer (train.schedule.warmup) or set "
                    "train.clip_grad"
                )
        step, lr, _ = self._pending[-1]
        rate = len(self._pending) * self._settings.batch_size / elapsed
        self._write(step, lr=lr, loss=sum(losses) / len(losses), images_per_second=rate)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, rate=rate, loss=losses[-1])
            if now - self._told >= 60:  # a line a minute, for logs and where no bar is shown
                self._told = now
                total = self._trainer.total_steps
                left = timedelta(seconds=round((total - step) * elapsed / len(self._pending)))
                logger.info(
                    "step %d of %d: loss %.4f, learning rate %.4g, %.0f images/s, %s left",
                    *(step, total, losses[-1], lr, rate, left),
                )
        self._pending.clear()

    def note_validation(self, error: float, seen: Predictions) -> None:
        """Write a point of the validation curve: top-1 error and loss."""
        step = self._trainer.step
        top5 = 100 * (1 - count_correct(seen.labels, seen.top, 5) / len(seen.labels))
        self._write(step, val_top1_error=error, val_top5_error=top5, val_loss=seen.loss)
        if self._processes.is_first:
            epoch = step / self._trainer.steps_per_epoch
            total = self._trainer.total_steps / self._trainer.steps_per_epoch
            logger.info("epoch %.4g of %.4g: top-1 error %.2f %%", epoch, total, error)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is not training time."""
        yield
        self._since = time.perf_counter()

    def _write(self, step: int, **values: float) -> None:
        if not self._processes.is_first:
            return
        row: dict[str, Any] = {"step": step, "epoch": step / self._trainer.steps_per_epoch}
        with open(self._directory / CURVE, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, **values}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def _cut_curve(self) -> None:
        """Drop the points that lie after the step training goes on from."""
        path = self._directory / CURVE
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # a kill may have cut the last line
                if row["step"] <= self._trainer.step:
                    kept.append(line + "\n")
        partial = path.with_name(f"{CURVE}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
