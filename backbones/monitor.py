"""What a person sees of training: progress, curve.jsonl, a tracker; and the finite-loss check."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from backbones.files import CURVE, cut_curve
from backbones.heartbeat import tell
from backbones.result import Timing
from backbones.tracker import open_trackers

logger = logging.getLogger(__name__)

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("step {task.completed}/{task.total}"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[rate]:.1f} images/s  loss {task.fields[loss]:.3f}"),
)


class Monitor:
    """Collects the losses of steps, and what else is told of them, and looks at them every `log_every` steps.

    Looking may wait for a GPU or other processes, so it is not done at every step.

    Attributes:
        seconds: of training so far; what is `paused` does not count.
    """

    def __init__(
        self,
        directory: Path,
        settings: Any,
        total_steps: int,
        epoch_images: int,
        names: Sequence[str],
        read: Callable[[list[Any]], list[list[float]]],
        advice: str,
        is_first: bool,
    ) -> None:
        """Watch a training that `watch` shall begin.

        Args:
            directory: of the run.
            settings: of the run; `train` of it says batch size, tracker and how often to log.
            total_steps: when training ends.
            epoch_images: images of an epoch.
            names: of the numbers that are noted of a step; the loss comes first.
            read: what was noted of several steps, as numbers, in every process the same.
            advice: what to do where a loss is not finite.
            is_first: whether this process writes.
        """
        self._directory, self._settings, self._train = directory, settings, settings.train
        self._total_steps, self._epoch_images = total_steps, epoch_images
        self._names, self._read, self._advice, self._is_first = names, read, advice, is_first
        self._pending: list[tuple[int, float, Any]] = []  # steps, learning rates, numbers
        self._interval = 0.0  # seconds that the pending steps took, as far as it was looked
        self._since = self._told = time.perf_counter()
        self._log: Callable[[dict[str, Any]], None] | None = None  # to trackers
        self._progress: Progress | None = None
        self.seconds = 0.0

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Show the training that goes on from `step`, for the length of a `with` block."""
        with ExitStack() as stack:
            if self._is_first:
                cut_curve(self._directory / CURVE, step)
                wish = (self._train.tracker, self._train.tensorboard)
                trackers = open_trackers(self._directory, *wish, self._settings, step)
                self._log = stack.enter_context(trackers)
                self._progress = Progress(*COLUMNS, console=Console(stderr=True), transient=True)
                self._task = self._progress.add_task(
                    "training", total=self._total_steps, completed=step, rate=0.0, loss=math.nan
                )
                if self._progress.console.is_terminal:
                    stack.enter_context(self._progress)
            self._since = time.perf_counter()
            yield

    @property
    def is_due(self) -> bool:
        """Whether enough steps were noted for a point of the curve."""
        return len(self._pending) >= self._train.log_every

    def note(self, step: int, lr: float, numbers: Any) -> None:
        """Remember learning rate and numbers of `step`, just made, without waiting for them."""
        self._pending.append((step, lr, numbers))
        tell("training", step, self._total_steps, self._train.batch_size)

    def flush(self) -> None:
        """Write a point of the curve over the steps noted since the last.

        Raises:
            ValueError: a loss among them is not finite; step and learning rate are named.
        """
        if not self._pending:
            return
        numbers = self._numbers()
        elapsed, loss = self._interval, numbers[-1][0]
        step, lr, _ = self._pending[-1]
        rate = len(self._pending) * self._train.batch_size / elapsed
        means = [sum(each) / len(each) for each in zip(*numbers, strict=True)]
        told = {n: mean for n, mean in zip(self._names, means, strict=True) if math.isfinite(mean)}
        self.write(step, lr=lr, **told, images_per_second=rate)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, rate=rate, loss=loss)
            self._tell(step, lr, loss, rate, elapsed)
        self._pending.clear()
        self._interval = 0.0

    def write(self, step: int, **values: float | None) -> None:
        """Write a point of the curve."""
        if not self._is_first:
            return
        epoch = step * self._train.batch_size / self._epoch_images
        row = {"step": step, "epoch": epoch, **values}
        with open(self._directory / CURVE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._log is not None:
            self._log(row)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the time, and the steps that the curve lacks yet.

        Raises:
            ValueError: as `flush`.
        """
        seen = self._numbers() if self._pending else []
        steps = [[step, lr, each] for (step, lr, _), each in zip(self._pending, seen, strict=True)]
        return {"seconds": self.seconds, "pending": steps, "pending_seconds": self._interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._pending = [
            (int(step), float(lr), [float(number) for number in numbers])
            for step, lr, numbers in state["pending"]
        ]
        self.seconds, self._interval = float(state["seconds"]), float(state["pending_seconds"])

    def timing(self, steps: int) -> Timing:
        """How long `steps` steps took, those before a resume too; empty where none was noted."""
        if not self.seconds:
            return Timing()
        rate = steps * self._train.batch_size / self.seconds
        return Timing(train_seconds=self.seconds, train_images_per_second=rate)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is not training time."""
        yield
        self._since = time.perf_counter()

    def _numbers(self) -> list[list[float]]:
        """Those of the pending steps; counts their time."""
        numbers = self._read([noted for *_, noted in self._pending])
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        self.seconds += elapsed
        self._interval += elapsed
        for (step, lr, _), (loss, *_others) in zip(self._pending, numbers, strict=True):
            if not math.isfinite(loss):
                epoch = step * self._train.batch_size / self._epoch_images
                raise ValueError(
                    f"the loss is {loss} at step {step} (epoch {epoch:.2f}), learning rate {lr:g}; "
                    f"{self._advice}"
                )
        return numbers

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
