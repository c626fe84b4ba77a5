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
from collections.abc import Callable, Iterator
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


@dataclass
class _Pace:
    """Of a stage, which others may interrupt: training goes on after each look at the curve."""

    first: int  # step and time that the stage began with, here
    begun: float
    step: int  # of the last writing
    at: float
    rate: float | None = None  # images a second, before it


class _Writer:
    """Writes at most every `EVERY` seconds; a disk that is full does not stop a run here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = -math.inf
        self._stage: Stage | None = None
        self._paces: dict[Stage, _Pace] = {}

    def tell(self, stage: Stage, step: int, total: int, images: float) -> None:
        now = time.monotonic()
        pace = self._paces.get(stage)
        if pace is None or step < pace.step:  # an evaluation begins anew each time
            pace = self._paces[stage] = _Pace(step, now, step, now)
        elif stage != self._stage:
            pace.step, pace.at = step, now
        self._stage = stage
        if now - self._written < EVERY:
            return
        self._written = now
        if step > pace.step and now > pace.at:
            pace.rate = (step - pace.step) * images / (now - pace.at)
        left = None
        if step > pace.first:
            left = max(0, total - step) * (now - pace.begun) / (step - pace.first)
        pace.step, pace.at = step, now
        place = (os.getpid(), socket.gethostname())
        beat = Heartbeat(stage, step, total, pace.rate, left, time.time(), *place)
        with suppress(OSError):
            write_whole(self._path, json.dumps(asdict(beat)))


_writer: _Writer | None = None
_listener: Callable[[Stage, int, int, float], None] | None = None


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


@contextmanager
def listen(listener: Callable[[Stage, int, int, float], None]) -> Iterator[None]:
    """Call a function with what is told, for the length of a `with` block.

    What it raises goes through whatever computes: so a run can be ended from outside.
    """
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def tell(stage: Stage, step: int, total: int, images: float = 1) -> None:
    """Say that `step` of `total` is done.

    Args:
        images: of one step.
    """
    if _writer is not None:
        _writer.tell(stage, step, total, images)
    if _listener is not None:
        _listener(stage, step, total, images)


def read_heartbeat(directory: str | Path) -> Heartbeat | None:
    """What a run told last; None where nothing sound is there."""
    from pydantic import TypeAdapter, ValidationError  # a run does not need it

    try:
        with open(Path(directory) / HEARTBEAT, "rb") as file:
            return TypeAdapter(Heartbeat).validate_json(file.read(10_000))
    except (OSError, ValidationError):
        return None
