"""A study: networks x settings x tasks x seeds, each network beside its plain twin, read and planned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

from backbones import files
from backbones.config import Count, Positive, WholeNumber, printable, unknown
from backbones.registry import load_user_module
from tools.experiments.experiment import Experiment, check_imports, load_experiment
from tools.experiments.networks import expand, folder_name, read_twin
from tools.experiments.run import read_recorded
from tools.experiments.settings import build_settings, merge, nest, read_yaml

DATA, LOGS, REPORT = "data", "logs", "report"  # folders beside the entries'


@dataclass(frozen=True)
class Needs:
    """What one cell takes of a machine; None: what the executor thinks right."""

    processes: Count = 1  # that train it together, as torchrun starts them; they share the batch
    gpus: WholeNumber | None = None  # None: one for each process, where there are any
    cores: Count | None = None
    memory_gb: Positive | None = None  # main memory, gigabytes


@dataclass(frozen=True)
class StudyEntry:
    """One task with the networks, recipes and settings to run it on."""

    task: str  # a key of TASKS
    recipe: Any  # name, or path of a file; or a list of them, each an entry NAME-RECIPE of its own
    # Names, patterns, or {name: ..., options: {...}, weights: ..., twin: ...}; options join the
    # recipe's. Plain twins of SE networks join them: those of the table, or the one that `twin`
    # declares, by its name or as {name: ..., options: {...}}.
    backbones: list[Any]
    name: str | None = None  # names the folder and other entries' weights_from; default recipe
    data: str | None = None
    data_root: str | None = None
    sample: str | None = None  # instead of data_root: one of the study's sample_data
    weights_from: str | None = None  # an earlier entry; each network starts from its weights
    weights_seed: int | None = None  # the seed there that all start from; default: each its own
    settings: dict[str, Any] = field(default_factory=dict)  # over the recipe's, nested alike
    variants: dict[str, Any] = field(default_factory=dict)  # name -> settings; entries NAME-VARIANT
    seeds: list[int] | None = None  # default: the study's
    needs: dict[str, Any] = field(default_factory=dict)  # over the study's


@dataclass(frozen=True)
class Looks:
    """Seeds 0, 1, ... after some numbers of which a study is looked at, and what ends it there.

    The p-value of each look has a level of its own (`tools.statistics.planning.look_levels`), so that all
    looks together err in no more than 5 % of studies: the plan must be fixed before the first run.
    """

    looks: list[Count]  # numbers of seeds, rising; the last is the whole study
    stop: Literal["significant", "equivalent"] = "significant"  # what every comparison must be

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in pairwise(self.looks))
        if (
            not 1 <= len(self.looks) <= 50
            or not rises
            or not 2 <= self.looks[0] <= self.looks[-1] <= 1000
        ):
            raise ValueError(
                f"seeds.looks={list(self.looks)[:50]}: give up to 50 rising numbers of seeds, 2 to 1000"
            )


@dataclass(frozen=True)
class Study:
    """What a study's YAML file holds. Patterns are held against "ENTRY/NETWORK-seedN"."""

    experiments: list[StudyEntry]
    seeds: list[int] | Looks = field(default_factory=lambda: [0])
    # Whether the plain twin of every SE network is added; or which: equal_depth, parameters and
    # multiply_adds, the latter two wider or deeper (`backbones.equal_cost`).
    twins: bool | list[str] = True
    # Files that register networks of one's own; run only where `--import` names them too.
    imports: list[str] = field(default_factory=list)
    # Sets to make in the output folder: name -> arguments of its maker in tools.sample_data.
    sample_data: dict[str, Any] = field(default_factory=dict)
    include: list[str] = field(default_factory=list)  # cells that match one of these; default all
    exclude: list[str] = field(default_factory=list)  # and none of these
    overrides: dict[str, Any] = field(default_factory=dict)  # pattern -> settings of those cells
    needs: dict[str, Any] = field(default_factory=dict)  # of a cell: the fields of Needs

    @property
    def looks(self) -> Looks | None:
        """When it is looked at before its end, if it is."""
        return self.seeds if isinstance(self.seeds, Looks) else None

    def seeds_of(self, entry: StudyEntry) -> list[int]:
        """The seeds that an entry may run with.

        Raises:
            ValueError: it has seeds of its own in a study with looks.
        """
        if not isinstance(self.seeds, Looks):
            return self.seeds if entry.seeds is None else entry.seeds
        if entry.seeds is not None:
            raise ValueError(
                f"{_entry_name(entry)}: seeds={entry.seeds} beside seeds.looks of the study; leave it out"
            )
        return list(range(self.seeds.looks[-1]))


@dataclass(frozen=True)
class Cell:
    """One experiment of a study and its place."""

    entry: str
    directory: Path
    experiment: Experiment
    number: int = 0  # its place in the plan, from 0
    source: Path | None = None  # directory of the cell whose weights it starts from
    needs: Needs = Needs()

    @property
    def name(self) -> str:
        """Its folder in the study's, which patterns are held against."""
        return f"{self.entry}/{self.directory.name}"

    @property
    def seed(self) -> int:
        """Of its weights and the order of its data."""
        return self.experiment.config.seed

    @property
    def output(self) -> Path:
        """The study's folder."""
        return self.directory.parents[1]

    @property
    def log(self) -> Path:
        """What it prints, over all attempts."""
        return self.output / LOGS / f"{self.name.replace('/', '-')}.txt"

    @property
    def makes_data(self) -> bool:
        """Whether its data are synthetic ones, which the study itself makes before it runs."""
        root = self.experiment.config.data.root
        return root is not None and Path(root).parent == self.output / DATA

    @property
    def label(self) -> str:
        """For people: its entry in the study and its folder."""
        return f"{self.entry} · {self.directory.name}"

    def gpus(self, there: bool) -> int:
        """How many it takes: as it needs, or one for each process where there are any."""
        config = self.experiment.config
        if self.needs.gpus is not None:
            return self.needs.gpus
        if config.device == "cpu" or not there:
            return 0
        return max(self.needs.processes, getattr(config, "processes", 1))

    def status(self) -> str:
        """'recorded', 'interrupted' or 'to run'."""
        if read_recorded(self.experiment, self.directory):
            return "recorded"
        started = (self.directory / files.CHECKPOINT).exists()
        return "interrupted" if started else "to run"

    def check(self) -> dict[str, Any]:
        """Check settings and data, but for weights that another cell is still to write.

        Raises:
            ValueError: what is wrong.
        """
        config = self.experiment.config
        if self.source is not None and not (self.source / files.WEIGHTS).exists():
            config = replace(config, backbone=replace(config.backbone, weights=None))
            if getattr(getattr(config, "detector", None), "norm", None) == "FrozenBN":
                config = replace(config, detector=replace(config.detector, norm="BN", freeze_at=0))
        training = self.experiment.action == "train"
        return self.experiment.entry_points().check(config, training=training)


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
    built: list[StudyEntry] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, experiment {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected keys with values")
        for key in ("task", "recipe", "backbones"):
            if key not in entry:
                raise ValueError(f"{where}: lacks {key!r}")
        built.extend(_variants(build_settings(StudyEntry, [(where, entry)]), where))
    return replace(study, experiments=built)


def plan(study: Study, output: Path, imports: Sequence[str | Path] = ()) -> list[Cell]:
    """The cells in the order they run in; data are not looked at.

    Args:
        imports: Python files that a person has named; those that the study names are not run
            otherwise.

    Raises:
        ValueError: anything wrong with any experiment's settings.
    """
    check_imports("the study", study.imports, imports)
    for path in imports:
        load_user_module(path)
    cells: dict[Path, Cell] = {}
    entries: dict[str, dict[str, Path]] = {}  # entry -> network and seed -> its directory
    for entry in study.experiments:
        name = _entry_name(entry)
        if name in entries:
            raise ValueError(f"two experiments are called {name!r}; give one of them a 'name'")
        if entry.weights_from is not None and entry.weights_from not in entries:
            raise ValueError(f"{name}: " + unknown("weights_from", entry.weights_from, entries))
        needs = build_settings(Needs, [("needs", study.needs), (f"{name}: needs", entry.needs)])
        networks = expand(entry.backbones, study.twins, name)
        entries[name] = {}
        for network, seed in product(networks, study.seeds_of(entry)):
            folder = f"{folder_name(network)}-seed{seed}"
            source = _source(entry, name, network, seed, entries)
            directory = output / name / folder
            experiment = _experiment(study, entry, network, seed, directory, source, imports)
            cell = Cell(name, directory, experiment, len(cells), source, needs)
            entries[name][folder] = directory
            # Two SE networks may have the same plain twin: it runs once.
            first = cells.setdefault(directory, cell)
            if first is not cell and first.experiment.hash != cell.experiment.hash:
                raise ValueError(
                    f"{name}: two networks would share the directory {folder}; give their "
                    "weights or options names that differ, or make two entries of them"
                )
    return _chosen(study, list(cells.values()))


def networks_of(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells that differ in their seed alone, by ENTRY/NETWORK."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.name.rpartition("-seed")[0], []).append(cell)
    return found


def look(cells: Iterable[Cell]) -> tuple[dict[str, int], dict[str, str]]:
    """Check each network of a study once.

    Returns the reported images of each entry, and what forbids a network to run, by ENTRY/NETWORK.
    """
    images: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name, (cell, *_) in networks_of(cells).items():
        try:
            images[cell.entry] = cell.check()["dataset"]["images"]
        except (ValueError, OSError) as error:
            missing[name] = str(error)
    return images, missing


def select(cells: Iterable[Cell], patterns: Sequence[str], what: str) -> list[Cell]:
    """The cells that match one of some patterns, e.g. "imagenet/se_*-seed0".

    Raises:
        ValueError: a pattern that matches none, with near matches.
    """
    cells = list(cells)
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            entries = dict.fromkeys(cell.entry for cell in cells)
            entry = pattern.partition("/")[0]
            near = "" if entry in entries else f"; {unknown('entry', entry, entries)}"
            raise ValueError(
                f"{what}: {printable(pattern)!r} matches no cell; they are called "
                f"{cells[0].name} and so on{near}"
            )
    return [cell for cell in cells if any(fnmatchcase(cell.name, text) for text in patterns)]


def require_sources(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> None:
    """Raise a ValueError where a chosen cell waits for one that is neither chosen nor recorded."""
    chosen = {cell.directory for cell in cells}
    by_directory = {cell.directory: cell for cell in all_cells}
    for cell in cells:
        if cell.source is not None and cell.source not in chosen:
            source = by_directory[cell.source]
            if source.status() != "recorded":
                raise ValueError(
                    f"{cell.name} starts from the weights of {source.name}, which is not recorded; "
                    f"choose that too: --only {source.name!r}"
                )


def make_sample_data(study: Study, output: Path) -> None:
    """Make the study's own data in ``output/data``, unless they are there."""
    from tools import sample_data  # needs NumPy, which takes a while to import

    for name, arguments in study.sample_data.items():
        maker = sample_data.MAKERS.get(name)
        if maker is None:
            raise ValueError(unknown("synthetic data set", name, sample_data.MAKERS))
        try:
            maker(output / DATA / name, **(arguments or {}))
        except TypeError as error:
            raise ValueError(f"sample_data.{name}: {error}") from error


# Parts -------------------------------------------------------------------------------------------


def _variants(entry: StudyEntry, where: str) -> Iterator[StudyEntry]:
    """An entry for each recipe and each variant of the settings."""
    recipes = entry.recipe if isinstance(entry.recipe, list) else [entry.recipe]
    if not recipes or not all(isinstance(recipe, str) for recipe in recipes):
        raise ValueError(f"{where}: recipe={entry.recipe!r}: give a name, or a list of names")
    for recipe in recipes:
        stem = Path(recipe).stem
        parts = [entry.name or stem] if len(recipes) == 1 else [entry.name or "", stem]
        for variant, settings in (entry.variants or {"": {}}).items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"{where}: variants.{variant}={settings!r}: give settings")
            yield replace(
                entry,
                recipe=recipe,
                name="-".join(filter(None, [*parts, variant])),
                settings=merge(entry.settings, settings),
                variants={},
            )


def _entry_name(entry: StudyEntry) -> str:
    """The folder of an entry: one name, and none of those that stand beside the entries."""
    name = entry.name or Path(entry.recipe).stem
    if name in (DATA, LOGS, REPORT) or not re.fullmatch(r"\w[\w.=+, -]{0,99}", name):
        raise ValueError(
            f"name={name!r}: it names a folder; use letters, digits, spaces and any of . = + , - _ "
            f"(and not {DATA}, {LOGS} or {REPORT})"
        )
    return name


def _source(
    entry: StudyEntry,
    name: str,
    network: Mapping[str, Any],
    seed: int,
    entries: Mapping[str, Mapping[str, Path]],
) -> Path | None:
    """The directory of the cell whose weights a network starts from."""
    if entry.weights_from is None:
        return None
    wanted = seed if entry.weights_seed is None else entry.weights_seed
    folder = f"{folder_name(network)}-seed{wanted}"
    source = entries[entry.weights_from].get(folder)
    if source is None:
        raise ValueError(
            f"{name}: {entry.weights_from} has no {folder}; give it that seed, or choose one that it "
            "has as weights_seed"
        )
    return source


def _experiment(
    study: Study,
    entry: StudyEntry,
    network: Mapping[str, Any],
    seed: int,
    directory: Path,
    source: Path | None,
    imports: Sequence[str | Path],
) -> Experiment:
    weights = str(source / files.WEIGHTS) if source else network.get("weights") or None
    twin = read_twin(network["twin"]) if network.get("twin") else {}
    root = entry.data_root
    if entry.sample is not None:
        if entry.sample not in study.sample_data:
            raise ValueError(unknown("sample", entry.sample, study.sample_data))
        root = str(directory.parents[1] / DATA / entry.sample)
    named = nest(
        {
            "backbone.name": network["name"],
            "backbone.options": network.get("options"),
            "backbone.weights": weights,
            "backbone.twin": twin.get("name"),
            "backbone.twin_options": twin.get("options"),
            "data.name": entry.data,
            "data.root": root,
            "seed": seed,
        }
    )
    cell = f"{directory.parent.name}/{directory.name}"
    settings = entry.settings
    for pattern, changes in study.overrides.items():
        if not isinstance(changes, Mapping):
            raise ValueError(f"overrides.{pattern}={changes!r}: give settings")
        if fnmatchcase(cell, pattern):
            settings = merge(settings, changes)
    try:
        return load_experiment(
            entry.task, entry.recipe, settings=merge(settings, named), imports=imports
        )
    except ValueError as error:
        raise ValueError(f"{cell}: {error}") from None


def _chosen(study: Study, cells: list[Cell]) -> list[Cell]:
    """Without what the study leaves out; patterns that match nothing are mistakes."""
    select(cells, list(study.overrides), "overrides")
    chosen = select(cells, study.include, "include") if study.include else cells
    left_out = {cell.directory for cell in select(cells, study.exclude, "exclude")}
    chosen = [cell for cell in chosen if cell.directory not in left_out]
    if not chosen:
        raise ValueError("include and exclude leave no cell")
    kept = {cell.directory for cell in chosen}
    for cell in chosen:
        if cell.source is not None and cell.source not in kept:
            raise ValueError(
                f"{cell.name} starts from the weights of {cell.source.parent.name}/"
                f"{cell.source.name}, which include or exclude leave out"
            )
    return [replace(cell, number=number) for number, cell in enumerate(chosen)]
