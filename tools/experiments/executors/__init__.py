"""Executors: where the cells of a study run. A table of them, and what each promises.

The scheduler (`tools.experiments.cells`) knows which cells are ready, skips what is recorded, and
starts what failed by chance again. An executor only runs what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from backbones.config import unknown
from tools.experiments.job import Failure, Job
from tools.experiments.study import Cell
from tools.experiments.tasks import load_function


@dataclass(frozen=True)
class Ended:
    """A job that runs no longer."""

    job: Job
    failure: Failure | None  # None: its record lies in its directory, here


class Executor(Protocol):
    """Runs jobs by `run_job` or `run_logged_job`, in processes of its own.

    Attributes:
        room: how many jobs it takes at the same time; one with a queue of its own takes many.
    """

    room: int

    def start(self, job: Job) -> None:
        """Begin with a job, or queue it, and return at once."""

    def wait(self, seconds: float) -> list[Ended]:
        """Those that ended since the last call, as soon as there are any or the time is over.

        A job whose process, worker or node was lost has a failure that can pass.
        """

    def close(self) -> None:
        """Let what still runs save its checkpoint, end it, and give back what was taken."""


# Name -> "module:function" of (cells, jobs, options) -> Executor. `jobs` is `--jobs`, options are what
# the command line has as KEY=VALUE; a ValueError says what is wrong with them before anything runs.
EXECUTORS = {
    "local": "tools.experiments.executors.local:open_local",
    "ray": "tools.experiments.executors.ray:open_ray",
    "slurm": "tools.experiments.executors.slurm:open_slurm",
}


def read_options(executor: str, texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE texts as a mapping. Raises ValueError for another text, or an unknown executor."""
    if executor not in EXECUTORS:
        raise ValueError(unknown("executor", executor, EXECUTORS))
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{text!r}: options of --executor {executor} are written key=value")
        options[key] = value
    return options


def open_executor(
    name: str, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]
) -> Executor:
    """An executor by its name. Raises ValueError for options it has not."""
    return load_function(EXECUTORS[name])(cells, jobs, options)


def check_options(executor: str, options: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raise a ValueError, with near matches, for an option that an executor does not have."""
    for key in options:
        if key not in allowed:
            raise ValueError(unknown(f"option of --executor {executor}", key, allowed))
