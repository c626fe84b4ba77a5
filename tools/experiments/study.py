"""A study: networks x tasks x seeds, each network beside its plain twin, planned, run, resumed.

Every cell of the matrix runs in a process of its own, forked from one that has imported the
benchmarks once. A cell that fails, even by a crash, leaves the others alone; one that is recorded
already is not run again, and one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import unknown
from backbones.device import keep_large_tensors_on_heap
from backbones.registry import load_user_module, twin_of
from tools.experiments.experiment import Experiment, check_imports, load_experiment
from tools.experiments.failure import describe_failure
from tools.experiments.record import Record, read_git
from tools.experiments.run import read_recorded, run_experiment
from tools.experiments.settings import build_settings, merge, read_yaml
from tools.experiments.tasks import TASKS

_DATA, _LOGS, _REPORT = "data", "logs", "report"  # folders beside the entries'
_GRACE = 20.0  # seconds that a run which is told to stop has to save its checkpoint


@dataclass(frozen=True)
class StudyEntry:
    """One task and recipe with the networks to run it on."""

    task: str  # a key of TASKS
    recipe: str  # name, or path of a file
    # Names, or {name: ..., options: {...}, weights: ..., twin: ...}; options join the recipe's.
    # Plain twins of SE networks join them: those of the table, or the one that `twin` declares, by
    # its name or as {name: ..., options: {...}}.
    backbones: list[Any]
    name: str | None = None  # names the folder and other entries' weights_from; default recipe
    data: str | None = None
    data_root: str | None = None
    sample: str | None = None  # instead of data_root: one of the study's sample_data
    weights_from: str | None = None  # an earlier entry; each network starts from its weights
    settings: dict[str, Any] = field(default_factory=dict)  # over the recipe's, nested alike
    seeds: list[int] | None = None  # default: the study's


@dataclass(frozen=True)
class Study:
    """What a study's YAML file holds."""

    experiments: list[StudyEntry]
    seeds: list[int] = field(default_factory=lambda: [0])
    twins: bool = True  # whether the plain twin of every SE network is added
    # Files that register networks of one's own; run only where `--import` names them too.
    imports: list[str] = field(default_factory=list)
    # Sets to make in the output folder: name -> arguments of its maker in tools.sample_data.
    sample_data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One experiment of a study and its place."""

    entry: str
    directory: Path
    experiment: Experiment

    @property
    def label(self) -> str:
        return f"{self.entry} · {self.directory.name}"

    def status(self) -> str:
        """'recorded', 'interrupted' or 'to run'."""
        if read_recorded(self.experiment, self.directory):
            return "recorded"
        started = (self.directory / files.CHECKPOINT).exists()
        return "interrupted" if started else "to run"


@dataclass(frozen=True)
class Outcome:
    """How one cell of a run ended."""

    cell: Cell
    seconds: float
    record: Record | None = None  # None: it failed
    error: str | None = None
    skipped: bool = False  # recorded before


def load_study(path: Path) -> Study:
    """Read a study's YAML file. Raises ValueError for anything unknown or of the wrong type."""
    path = Path(path)
    if not path.is_file():
        shipped = [file.stem for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ValueError(unknown("study", path, [str(path.parent / f"{s}.yaml") for s in shipped]))
    content = read_yaml(path)
    entries = content.pop("experiments", None)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: lacks 'experiments', a list of tasks with recipe and backbones")
    study = build_settings(Study, [(str(path), {**content, "experiments": []})])
    built = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, experiment {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected keys with values")
        for key in ("task", "recipe", "backbones"):
            if key not in entry:
                raise ValueError(f"{where}: lacks {key!r}")
        built.append(build_settings(StudyEntry, [(where, entry)]))
    return dataclasses.replace(study, experiments=built)


def plan(study: Study, output: Path, imports: Sequence[str | Path] = ()) -> list[Cell]:
    """The cells in the order they run in; the sample data they need must have been made.

    Args:
        imports: Python files that a person has named; those that the study names are not run
            otherwise.

    Raises:
        ValueError: anything wrong with any experiment's settings.
    """
    check_imports("the study", study.imports, imports)
    for path in imports:
        load_user_module(path)
    cells: dict[str, Cell] = {}
    folders: dict[str, dict[str, Path]] = {}  # entry -> backbone and seed -> its directory
    for entry in study.experiments:
        name = _entry_name(entry)
        if name in folders:
            raise ValueError(f"two experiments are called {name!r}; give one of them a 'name'")
        if entry.weights_from is not None and entry.weights_from not in folders:
            raise ValueError(f"{name}: " + unknown("weights_from", entry.weights_from, folders))
        folders[name] = {}
        for backbone in _backbones(entry, study.twins):
            for seed in entry.seeds if entry.seeds is not None else study.seeds:
                label = f"{_folder_name(backbone)}-seed{seed}"
                if entry.weights_from is not None:
                    source = folders[entry.weights_from].get(label)
                    if source is None:
                        raise ValueError(f"{name}: {entry.weights_from} has no {label}")
                    backbone = {**backbone, "weights": str(source / files.WEIGHTS)}
                root = _data_root(entry, study, output)
                cell = Cell(
                    name, output / name / label, _experiment(entry, backbone, root, seed, imports)
                )
                folders[name][label] = cell.directory
                # Two SE networks may have the same plain twin: it runs once.
                first = cells.setdefault(str(cell.directory), cell)
                if first.experiment.hash != cell.experiment.hash:
                    raise ValueError(
                        f"{name}: two networks would share the directory {label}; give their "
                        "weights or options names that differ, or make two entries of them"
                    )
    return list(cells.values())


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


def make_sample_data(study: Study, output: Path) -> None:
    """Make the study's own data in ``output/data``, unless they are there."""
    from tools import sample_data  # needs NumPy, which takes a while to import

    for name, arguments in study.sample_data.items():
        maker = sample_data.MAKERS.get(name)
        if maker is None:
            raise ValueError(unknown("sample data", name, sample_data.MAKERS))
        try:
            maker(output / _DATA / name, **(arguments or {}))
        except TypeError as error:
            raise ValueError(f"sample_data.{name}: {error}") from error


def run_cells(
    cells: list[Cell],
    output: Path,
    jobs: int = 1,
    command: str | None = None,
    started: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[Outcome]:
    """Run what is not recorded yet, ``jobs`` cells at a time, and yield each as it ends.

    What a cell prints goes to ``output/logs``. A cell whose weights come from another waits for
    it. Closing the iterator, as Ctrl-C does, ends the cells that are running; they resume later.
    """
    waiting, running, ended = list(cells), {}, {}
    context = start_workers({cell.experiment.task for cell in cells})
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // jobs)
    # One for all: the code that runs is what was imported when the first cell started.
    origin = {"command": command, "git": read_git()}
    try:
        while waiting or running:
            for cell in list(waiting):
                source = _weights_source(cell, cells)
                if source is not None and source.directory not in ended:
                    continue
                if len(running) == jobs:
                    break
                waiting.remove(cell)
                record = read_recorded(cell.experiment, cell.directory)
                if record is not None:
                    outcome = Outcome(cell, 0.0, record, skipped=True)
                elif source is not None and ended[source.directory].error:
                    outcome = Outcome(cell, 0.0, error=f"its weights come from {source.label}")
                else:
                    started(cell)
                    slot = min(set(range(jobs)) - {slot for _, _, slot in running.values()})
                    process = _start(context, cell, output, threads, slot, origin)
                    running[process[1]] = (cell, process, slot)
                    continue
                ended[cell.directory] = outcome
                yield outcome
            # A process that was killed says nothing, and its children may hold the pipe open.
            ends = {process.sentinel: key for key, (_, (process, *_), _) in running.items()}
            ready = wait([*running, *ends], timeout=0.5)
            for receiver in {ends.get(end, end) for end in ready}:
                cell, process, _ = running.pop(receiver)
                outcome = ended[cell.directory] = _finish(cell, output, *process)
                yield outcome
    finally:
        _stop([process for _, (process, *_), _ in running.values()])


# Planning ----------------------------------------------------------------------------------------


def _entry_name(entry: StudyEntry) -> str:
    """The folder of an entry: one name, and none of those that stand beside the entries."""
    name = entry.name or Path(entry.recipe).stem
    if name in (_DATA, _LOGS, _REPORT) or not re.fullmatch(r"\w[\w.=+, -]{0,99}", name):
        raise ValueError(
            f"name={name!r}: it names a folder; use letters, digits, spaces and any of . = + , - _ "
            f"(and not {_DATA}, {_LOGS} or {_REPORT})"
        )
    return name


def _experiment(
    entry: StudyEntry,
    backbone: Mapping[str, Any],
    root: str | None,
    seed: int,
    imports: Sequence[str | Path],
) -> Experiment:
    network = {key: backbone[key] for key in ("name", "options", "weights") if backbone.get(key)}
    if backbone.get("twin"):
        twin = _named(backbone["twin"])
        network |= {"twin": twin["name"], "twin_options": twin["options"]}
    data = {"name": entry.data, "root": root}
    named = {
        "backbone": network,
        "data": {key: value for key, value in data.items() if value is not None},
        "seed": seed,
    }
    settings = merge(entry.settings, named)
    return load_experiment(entry.task, entry.recipe, settings=settings, imports=imports)


def _named(item: Any) -> dict[str, Any]:
    """A network given by its name, or as {name: ..., options: {...}}: always the latter."""
    network = {"name": item} if isinstance(item, str) else item
    if (
        not isinstance(network, Mapping)
        or set(network) - {"name", "options"}
        or not isinstance(network.get("name"), str)
        or not isinstance(network.get("options", {}), Mapping)
    ):
        raise ValueError(f"twin: {item!r}: give a name, or a name and options")
    return {"name": network["name"], "options": dict(network.get("options", {}))}


def _backbones(entry: StudyEntry, twins: bool) -> list[dict[str, Any]]:
    """Each network of an entry after its plain twin, none twice."""
    found: list[dict[str, Any]] = []
    for item in entry.backbones:
        backbone = {"name": item} if isinstance(item, str) else item
        if (
            not isinstance(backbone, Mapping)
            or set(backbone) - {"name", "options", "weights", "twin"}
            or not isinstance(backbone.get("name"), str)
            or not isinstance(backbone.get("options", {}), Mapping)
            or not isinstance(backbone.get("weights", ""), str)
        ):
            raise ValueError(
                f"backbones: {item!r}: give a name, or name, options, weights and twin"
            )
        backbone = dict(backbone)
        if backbone.get("twin"):
            plain = _named(backbone["twin"])
        else:
            twin = twin_of(backbone["name"], backbone.get("options", {}))
            plain = {"name": twin[0], "options": twin[1]} if twin else None
        # A twin has weights of its own; where a network starts from some, both are listed.
        if twins and plain is not None and "weights" not in backbone:
            if not plain["options"]:
                del plain["options"]
            if plain not in found:
                found.append(plain)
        if backbone not in found:
            found.append(backbone)
    return found


def _folder_name(backbone: Mapping[str, Any]) -> str:
    options = [f"{key}={value}" for key, value in backbone.get("options", {}).items()]
    parts = [backbone["name"], *options]
    if backbone.get("weights"):
        path = Path(backbone["weights"])
        # The weights of a run are all called the same: its folder says which they are.
        parts.append(path.parent.name if path.name == files.WEIGHTS else path.stem)
    return re.sub(r"[^\w.=+,-]+", "_", "-".join(parts))[:120]


def _data_root(entry: StudyEntry, study: Study, output: Path) -> str | None:
    if entry.sample is None:
        return entry.data_root
    if entry.sample not in study.sample_data:
        raise ValueError(unknown("sample", entry.sample, study.sample_data))
    return str(output / _DATA / entry.sample)


def _weights_source(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The cell whose weights this one starts from."""
    weights = cell.experiment.config.backbone.weights
    folder = Path(weights).parent if weights else None
    return next((other for other in cells if other.directory == folder), None)


# Running -----------------------------------------------------------------------------------------


def _start(
    context: Any, cell: Cell, output: Path, threads: int, slot: int, origin: dict[str, Any]
) -> tuple[Any, Connection, float]:
    receiver, sender = context.Pipe(duplex=False)
    log = _log_path(cell, output)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = (cell.experiment, cell.directory, log, threads, slot, origin, sender)
    process = context.Process(target=_run_cell, args=arguments, name=cell.label)
    process.start()
    sender.close()
    return process, receiver, time.monotonic()


def _finish(cell: Cell, output: Path, process: Any, receiver: Connection, begun: float) -> Outcome:
    """What the process of a cell has sent; one that died without a word has failed."""
    record = error = None
    if receiver.poll():
        with contextlib.suppress(EOFError):
            record, error = receiver.recv()
    process.join()
    if record is None and error is None:
        error = f"{_how_it_ended(process.exitcode)}; see {_log_path(cell, output)}"
    return Outcome(cell, time.monotonic() - begun, record, error)


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
    return output / _LOGS / f"{cell.entry}-{cell.directory.name}.txt"


def _run_cell(
    experiment: Experiment,
    directory: Path,
    log: Path,
    threads: int,
    slot: int,
    origin: dict[str, Any],
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
            record = run_experiment(experiment, directory, resume=resume, **origin)
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
