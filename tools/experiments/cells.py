"""The cells of a study, each run in a process of its own.

Processes are forked from one that has imported the tasks once. A cell that fails, even by a crash,
leaves the others alone; one that is recorded already is not run again, and one that was interrupted
goes on from its checkpoint. Cells end with the process that started them, whatever ends that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backbones import files
from backbones.device import keep_large_tensors_on_heap
from tools.experiments.experiment import Experiment
from tools.experiments.failure import describe_failure
from tools.experiments.record import Git, Record, read_git
from tools.experiments.run import read_recorded, run_experiment
from tools.experiments.study import LOGS, Cell
from tools.experiments.tasks import TASKS

_GRACE = 20.0  # seconds that a run which is told to stop has to save its checkpoint


@dataclass(frozen=True)
class Outcome:
    """How one cell of a run ended."""

    cell: Cell
    seconds: float
    record: Record | None = None  # None: it failed
    error: str | None = None
    skipped: bool = False  # recorded before


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
    """A cell that is being run."""

    cell: Cell
    process: Any
    receiver: Connection  # gets (record, error)
    slot: int  # which of the cells that run at the same time, for choosing a GPU
    begun: float


def run_cells(
    cells: list[Cell],
    output: Path,
    jobs: int = 1,
    command: str | None = None,
    started: Callable[[Cell], None] = lambda cell: None,
) -> Generator[Outcome, None, None]:
    """Run what is not recorded yet, ``jobs`` cells at a time, and yield each as it ends.

    What a cell prints goes to ``output/logs``. A cell whose weights come from another waits for
    it. Closing the iterator, as Ctrl-C does, ends the cells that are running; they resume later.
    """
    waiting = list(cells)
    running: list[_Running] = []
    ended: dict[Path, Outcome] = {}
    context = start_workers({cell.experiment.task for cell in cells})
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // jobs)
    # One for all: the code that runs is what was imported when the first cell started.
    origin = (command, read_git())
    try:
        while waiting or running:
            for cell in list(waiting):
                source = _weights_source(cell, cells)
                if source is not None and source.directory not in ended:
                    continue
                if len(running) == jobs:
                    break
                waiting.remove(cell)
                outcome = _without_running(cell, source, ended)
                if outcome is None:
                    started(cell)
                    slot = min(set(range(jobs)) - {each.slot for each in running})
                    running.append(_start(context, cell, output, threads, slot, origin))
                else:
                    ended[cell.directory] = outcome
                    yield outcome
            for each in _wait_for_any(running):
                running.remove(each)
                outcome = ended[each.cell.directory] = _finish(each, output)
                yield outcome
    finally:
        _stop([each.process for each in running])


def _without_running(cell: Cell, source: Cell | None, ended: dict[Path, Outcome]) -> Outcome | None:
    """The outcome of a cell that is recorded already, or cannot be run; None: it is to be run."""
    record = read_recorded(cell.experiment, cell.directory)
    if record is not None:
        return Outcome(cell, 0.0, record, skipped=True)
    if source is not None and ended[source.directory].error:
        return Outcome(cell, 0.0, error=f"its weights come from {source.label}")
    return None


def _wait_for_any(running: list[_Running]) -> list[_Running]:
    """Those that have sent their result or ended, after half a second at most."""
    # A process that was killed says nothing, and its children may hold the pipe open.
    ready = wait([end for each in running for end in (each.receiver, each.process.sentinel)], 0.5)
    return [each for each in running if each.receiver in ready or each.process.sentinel in ready]


def _weights_source(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The cell whose weights this one starts from."""
    weights = cell.experiment.config.backbone.weights
    folder = Path(weights).parent if weights else None
    return next((other for other in cells if other.directory == folder), None)


def _start(
    context: Any,
    cell: Cell,
    output: Path,
    threads: int,
    slot: int,
    origin: tuple[str | None, Git],
) -> _Running:
    receiver, sender = context.Pipe(duplex=False)
    log = _log_path(cell, output)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = (cell.experiment, cell.directory, log, threads, slot, origin, sender)
    process = context.Process(target=_run_cell, args=arguments, name=cell.label)
    process.start()
    sender.close()
    return _Running(cell, process, receiver, slot, time.monotonic())


def _finish(ended: _Running, output: Path) -> Outcome:
    """What the process of a cell has sent; one that exited without a result has failed."""
    record = error = None
    if ended.receiver.poll():
        with contextlib.suppress(EOFError):
            record, error = ended.receiver.recv()
    ended.process.join()
    if record is None and error is None:
        error = f"{_how_it_ended(ended.process.exitcode)}; see {_log_path(ended.cell, output)}"
    return Outcome(ended.cell, time.monotonic() - ended.begun, record, error)


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by the system (SIGKILL), which it does where memory is short"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _stop(processes: Sequence[Any]) -> None:
    """Ask processes to stop, which lets them save a checkpoint; end those that do not."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + _GRACE
    for process in processes:
        process.join(timeout=max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _log_path(cell: Cell, output: Path) -> Path:
    return output / LOGS / f"{cell.entry}-{cell.directory.name}.txt"


def _run_cell(
    experiment: Experiment,
    directory: Path,
    log: Path,
    threads: int,
    slot: int,
    origin: tuple[str | None, Git],
    sender: Connection,
) -> None:
    """Body of a cell's process: run it and send (record, error)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Workers that read data start as they do in a run outside a study: not as this process did.
    multiprocessing.set_start_method(None, force=True)
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            import torch

            keep_large_tensors_on_heap()
            torch.set_num_threads(threads)
            gpus = torch.cuda.device_count()
            if gpus > 1 and experiment.config.device == "auto":
                config = dataclasses.replace(experiment.config, device=f"cuda:{slot % gpus}")
                experiment = dataclasses.replace(experiment, config=config)
            _await_unlocked(directory)
            resume = (directory / files.CHECKPOINT).exists()
            command, git = origin
            record = run_experiment(experiment, directory, resume=resume, command=command, git=git)
            sender.send((record, None))
        except (Exception, KeyboardInterrupt) as error:
            traceback.print_exc()
            sender.send((None, f"{describe_failure(error)} (more in {log})"))


def _end_with_parent() -> None:
    """Stop this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training saves its checkpoint
    time.sleep(_GRACE)
    os._exit(1)


def _await_unlocked(directory: Path) -> None:
    """Wait for the process of a study that was killed: it may still be saving its checkpoint."""
    end = time.monotonic() + _GRACE + 10
    while directory.is_dir() and time.monotonic() < end:
        try:
            with files.lock_directory(directory):
                return
        except ValueError:
            time.sleep(0.5)
