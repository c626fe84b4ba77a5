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
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backbones.device import keep_large_tensors_on_heap
from backbones.zoo import load_user_module, twin_of
from tools import sample_data
from tools.experiments.record import Record, read_git
from tools.experiments.run import (
    CHECKPOINT_FILE,
    SETTINGS_FILE,
    TASKS,
    Experiment,
    load_experiment,
    read_recorded,
    run_experiment,
)
from tools.experiments.settings import build_settings, read_yaml, unknown

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class StudyEntry:
    """One task and recipe with the networks to run it on."""

    task: str  # a key of TASKS
    recipe: str  # name, or path of a file
    # Names, or {name: ..., options: {...}, weights: ..., twin: ...}; plain twins of SE networks join
    # them: those of the table, or the one that `twin` names.
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
    imports: list[str] = field(default_factory=list)  # files that register networks of one's own
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
        started = (self.directory / CHECKPOINT_FILE).exists()
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


def plan(study: Study, output: Path) -> list[Cell]:
    """The cells in the order they run in; the sample data they need must have been made.

    Raises:
        ValueError: anything wrong with any experiment's settings.
    """
    for path in study.imports:
        load_user_module(path)
    cells: dict[str, Cell] = {}
    folders: dict[str, dict[str, Path]] = {}  # entry -> backbone and seed -> its directory
    for entry in study.experiments:
        name = entry.name or Path(entry.recipe).stem
        if name in folders:
            raise ValueError(f"two experiments are called {name!r}; give one of them a 'name'")
        if entry.weights_from is not None and entry.weights_from not in folders:
            raise ValueError(f"{name}: " + unknown("weights_from", entry.weights_from, folders))
        folders[name] = {}
        for backbone in _backbones(entry, study.twins):
            for seed in entry.seeds if entry.seeds is not None else study.seeds:
                label = f"{_folder_name(backbone)}-seed{seed}"
                weights = backbone.get("weights")
                if entry.weights_from is not None:
                    source = folders[entry.weights_from].get(label)
                    if source is None:
                        raise ValueError(f"{name}: {entry.weights_from} has no {label}")
                    weights = source / WEIGHTS_FILE
                settings = dict(entry.settings)
                if backbone.get("twin"):
                    named = {"twin": backbone["twin"]}
                    settings["backbone"] = {**settings.get("backbone", {}), **named}
                experiment = load_experiment(
                    entry.task,
                    entry.recipe,
                    backbone=backbone["name"],
                    options=backbone.get("options"),
                    weights=weights,
                    data=entry.data,
                    data_root=_data_root(entry, study, output),
                    seed=seed,
                    imports=study.imports,
                    settings=settings,
                )
                directory = output / name / label
                folders[name][label] = directory
                # Two SE networks may have the same plain twin: it runs once.
                cells.setdefault(str(directory), Cell(name, directory, experiment))
    return list(cells.values())


def start_workers(tasks: Iterable[str]) -> Any:
    """Begin to import what runs of ``tasks`` need, once for all; gives what starts their processes.

    A later call for the same tasks finds it done.
    """
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if context.get_start_method() == "forkserver":
        # Every optimizer asks for torch._dynamo, which takes seconds to import.
        doors = [TASKS[task].door for task in sorted(set(tasks))]
        context.set_forkserver_preload(["torch._dynamo", *doors])
        forkserver.ensure_running()
    return context


def make_sample_data(study: Study, output: Path) -> None:
    """Make the study's own data in ``output/data``, unless they are there."""
    for name, arguments in study.sample_data.items():
        maker = sample_data.MAKERS.get(name)
        if maker is None:
            raise ValueError(unknown("sample data", name, sample_data.MAKERS))
        try:
            maker(output / "data" / name, **(arguments or {}))
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
                record = read_recorded(_fresh(cell.experiment), cell.directory)
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
            for receiver in wait(list(running), timeout=0.5):
                cell, process, _ = running.pop(receiver)
                outcome = ended[cell.directory] = _finish(cell, output, *process)
                yield outcome
    finally:
        for _, (process, *_), _ in running.values():
            process.terminate()
        for _, (process, *_), _ in running.values():
            process.join(timeout=10)


# Planning ----------------------------------------------------------------------------------------


def _backbones(entry: StudyEntry, twins: bool) -> list[dict[str, Any]]:
    """Each network of an entry after its plain twin, none twice."""
    found: list[dict[str, Any]] = []
    for item in entry.backbones:
        backbone = {"name": item} if isinstance(item, str) else dict(item)
        strange = set(backbone) - {"name", "options", "weights", "twin"}
        if strange or "name" not in backbone:
            raise ValueError(
                f"backbones: {item!r}: give a name, or name, options, weights and twin"
            )
        twin = twin_of(backbone["name"], backbone.get("options") or {})
        if backbone.get("twin"):
            twin = (backbone["twin"], {})
        # A twin has weights of its own; where a network starts from some, both are listed.
        if twins and twin is not None and "weights" not in backbone:
            plain = {"name": twin[0]} | ({"options": twin[1]} if "options" in backbone else {})
            if plain not in found:
                found.append(plain)
        if backbone not in found:
            found.append(backbone)
    return found


def _folder_name(backbone: dict[str, Any]) -> str:
    options = [f"{key}={value}" for key, value in (backbone.get("options") or {}).items()]
    weights = [Path(backbone["weights"]).stem] if backbone.get("weights") else []
    return re.sub(r"[^\w.=+,-]+", "_", "-".join([backbone["name"], *options, *weights]))[:120]


def _data_root(entry: StudyEntry, study: Study, output: Path) -> str | None:
    if entry.sample is None:
        return entry.data_root
    if entry.sample not in study.sample_data:
        raise ValueError(unknown("sample", entry.sample, study.sample_data))
    return str(output / "data" / entry.sample)


def _weights_source(cell: Cell, cells: list[Cell]) -> Cell | None:
    """The cell whose product this one starts from."""
    weights = cell.experiment.config.backbone.weights
    folder = Path(weights).parent if weights else None
    return next((other for other in cells if other.directory == folder), None)


def _fresh(experiment: Experiment) -> Experiment:
    """The same experiment, with an identity computed anew: its weights may have come since."""
    return dataclasses.replace(experiment)


# Running -----------------------------------------------------------------------------------------


def _start(
    context: Any, cell: Cell, output: Path, threads: int, slot: int, origin: dict[str, Any]
) -> tuple[Any, Connection, float]:
    receiver, sender = context.Pipe(duplex=False)
    log = _log_path(cell, output)
    log.parent.mkdir(parents=True, exist_ok=True)
    experiment = _fresh(cell.experiment)
    arguments = (experiment, cell.directory, log, threads, slot, origin, sender)
    process = context.Process(target=_run_cell, args=arguments, name=cell.label)
    process.start()
    sender.close()
    return process, receiver, time.monotonic()


def _finish(cell: Cell, output: Path, process: Any, receiver: Connection, begun: float) -> Outcome:
    """What the process of a cell has sent; one that died without a word has failed."""
    record = error = None
    with contextlib.suppress(EOFError):
        record, error = receiver.recv()
    process.join()
    if record is None and error is None:
        error = f"ended with code {process.exitcode}; see {_log_path(cell, output)}"
    return Outcome(cell, time.monotonic() - begun, record, error)


def _log_path(cell: Cell, output: Path) -> Path:
    return output / "logs" / f"{cell.entry}-{cell.directory.name}.txt"


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
            resume = (directory / SETTINGS_FILE).exists() and (directory / CHECKPOINT_FILE).exists()
            record = run_experiment(experiment, directory, resume=resume, **origin)
            sender.send((record, None))
        except (Exception, KeyboardInterrupt) as error:
            traceback.print_exc()
            expected = isinstance(error, (ValueError, OSError))
            text = str(error) if expected else f"{type(error).__name__}: {error} (see {log})"
            sender.send((None, text))
