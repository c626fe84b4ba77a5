"""The scheduler of a study: which cells are ready, which wait, which are tried again.

A cell that fails, even by a crash, leaves the others alone; one that is recorded already is not run
again, and one that was interrupted goes on from its checkpoint. Where cells run is an executor's matter.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.experiments.executors import Executor
from tools.experiments.job import Failure, Job, keep_failure
from tools.experiments.record import Record, read_git
from tools.experiments.run import read_recorded
from tools.experiments.study import Cell

PAUSE = 5.0  # seconds before a cell is started again; twice as long each further time


@dataclass(frozen=True)
class Outcome:
    """How one cell of a run ended."""

    cell: Cell
    seconds: float
    record: Record | None = None  # None: it failed
    error: str | None = None
    skipped: bool = False  # recorded before


@dataclass
class Schedule:
    """What is ready, waiting, running and done of the cells of a study."""

    cells: Sequence[Cell]
    executor: Executor
    command: str | None = None
    retries: int = 2  # how often a cell is started again whose failure can pass
    started: Callable[[Cell], None] = lambda cell: None  # told of each cell that is started

    def __post_init__(self) -> None:
        # One for all: the code that runs is what was imported when the first cell started.
        self._origin = (self.command, read_git())
        among = {cell.directory for cell in self.cells}
        self._ready: deque[Cell] = deque()
        self._waiting: dict[Path, list[Cell]] = {}  # by the directory of what they wait for
        for cell in self.cells:
            if cell.source in among:
                self._waiting.setdefault(cell.source, []).append(cell)
            else:
                self._ready.append(cell)
        self._later: list[tuple[float, int, Cell]] = []  # to be tried again, and from when on
        self._begun: dict[Path, float] = {}  # of the cells that are running
        self._attempts: dict[Path, int] = {}

    def run(self) -> Generator[Outcome, None, None]:
        """Run what is not recorded yet, and yield each cell as it ends.

        A cell whose weights come from another waits for it. Where this is left before its end,
        closing the executor ends the cells that are running; they resume later.
        """
        while self._ready or self._begun or self._later:
            yield from self._start_ready()
            if self._begun:
                for job, failure in self.executor.wait(0.5):
                    yield from self._end(job.cell, failure)
            elif self._later and not self._ready:
                time.sleep(max(0.0, min(0.5, self._later[0][0] - time.monotonic())))

    def _start_ready(self) -> Generator[Outcome, None, None]:
        while self._later and self._later[0][0] <= time.monotonic():
            self._ready.append(heapq.heappop(self._later)[2])
        while self._ready and len(self._begun) < self.executor.room:
            cell = self._ready.popleft()
            record = read_recorded(cell.experiment, cell.directory)
            if record is not None:
                yield from self._settle(Outcome(cell, 0.0, record, skipped=True))
                continue
            self.started(cell)
            keep_failure(cell, None)
            self._begun.setdefault(cell.directory, time.monotonic())
            self.executor.start(Job(cell, *self._origin))

    def _end(self, cell: Cell, failure: Failure | None) -> Generator[Outcome, None, None]:
        seconds = time.monotonic() - self._begun.pop(cell.directory)
        record = None
        if failure is None:
            record = read_recorded(cell.experiment, cell.directory)
            if record is None:
                failure = Failure(f"it ended without a record in {cell.directory}")
        if failure is not None:
            keep_failure(cell, failure)
        attempts = self._attempts[cell.directory] = self._attempts.get(cell.directory, 0) + 1
        if failure is not None and failure.can_pass and attempts <= self.retries:
            due = time.monotonic() + PAUSE * 2 ** (attempts - 1)
            heapq.heappush(self._later, (due, cell.number, cell))
            return
        error = failure.error if failure else None
        if failure is not None and attempts > 1:
            error = f"{error}; tried {attempts} times"
        yield from self._settle(Outcome(cell, seconds, record, error))

    def _settle(self, outcome: Outcome) -> Generator[Outcome, None, None]:
        """An outcome, and what it means for those that wait for the cell."""
        yield outcome
        waiting = self._waiting.pop(outcome.cell.directory, [])
        if outcome.record is not None:
            self._ready.extendleft(reversed(waiting))
            return
        for cell in waiting:
            error = f"its weights come from {outcome.cell.label}"
            yield from self._settle(Outcome(cell, 0.0, error=error))
