"""A study: networks x tasks x seeds, each network beside its plain twin, read and planned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import unknown
from backbones.registry import load_user_module, twin_of
from tools.experiments.experiment import Experiment, check_imports, load_experiment
from tools.experiments.run import read_recorded
from tools.experiments.settings import build_settings, merge, read_yaml

DATA, LOGS, REPORT = "data", "logs", "report"  # folders beside the entries'


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
    number: int = 0  # its place in the plan, from 0
    source: Path | None = None  # directory of the cell whose weights it starts from

    @property
    def name(self) -> str:
        """Its folder in the study's, which patterns are matched with."""
        return f"{self.entry}/{self.directory.name}"

    @property
    def label(self) -> str:
        return f"{self.entry} · {self.directory.name}"

    def status(self) -> str:
        """'recorded', 'interrupted' or 'to run'."""
        if read_recorded(self.experiment, self.directory):
            return "recorded"
        started = (self.directory / files.CHECKPOINT).exists()
        return "interrupted" if started else "to run"


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
    """The cells in the order they run in; the synthetic data they need must have been made.

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
                source = None
                if entry.weights_from is not None:
                    source = folders[entry.weights_from].get(label)
                    if source is None:
                        raise ValueError(f"{name}: {entry.weights_from} has no {label}")
                    backbone = {**backbone, "weights": str(source / files.WEIGHTS)}
                root = _data_root(entry, study, output)
                experiment = _experiment(entry, backbone, root, seed, imports)
                cell = Cell(name, output / name / label, experiment, len(cells), source)
                folders[name][label] = cell.directory
                # Two SE networks may have the same plain twin: it runs once.
                first = cells.setdefault(str(cell.directory), cell)
                if first is not cell and first.experiment.hash != cell.experiment.hash:
                    raise ValueError(
                        f"{name}: two networks would share the directory {label}; give their "
                        "weights or options names that differ, or make two entries of them"
                    )
    return list(cells.values())


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


def _entry_name(entry: StudyEntry) -> str:
    """The folder of an entry: one name, and none of those that stand beside the entries."""
    name = entry.name or Path(entry.recipe).stem
    if name in (DATA, LOGS, REPORT) or not re.fullmatch(r"\w[\w.=+, -]{0,99}", name):
        raise ValueError(
            f"name={name!r}: it names a folder; use letters, digits, spaces and any of . = + , - _ "
            f"(and not {DATA}, {LOGS} or {REPORT})"
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
    network: Any = {"name": item} if isinstance(item, str) else item
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
        backbone: Any = {"name": item} if isinstance(item, str) else item
        if (
            not isinstance(backbone, Mapping)
            or set(backbone) - {"name", "options", "weights", "twin"}
            or not isinstance(backbone.get("name"), str)
            or not isinstance(backbone.get("options", {}), Mapping)
            or not isinstance(backbone.get("weights", ""), str)
        ):
            raise ValueError(
                f"{_entry_name(entry)}: backbones: {item!r}: give a name, or name, options, weights "
                "and twin"
            )
        backbone = dict(backbone)
        if backbone.get("twin"):
            plain = _named(backbone["twin"])
        else:
            twin = twin_of(backbone["name"], backbone.get("options", {}))
            plain = {"name": twin[0], "options": twin[1]} if twin else {}
        # A twin has weights of its own; where a network starts from some, both are listed.
        if twins and plain and "weights" not in backbone:
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
    return str(output / DATA / entry.sample)
