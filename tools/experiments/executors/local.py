"""Cells in processes of this machine, forked from one that has imported the tasks once.

Cells end with the process that started them, whatever ends that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any

from tools.experiments.executors import Ended
from tools.experiments.job import (
    GRACE,
    TRY_AGAIN,
    Failure,
    Job,
    keep_failure,
    read_failure,
    run_logged_job,
)
from tools.experiments.study import Cell
from tools.experiments.tasks import TASKS


def start_workers(tasks: Iterable[str]) -> Any:
    """Begin to import what runs of ``tasks`` need, once for all; gives what starts their processes.

    A later call for the same tasks finds it done.
    """
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if context.get_start_method() == "forkserver":
        # Every optimizer asks for torch._dynamo, which takes seconds to import.
        modules = [TASKS[task].module for task in sorted(set(tasks))]
        context.set_forkserver_preload(["torch._dynamo", *modules])
        forkserver.ensure_running()
    return context


class LocalExecutor:
    """A process for each job, so many at a time; see `Executor`."""

    OPTIONS = ()

    def __init__(self, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]) -> None:
        self.room = jobs
        self._context = start_workers(cell.experiment.task for cell in cells)
        self._running: dict[int, tuple[Job, Any]] = {}  # by slot, for sharing out GPUs: processes
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // jobs)

    def start(self, job: Job) -> None:
        """Start a process for it."""
        slot = min(set(range(self.room)) - set(self._running))
        arguments = (job, self._threads, slot, self.room)
        process = self._context.Process(target=_run, args=arguments, name=job.cell.label)
        process.start()
        self._running[slot] = (job, process)

    def wait(self, seconds: float) -> list[Ended]:
        """Those that ended, after so many seconds at most."""
        ready = wait([process.sentinel for _, process in self._running.values()], seconds)
        ended = [slot for slot, (_, process) in self._running.items() if process.sentinel in ready]
        return [_finish(*self._running.pop(slot)) for slot in ended]

    def close(self) -> None:
        """End what is running; trainings save their checkpoints."""
        processes = [process for _, process in self._running.values()]
        for process in processes:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in processes:
            process.join(timeout=max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._running = {}


def _finish(job: Job, process: Any) -> Ended:
    """What came of a job; a process that exited without a note has failed."""
    process.join()
    code = process.exitcode
    if code == 0:
        return job, None
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:
        how = "killed by the system (SIGKILL), which it does where memory is short"
    lost = Failure("stopped" if code == TRY_AGAIN else how, can_pass=code < 0 or code == TRY_AGAIN)
    return job, read_failure(job.cell.output, job.cell.name) or lost


def _run(job: Job, threads: int, slot: int, slots: int) -> None:
    """Body of a job's process: its exit code, and a note on disk, tell how it ended."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    share = _take_gpus(slot, slots)
    needs = job.cell.needs.gpus or 0
    if needs > share:
        told = f"it needs {needs} GPUs, and has {share} with --jobs {slots}"
        keep_failure(job.cell, Failure(told))
        sys.exit(1)
    failure = run_logged_job(job, threads)
    if failure is not None:
        sys.exit(TRY_AGAIN if failure.can_pass else 1)


def _take_gpus(slot: int, slots: int) -> int:
    """Leave this process its share of the GPUs; where there are fewer than jobs, they share.

    Returns how many it has.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    share = max(1, count // slots)
    first = slot * share % count
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[first : first + share])
    return share


def end_with_parent() -> None:
    """Stop this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training saves its checkpoint
    time.sleep(GRACE)
    os._exit(1)
