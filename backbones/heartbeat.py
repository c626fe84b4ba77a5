"""How far a run is: told by whatever computes, written into the run's directory for who asks.

with keep_heartbeat(directory):
    ...
    tell("training", step, total_steps, images=batch_size)   # anywhere below, as often as one likes
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from backbones.config import Count, WholeNumber
from backbones.files import HEARTBEAT, write_whole

Stage = Literal["starting", "training", "evaluating"]
Rate = Annotated[float, Ge(0), Le(1e10)]

EVERY = 5.0  # seconds between two writings, at least


@dataclass(frozen=True)
class Heartbeat:
    """Content of the file."""

    stage: Stage
    step: WholeNumber  # done, of `total`; images where the stage is "evaluating"
    total: WholeNumber
    images_per_second: Rate | None
    seconds_left: Rate | None  # of this stage; None: not known yet
    written: Rate  # seconds since 1970
    pid: Count
    host: str


class _Writer:
    """Writes at most every `EVERY` seconds; a disk that is full does not stop a run here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = -math.inf
        self._stage: Stage | None = None
        self._first, self._begun = 0, 0.0
        self._last = (0, 0.0)  # step and time of what was written last

    def tell(self, stage: Stage, step: int, total: int, images: float) -> None:
        now = time.monotonic()
        if stage != self._stage or step < self._first:
            self._stage, self._first, self._begun = stage, step, now
            self._last = (step, now)
        if now - self._written < EVERY:
            return
        self._written = now
        done, seconds = step - self._last[0], now - self._last[1]
        rate = done * images / seconds if done and seconds else None
        steps = step - self._first
        left = max(0, total - step) * (now - self._begun) / steps if steps else None
        self._last = (step, now)
        beat = Heartbeat(
            stage, step, total, rate, left, time.time(), os.getpid(), socket.gethostname()
        )
        with suppress(OSError):
            write_whole(self._path, json.dumps(asdict(beat)))


_writer: _Writer | None = None


@contextmanager
def keep_heartbeat(directory: str | Path) -> Iterator[None]:
    """Write what is told into `directory` for the length of a `with` block; then the file is gone.

    It stays where the process is killed: then it tells who worked here, and until when.
    """
    global _writer
    before, path = _writer, Path(directory) / HEARTBEAT
    _writer = _Writer(path)
    tell("starting", 0, 0)
    try:
        yield
    finally:
        _writer = before
        path.unlink(missing_ok=True)


def tell(stage: Stage, step: int, total: int, images: float = 1) -> None:
    """Say that `step` of `total` is done.

    Args:
        images: of one step.
    """
    if _writer is not None:
        _writer.tell(stage, step, total, images)


def read_heartbeat(directory: str | Path) -> Heartbeat | None:
    """What a run told last; None where nothing sound is there."""
    from pydantic import TypeAdapter, ValidationError  # a run does not need it

    try:
        with open(Path(directory) / HEARTBEAT, "rb") as file:
            return TypeAdapter(Heartbeat).validate_json(file.read(10_000))
    except (OSError, ValidationError):
        return None
