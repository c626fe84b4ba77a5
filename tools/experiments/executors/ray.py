"""Cells as tasks of a Ray cluster, each with its GPUs, cores and memory.

All nodes see the study's folder and the data under the same paths; or, with `store=URL`, nodes keep
their results there: what a cell has done is fetched before it goes on, and put back while it runs.
A cell whose node is lost is started again elsewhere and goes on from its last checkpoint.

Source: https://docs.ray.io/en/latest/ray-core/tasks.html
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from backbones import files
from tools.experiments.executors import Ended
from tools.experiments.executors.store import EVERY, Store
from tools.experiments.failure import can_pass, describe_failure
from tools.experiments.job import GRACE, Failure, Job, run_logged_job
from tools.experiments.study import Cell


class RayExecutor:
    """A task of the cluster for each job; see `Executor`.

    Options: `address` of the cluster, host:port (default: the one of this machine, or RAY_ADDRESS),
    and `store`.
    """

    OPTIONS = ("address", "store")
    room = 1_000  # Ray has a queue of its own; more than any cluster runs at a time

    def __init__(self, cells: Sequence[Cell], jobs: int, options: Mapping[str, str]) -> None:
        address = options.get("address", "auto")
        self._store = Store(options["store"]) if "store" in options else None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray = ray
        _require_reachable(address)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"no Ray cluster at address={address}: {reason}") from None
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray ends the process there and then
        self._tasks: dict[Any, Job] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # of the study's own files, in the store
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {kind: max(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU", "memory")}
        self._needs = {cell.directory: _resources(cell, most) for cell in cells}
        self._looked = time.monotonic()

    def start(self, job: Job) -> None:
        """Start a task for it."""
        # A process of its own, which ends with the job and gives a GPU's memory back. Ray itself starts
        # nothing again: the scheduler does.
        task = self._ray.remote(max_calls=1, max_retries=0)(_run)
        task = task.options(name=job.cell.name, **self._needs[job.cell.directory])
        if self._store is not None:  # the plan, which records name
            self._store.put(job.cell.output, job.cell.output, self._seen)
        self._tasks[task.remote(job, os.getcwd(), self._store)] = job

    def wait(self, seconds: float) -> list[Ended]:
        """Those that ended, after so many seconds at most."""
        done, _ = self._ray.wait(list(self._tasks), timeout=seconds, fetch_local=False)
        if self._store is not None and time.monotonic() - self._looked > EVERY:
            self._looked = time.monotonic()
            for job in self._tasks.values():  # for `sebench status`, which reads this folder
                self._store.fetch_heartbeat(job.cell.directory, job.cell.output)
        return [self._end(reference) for reference in done]

    def close(self) -> None:
        """End what is running; trainings save their checkpoints."""
        for reference in self._tasks:
            self._ray.cancel(reference)  # as Ctrl-C: a training saves its checkpoint
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE)
        self._ray.shutdown()

    def _end(self, reference: Any) -> Ended:
        job = self._tasks.pop(reference)
        try:
            failure = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            failure = Failure(describe_failure(error.cause), can_pass(error.cause))
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failure = Failure(f"its worker or node was lost: {lines[0]}", can_pass=True)
        if self._store is not None:
            self._store.fetch(job.cell.directory, job.cell.output)
            (job.cell.directory / files.HEARTBEAT).unlink(missing_ok=True)
        return job, failure


def _require_reachable(address: str) -> None:
    """Raise a ValueError at once where nothing answers; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:  # "auto" and the like
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster at address={address}: {error}; `ray start --head` starts one and prints "
            "its address"
        ) from None


def _resources(cell: Cell, most: Mapping[str, float]) -> dict[str, Any]:
    """What a cell's task asks for.

    Args:
        most: of each resource, what the largest node has.

    Raises:
        ValueError: no node has as much.
    """
    gpus = cell.gpus(there=bool(most["GPU"]))
    cores = cell.needs.cores or cell.needs.processes
    memory = int((cell.needs.memory_gb or 0) * 1e9)
    for kind, asked in (("CPU", cores), ("GPU", gpus), ("memory", memory)):
        if asked > most[kind]:
            raise ValueError(
                f"{cell.name} needs {asked:g} of {kind}, but no node of the cluster has more than "
                f"{most[kind]:g}; change the study's needs"
            )
    return {"num_cpus": cores, "num_gpus": gpus, **({"memory": memory} if memory else {})}


def _run(job: Job, folder: str, store: Store | None) -> Failure | None:
    """Body of a task, on whatever node it is."""
    # Paths of a study may be relative to where it was started.
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    with ExitStack() as stack:
        if store is not None:
            store.fetch(job.cell.output, job.cell.output)
            if job.cell.source is not None:
                store.fetch(job.cell.source, job.cell.output)
            stack.enter_context(store.kept(job.cell.directory, job.cell.output))
        return run_logged_job(job)
