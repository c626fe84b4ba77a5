"""Cells as jobs of Slurm, submitted by submitit; what ended is read from files, so no accounting is needed.

All nodes see the study's folder and the data under the same paths. Before its time is over, and when
it is preempted, a job gets SIGTERM: the run saves its checkpoint, and the job is queued again under
its own number.

Source: https://slurm.schedmd.com/sbatch.html, --signal and --requeue; https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tools.experiments.executors import Ended
from tools.experiments.job import (
    GRACE,
    Failure,
    Job,
    keep_failure,
    read_failure,
    run_logged_job,
)
from tools.experiments.study import LOGS, Cell

NOTICE = "120"
_TIME = re.compile(r"(\d+-)?\d+(:\d\d?){0,2}")
_LOOK_EVERY = 5.0  # seconds between two looks at the queue
_PATIENCE = 30.0  # seconds after which a job that left the queue without a word counts as lost
_AT_WORK = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING")


@dataclass
class _Submitted:
    job: Job
    number: str
    result: Path  # is there when the job has ended by itself
    missed: float | None = None  # when it was first seen to have left the queue


class SlurmExecutor:
    """A job of Slurm for each job; see `Executor`.

    Options are sbatch's, but for `notice`: seconds before its time is over at which a run is told to
    save.
    """

    OPTIONS = (
        *("partition", "time", "account", "qos", "constraint", "reservation", "exclude"),
        "notice",
    )
    room = 1_000  # Slurm has a queue of its own

    def __init__(self, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]) -> None:
        _check(options)
        import submitit

        self._submitit = submitit
        told = {"notice": NOTICE, **options}
        # For time limits the signal of pre-emption too: one that reading processes do not heed.
        self._options = {"signal": f"TERM@{told.pop('notice')}", "requeue": True, **told}
        self._submitted: list[_Submitted] = []
        self._refused: list[Ended] = []
        self._looked = 0.0
        self._has_gpus = "gpu" in _ask("sinfo", "--noheader", "--format=%G").stdout

    def start(self, job: Job) -> None:
        """Submit a job; what Slurm refuses has failed by the next `wait`."""
        needs = job.cell.needs
        folder = (job.cell.output / LOGS / "slurm").resolve()
        slurm = self._submitit.SlurmExecutor(folder)
        resources: dict[str, Any] = {"cpus_per_task": needs.cores or needs.processes}
        if gpus := job.cell.gpus(self._has_gpus):
            resources["gpus_per_node"] = gpus
        if needs.memory_gb:
            resources["mem_gb"] = needs.memory_gb
        slurm.update_parameters(
            job_name=job.cell.name, **resources, additional_parameters=self._options
        )
        try:
            submitted = slurm.submit(run_in_slurm, job, os.getcwd())
        except self._submitit.core.utils.FailedJobError as error:
            lines = str(error).strip().splitlines() or ["sbatch failed"]
            self._refused.append((job, Failure(f"Slurm refuses it: {lines[-1]}")))
            return
        result = Path(submitted.paths.result_pickle)
        self._submitted.append(_Submitted(job, str(submitted.job_id), result))

    def wait(self, seconds: float) -> list[Ended]:
        """Those whose result is there, or that the queue has lost."""
        refused, self._refused = self._refused, []
        if refused:
            return refused
        end = time.monotonic() + seconds
        while True:
            ended = [each for each in self._submitted if each.result.exists()] or self._lost()
            if ended or time.monotonic() >= end:
                break
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
        for each in ended:
            self._submitted.remove(each)
        # Failures were noted beside the log, where the job ran.
        jobs = [each.job for each in ended]
        return [(job, read_failure(job.cell.output, job.cell.name)) for job in jobs]

    def close(self) -> None:
        """Cancel what is queued or runs; runs save their checkpoints first."""
        numbers = [each.number for each in self._submitted]
        if not numbers:
            return
        # SIGTERM, on which runs save; SIGKILL after the cluster's KillWait.
        _ask("scancel", *numbers)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and not {*numbers}.isdisjoint(_queue() or {}):
            time.sleep(0.5)

    def _lost(self) -> list[_Submitted]:
        """Jobs that left the queue without a result: cancelled, out of time or memory, a lost node."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return []
        self._looked = now
        states = _queue()
        if isinstance(states, str):  # the controller is away: jobs go on without it
            return []
        lost = []
        for each in self._submitted:
            state = states.get(each.number, "gone from the queue")
            if state in _AT_WORK or state.startswith("REQUEUE"):
                each.missed = None
            elif each.missed is None:
                each.missed = now
            elif now - each.missed > _PATIENCE:
                told = f"its Slurm job {each.number} was lost: {state}"
                keep_failure(each.job.cell, Failure(told, can_pass=True))
                lost.append(each)
        return lost


def _check(options: Mapping[str, str]) -> None:
    if "time" in options and not _TIME.fullmatch(options["time"]):
        raise ValueError(f"time={options['time']}: write minutes, HH:MM:SS or D-HH:MM:SS")
    if not options.get("notice", NOTICE).isdecimal():
        raise ValueError(f"notice={options['notice']}: write seconds, e.g. {NOTICE}")
    if shutil.which("sbatch") is None:
        raise ValueError("--executor slurm needs sbatch: run this on a login node of the cluster")
    states = _queue()
    if isinstance(states, str):
        raise ValueError(f"Slurm does not answer: {states}")


def _queue() -> dict[str, str] | str:
    """State of every job of this user by its number; or what is wrong."""
    found = _ask("squeue", "--me", "--noheader", "--states=all", "--format=%i %T")
    if found.returncode:
        return (found.stderr.strip().splitlines() or ["squeue failed"])[-1]
    return dict(line.split(maxsplit=1) for line in found.stdout.splitlines() if " " in line)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


# In the job ---------------------------------------------------------------------------------------


def run_in_slurm(job: Job, folder: str) -> None:
    """Run a cell; where it is told to stop, it saves its checkpoint and the job is queued again."""
    os.chdir(folder)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("stopped by Slurm")

    signal.signal(signal.SIGTERM, stop)  # a training notes the signal itself
    failure: Failure | None
    try:
        failure = run_logged_job(job)
    except KeyboardInterrupt as early:  # before there was anything to save
        failure = Failure(str(early), can_pass=True, stopped=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if failure is not None and failure.stopped:
        _queue_again(failure)
    if failure is not None:
        keep_failure(job.cell, failure)


def _queue_again(failure: Failure) -> NoReturn:
    """Queue this job again; one that was cancelled, or is queued again already, is only to end."""
    number = os.environ["SLURM_JOB_ID"]
    print(f"{failure.error}; job {number} goes on later", flush=True)
    found = _queue()
    if isinstance(found, dict) and found.get(number) == "RUNNING":
        _ask("scontrol", "requeue", number)
    time.sleep(60)  # Slurm ends it
    os._exit(1)
