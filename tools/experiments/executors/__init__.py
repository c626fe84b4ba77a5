"""Executors: where the cells of a study run. A table of them, and what each promises.

The scheduler (`tools.experiments.cells`) knows which cells are ready, skips what is recorded, and
starts what failed by chance again. An executor only runs what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Protocol

from backbones.config import unknown
from tools.experiments.job import Failure, Job
from tools.experiments.study import Cell
from tools.experiments.tasks import load_function

Ended = tuple[Job, Failure | None]  # a job that runs no longer; None: its record lies here


class Executor(Protocol):
    """Runs jobs by `run_job` or `run_logged_job`, in processes of its own.

    Attributes:
        room: how many jobs it takes at the same time; one with a queue of its own takes many.
        OPTIONS: what the command line may tell it as KEY=VALUE.
    """

    room: int
    OPTIONS: ClassVar[Sequence[str]]

    def __init__(self, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]) -> None:
        """Make ready for cells.

        Args:
            jobs: how many run at a time, of `--jobs`.

        Raises:
            ValueError: what is wrong with an option, or with the place, before anything runs.
        """

    def start(self, job: Job) -> None:
        """Begin with a job, or queue it, and return at once."""

    def wait(self, seconds: float) -> list[Ended]:
        """Those that ended since the last call, as soon as there are any or the time is over.

        A job whose process, worker or node was lost has a failure that can pass.
        """

    def close(self) -> None:
        """Let what still runs save its checkpoint, end it, and give back what was taken."""


EXECUTORS = {  # name -> "module:class"
    "local": "tools.experiments.executors.local:LocalExecutor",
    "ray": "tools.experiments.executors.ray:RayExecutor",
    "slurm": "tools.experiments.executors.slurm:SlurmExecutor",
}


def find_executor(
    name: str, options: Mapping[str, str]
) -> Callable[[Sequence[Cell], int], Executor]:
    """What opens an executor for cells and a number of jobs.

    Raises:
        ValueError: an unknown executor, or an option that it has not, with near matches.
    """
    if name not in EXECUTORS:
        raise ValueError(unknown("executor", name, EXECUTORS))
    kind: type[Executor] = load_function(EXECUTORS[name])
    for key in options:
        if key not in kind.OPTIONS:
            raise ValueError(unknown(f"option of --executor {name}", key, kind.OPTIONS))
    return partial(kind, options=options)
