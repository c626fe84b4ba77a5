"""Cells in processes of this machine, forked from one that has imported the tasks once.

Cells end with the process that started them, whatever ends that.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from tools.experiments.executors import Ended
from tools.experiments.job import GRACE, Failure, Job, keep_failure, run_logged_job
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


@dataclass
class _Running:
    job: Job
    process: Any
    receiver: Connection  # gets the failure, or None
    slot: int  # which of the jobs that run at the same time, for sharing out GPUs


class LocalExecutor:
    """A process for each job, so many at a time; see `Executor`."""

    OPTIONS = ()

    def __init__(self, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]) -> None:
        self.room = jobs
        self._context = start_workers(cell.experiment.task for cell in cells)
        self._running: list[_Running] = []
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // jobs)

    def start(self, job: Job) -> None:
        """Start a process for it."""
        slot = min(set(range(self.room)) - {each.slot for each in self._running})
        receiver, sender = self._context.Pipe(duplex=False)
        arguments = (job, self._threads, slot, self.room, sender)
        process = self._context.Process(target=_run, args=arguments, name=job.cell.label)
        process.start()
        sender.close()
        self._running.append(_Running(job, process, receiver, slot))

    def wait(self, seconds: float) -> list[Ended]:
        """Those that ended, after so many seconds at most."""
        # A process that was killed says nothing, and its children may hold the pipe open.
        ends = [end for each in self._running for end in (each.receiver, each.process.sentinel)]
        ready = wait(ends, seconds)
        ended = [e for e in self._running if e.receiver in ready or e.process.sentinel in ready]
        for each in ended:
            self._running.remove(each)
        return [_finish(each) for each in ended]

    def close(self) -> None:
        """End what is running; trainings save their checkpoints."""
        for each in self._running:
            each.process.terminate()
        end = time.monotonic() + GRACE
        for each in self._running:
            each.process.join(timeout=max(0.0, end - time.monotonic()))
            if each.process.is_alive():
                each.process.kill()
                each.process.join()
        self._running = []


def _finish(ended: _Running) -> Ended:
    """What the process of a job has sent; one that exited without a word has failed."""
    with contextlib.suppress(EOFError):
        if ended.receiver.poll():
            failure = ended.receiver.recv()
            ended.process.join()
            return ended.job, failure
    ended.process.join()
    code = ended.process.exitcode
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:
        how = "killed by the system (SIGKILL), which it does where memory is short"
    failure = Failure(f"{how}; see {ended.job.log}", can_pass=code < 0)
    keep_failure(ended.job.cell, failure)
    return ended.job, failure


def _run(job: Job, threads: int, slot: int, slots: int, sender: Connection) -> None:
    """Body of a job's process: run it and send how it failed, or None."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    share = _take_gpus(slot, slots)
    needs = job.cell.needs.gpus or 0
    if needs > share:
        failure = Failure(f"it needs {needs} GPUs, and has {share} with --jobs {slots}")
        keep_failure(job.cell, failure)
        sender.send(failure)
        return
    sender.send(run_logged_job(job, threads))


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
