"""A cell on its way to where it runs, and running it there: the one road of every executor."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backbones import files
from backbones.offline import follow_switches, switches
from tools.experiments.failure import can_pass, describe_failure
from tools.experiments.record import Git
from tools.experiments.study import LOGS, Cell
from tools.experiments.typed_json import read_typed

GRACE = 20.0  # seconds that a run which is told to stop has to save its checkpoint
# The exit code of what may do well later: a cell that waits for another, a lock, a lost connection.
# Source: EX_TEMPFAIL of BSD's sysexits.h.
TRY_AGAIN = 75


@dataclass(frozen=True)
class Failure:
    """Why a cell has no record."""

    error: str  # for a person
    can_pass: bool = False  # whether the same cell may do well when it is started again
    stopped: bool = False  # whether it was told to; what it had is saved


@dataclass(frozen=True)
class Job:
    """All that running a cell needs; it can be pickled."""

    cell: Cell
    # Of the study and not of the process: all records of a study name the code it began with.
    command: str | None
    git: Git
    # Whether the network may be used, as in the process that hands it out.
    switches: dict[str, str] = field(default_factory=switches)


def run_job(job: Job, threads: int | None = None) -> Failure | None:
    """Run a cell in this process, from its checkpoint where there is one, to its record.

    Returns None once the record is written. What went wrong is kept for `sebench status` too.

    Args:
        threads: of torch on a CPU; None: as the process has.

    Raises:
        KeyboardInterrupt: it was told to stop; its checkpoint is saved.
    """
    keep_failure(job.cell, None)
    follow_switches(job.switches)
    count = job.cell.needs.processes
    if count > 1 and "RANK" not in os.environ:  # torchrun has not started them
        return _run_in_processes(job, threads and max(1, threads // count))
    return _run_here(job, threads)


def _run_here(job: Job, threads: int | None) -> Failure | None:
    from backbones.device import keep_large_tensors_on_heap  # imports torch
    from tools.experiments.run import run_experiment

    cell = job.cell
    try:
        keep_large_tensors_on_heap()
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        if cell.directory.is_dir() and os.environ.get("RANK", "0") == "0":
            # The process of a study that was killed may still be saving its checkpoint.
            with files.lock_directory(cell.directory, wait=GRACE + 10):
                pass
        resume = (cell.directory / files.CHECKPOINT).exists()
        run_experiment(
            cell.experiment, cell.directory, resume=resume, command=job.command, git=job.git
        )
    except Exception as error:
        traceback.print_exc()
        # Of several processes the first to fail knows why; the others lose their connection.
        failure = read_failure(cell.output, cell.name)
        if failure is None:
            failure = Failure(describe_failure(error), can_pass(error))
            keep_failure(cell, failure)
        return failure
    return None


def _run_in_processes(job: Job, threads: int | None) -> Failure | None:
    """Run a cell in several processes of this machine, one a GPU, as torchrun does."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = job.cell.needs.processes
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=job.cell.directory.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # the scheduler starts again what may do better
        start_method="spawn",
    )
    try:
        elastic_launch(config, _run_rank)(job, threads)
    except SignalException as stopped:
        raise KeyboardInterrupt(f"stopped by {stopped.sigval.name}") from None
    except ChildFailedError as error:
        lost = Failure(f"one of {count} processes was lost: {error}", can_pass=True)
        return read_failure(job.cell.output, job.cell.name) or lost
    return None


def _run_rank(job: Job, threads: int | None) -> None:
    failed = True
    with suppress(KeyboardInterrupt):  # the checkpoint is saved
        failed = _run_here(job, threads) is not None
    if failed:
        gc.collect()  # or reading processes, which heed no signal, keep this one from ending
        sys.exit(1)  # the others are ended, which would wait for this one


def run_logged_job(job: Job, threads: int | None = None) -> Failure | None:
    """As `run_job`, in a process of its own: whatever it prints goes to the log."""
    # Workers that read data start as they do in a run outside a study: not as this process did.
    multiprocessing.set_start_method(None, force=True)
    job.cell.log.parent.mkdir(parents=True, exist_ok=True)
    with job.cell.log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            return run_job(job, threads)
        except KeyboardInterrupt as stopped:  # its checkpoint is saved
            return Failure(describe_failure(stopped), can_pass=True, stopped=True)


def keep_failure(cell: Cell, failure: Failure | None) -> None:
    """Write down how the last attempt of a cell ended; None: it has not failed."""
    path = _failure_path(cell.output, cell.name)
    if failure is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(asdict(failure)))


def read_failure(output: Path, name: str) -> Failure | None:
    """How the last attempt of a cell failed, if it did; a damaged note tells nothing."""
    try:
        return read_typed(_failure_path(output, name), Failure)
    except ValueError:
        return None


def _failure_path(output: Path, name: str) -> Path:
    return output / LOGS / f"{name.replace('/', '-')}.failure.json"
