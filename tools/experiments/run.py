"""Experiments: a task, a recipe and overrides become one typed, frozen, hashed description.

    experiment = load_experiment("classification", "cifar-resnet", ["train.epochs=10"], seed=1)
    record = run_experiment(experiment, Path("runs/resnet20-1"))

Two experiments are the same when everything that can change the result is the same: that is what
`Experiment.hash` covers. `Experiment.comparison_hash` leaves out backbone and seed as well, so that a
network and its twin share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from backbones import files
from backbones.config import unknown
from backbones.registry import describe_backbone, load_user_module, twin_of
from tools.experiments.record import Git, Record, build_record, read_record, write_record
from tools.experiments.settings import build_settings, parse_override, read_yaml

ACTIONS = ("train", "evaluate")
# Packages whose log belongs to a run.
LOGGERS = ("backbones", "classification", "scene", "detection", "detectron2", "fvcore")


@dataclass(frozen=True)
class Task:
    config: str  # "module:class" of its settings; importing the module does not import torch
    door: str  # module with check, train and evaluate
    recipes: str  # package whose folder `recipes` holds them
    training_only: tuple[str, ...]  # settings that an evaluation does not read


TASKS = {
    "classification": Task(
        "classification.config:ClassificationConfig",
        "classification.run",
        "classification",
        ("augment", "train"),
    ),
    "scene": Task(
        "classification.config:ClassificationConfig",
        "scene.run",
        "scene",
        ("augment", "train"),
    ),
    "detection": Task(
        "detection.config:DetectionConfig",
        "detection.run",
        "detection",
        ("train",),
    ),
}


@dataclass(frozen=True)
class Experiment:
    task: str  # a key of TASKS
    recipe: str  # name of a shipped recipe, or path of a file; says where settings came from
    config: Any  # the task's frozen settings
    action: str = "train"  # or "evaluate": weights that are there already

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values; an evaluation has none of training's."""
        settings = dataclasses.asdict(self.config)
        if self.action == "evaluate":
            for key in TASKS[self.task].training_only:
                del settings[key]
        return settings

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What can change the result, as plain values.

        Weights count by their content and sample data by how they were made, wherever they lie.
        """
        identity = {"task": self.task, "action": self.action, **_identity_fields(self.config)}
        for key in TASKS[self.task].training_only if self.action == "evaluate" else ():
            del identity[key]
        weights = self.config.backbone.weights
        if weights and Path(weights).is_file():
            identity["backbone"]["weights"] = f"sha256:{files.sha256(weights)}"
        identity["data"]["synthetic"] = synthetic_marker(self.config.data.root)
        return identity

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits; equal for experiments that must give the same result."""
        return _hash(self.identity)

    @cached_property
    def comparison_hash(self) -> str:
        """As `hash`, without backbone and seed: what twins and repetitions have in common."""
        shared = {k: v for k, v in self.identity.items() if k not in ("backbone", "seed")}
        return _hash(shared)

    def door(self) -> Any:
        """The module that runs this task; imports torch."""
        return importlib.import_module(TASKS[self.task].door)


def load_experiment(
    task: str,
    recipe: str,
    overrides: Iterable[str] = (),
    *,
    action: str = "train",
    backbone: str | None = None,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    data: str | None = None,
    data_root: str | Path | None = None,
    seed: int | None = None,
    imports: Iterable[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> Experiment:
    """Read a recipe and change it: first by ``settings`` (nested, as in a recipe), then by the
    named arguments, last by ``overrides`` ("train.epochs=3").

    ``recipe`` is the name of a shipped recipe or the path of a YAML file, which may be the
    ``settings.yaml`` of a run. Options of the network join those of the recipe, of which a plain
    twin drops what concerns the attention of its SE partner.

    Files come from anyone: Python files that a recipe or ``settings`` name in `backbone.imports`
    are not run unless ``imports``, which a person gives, is there; it takes their place.

    Raises:
        ValueError: anything unknown, with near matches, or of the wrong type, with its full name;
            a file that asks for Python files to be run.
    """
    entry = TASKS.get(task)
    if entry is None:
        raise ValueError(unknown("task", task, TASKS))
    assert action in ACTIONS
    recipe, written = _read_recipe(task, recipe)
    network = {"name": backbone, "weights": weights and str(weights), "options": options}
    imports = [str(path) for path in imports]
    network["imports"] = imports or None
    place = {"name": data, "root": data_root and str(data_root)}
    named = {"backbone": _given(network), "data": _given(place), **_given({"seed": seed})}
    settings = dict(settings or {})
    for source, part in ((f"recipe {recipe}", written), ("settings", settings)):
        check_imports(source, _imports_of(part), imports)
    if isinstance(written.get("backbone"), dict) and backbone is not None:
        written["backbone"]["options"] = _fitting_options(written["backbone"], named)
    parts = [(f"recipe {recipe}", written), ("settings", settings), ("", named)]
    parts += [(text, parse_override(text)) for text in overrides]
    config = build_settings(settings_class(entry), parts)
    for path in config.backbone.imports:
        load_user_module(path)
    for name in filter(None, (config.backbone.name, config.backbone.twin)):
        describe_backbone(name)
    return Experiment(task, recipe, config, action)


def results_experiment(
    results: Path,
    annotations: Path,
    backbone: str,
    overrides: Iterable[str] = (),
    imports: Sequence[str | Path] = (),
) -> Experiment:
    """The evaluation of a COCO results file that came from somewhere else.

    Args:
        results: detections, `[{"image_id", "category_id", "bbox", "score"}, ...]`.
        annotations: the ground truth they are scored against.
        backbone: the network that they came from, which the file does not tell.
        overrides: what else is known: seed=N, backbone.options.KEY=VALUE, or evaluate.evaluator.

    Raises:
        ValueError: an override of what a results file leaves unknown.
    """
    known = {
        "backbone": {
            "name": backbone,
            "weights": str(results),
            "imports": [str(path) for path in imports],
        },
        "data": {"name": "custom", "val_annotations": str(annotations)},
    }
    parts = [("", known)]
    for text in overrides:
        key = text.partition("=")[0]
        if key not in ("seed", "evaluate.evaluator") and not key.startswith("backbone.options"):
            raise ValueError(
                f"{text}: a results file is scored as it is; only seed, backbone.options and "
                "evaluate.evaluator can be told"
            )
        parts.append((text, parse_override(text)))
    config = build_settings(settings_class(TASKS["detection"]), parts)
    for path in imports:
        load_user_module(path)
    describe_backbone(config.backbone.name)
    return Experiment("detection", "unknown (a results file)", config, "evaluate")


def check_imports(source: str, wanted: object, named: Sequence[str | Path]) -> None:
    """Refuse a file that asks for Python files to be run while a person named none.

    Args:
        source: what to call the file in the message.
        wanted: the value of its key `imports`.
        named: what `--import` named.
    """
    if wanted and not named:
        listed = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        mend = " ".join(f"--import {path}" for path in listed)
        raise ValueError(
            f"{source} wants Python files to be run; read them, and if you trust them, pass {mend}"
        )


def list_recipes(task: str) -> dict[str, Path]:
    """Names of the shipped recipes of a task and where they lie."""
    folder = Path(str(resources.files(TASKS[task].recipes))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe_recipe(path: Path) -> str:
    """The first line of the comment a recipe opens with: what it reproduces."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()


def run_experiment(
    experiment: Experiment,
    directory: Path,
    *,
    resume: bool = False,
    command: str | None = None,
    git: Git | None = None,
) -> Record | None:
    """Run, evaluate and record an experiment; the record is written last and whole.

    Returns the record, or None in every process but the first one. Where the directory holds the
    record of this experiment already, that record is returned and nothing is run.

    Raises:
        ValueError: bad input, found before any compute; or the directory belongs to another
            experiment.
    """
    recorded = read_recorded(experiment, directory)
    if recorded is not None:
        return recorded if _is_first_process() else None
    with _run_in(experiment, directory, resume) as door:
        if experiment.action == "train":
            result = door.train(experiment.config, directory, resume=resume)
        else:
            result = door.evaluate(experiment.config, directory)
    if not _is_first_process() or result is None:
        return None
    record = build_record(experiment, result, directory, command, git)
    write_record(record, directory)
    return record


def evaluate_experiments(runs: Mapping[Path, Experiment]) -> Iterator[Record | None]:
    """Evaluate several weights, each into its own directory, and record every result.

    Classifiers that differ in network and weights alone share one pass: every image is read once.
    Where a directory holds the record already, nothing is run.

    Yields:
        Records as they come; None in every process but the first one.
    Raises:
        ValueError: as ``run_experiment``; of a pass, before any of its weights is evaluated.
    """
    passes: dict[tuple[str, ...], list[Path]] = {}
    for directory, experiment in runs.items():
        shared = hasattr(experiment.door(), "evaluate_together")
        if shared and read_recorded(experiment, directory) is None:
            key = (experiment.comparison_hash,)
        else:
            key = (experiment.comparison_hash, str(directory))
        passes.setdefault(key, []).append(directory)
    for directories in passes.values():
        if len(directories) == 1:
            yield run_experiment(runs[directories[0]], directories[0])
            continue
        with ExitStack() as stack:
            for directory in directories:
                door = stack.enter_context(_run_in(runs[directory], directory))
            configs = [(runs[directory].config, directory) for directory in directories]
            results = door.evaluate_together(configs)
        for index, directory in enumerate(directories):
            record = None
            if _is_first_process():
                record = build_record(runs[directory], results[index], directory)
                write_record(record, directory)
            yield record


@contextmanager
def _run_in(experiment: Experiment, directory: Path, resume: bool = False) -> Iterator[Any]:
    """A directory ready for a run, which is logged there; gives the module that runs the task."""
    for path in experiment.config.backbone.imports:
        load_user_module(path)
    module = experiment.door()
    if not _is_first_process():
        yield module
        return
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock_directory(directory):
            prepare_directory(experiment, directory, resume)
            try:
                with files.log_to(directory / files.LOG, LOGGERS):
                    yield module
            except ValueError:
                # Bad input, found before anything was computed: leave no trace of the attempt.
                if _names_in(directory) <= {files.SETTINGS, files.LOG}:
                    for name in (files.SETTINGS, files.LOG):
                        (directory / name).unlink(missing_ok=True)
                raise
    finally:
        with suppress(OSError):
            directory.rmdir()  # only if it is empty


def _is_first_process() -> bool:
    """Of those that torchrun started: the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def read_recorded(experiment: Experiment, directory: Path) -> Record | None:
    """The record of this very experiment in ``directory``, if it is there and sound."""
    path = directory / files.RECORD
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None
    return record if record.hash == experiment.hash else None


def prepare_directory(experiment: Experiment, directory: Path, resume: bool = False) -> None:
    """Make ``directory``, clean it of files that were half written, and write the settings into it.

    Raises:
        ValueError: the directory holds something else, another experiment, or this one
            interrupted while ``resume`` is not asked for; or there is nothing to resume.
    """
    directory = Path(directory)
    path = directory / files.SETTINGS
    started = (directory / files.CHECKPOINT).exists()
    if path.is_file():
        found = read_yaml(path)
        if found.get("experiment") != experiment.hash:
            raise ValueError(
                f"{directory} holds another experiment ({_difference(found, experiment)}); "
                "choose another --output, or delete it"
            )
        if started and not resume:
            raise ValueError(
                f"{directory} holds this experiment, interrupted; go on with --resume, "
                "or delete it to start anew"
            )
    elif directory.exists() and (not directory.is_dir() or _names_in(directory)):
        raise ValueError(f"{directory} is not empty and holds no experiment; choose another")
    if resume and not started:
        raise ValueError(f"nothing to resume: {directory / files.CHECKPOINT} does not exist")
    content = {
        "task": experiment.task,
        "action": experiment.action,
        "recipe": experiment.recipe,
        "experiment": experiment.hash,
        "comparison_hash": experiment.comparison_hash,
        "config": experiment.settings,
    }
    directory.mkdir(parents=True, exist_ok=True)
    # A record there is damaged, or it would have been taken; it speaks of other weights.
    (directory / files.RECORD).unlink(missing_ok=True)
    files.remove_partial_files(directory)
    files.write_whole(path, yaml.safe_dump(content, sort_keys=False))


def _names_in(directory: Path) -> set[str]:
    """What is in a run directory, but for its lock and what a writer that was killed left."""
    names = {path.name for path in directory.iterdir()}
    return {name for name in names if name != files.LOCK and not files.is_partial(name)}


def synthetic_marker(root: str | None) -> str | None:
    """How the sample data in ``root`` were made; None for real data."""
    path = Path(root) / files.SYNTHETIC if root else None
    return path.read_text(encoding="utf-8").strip() if path and path.is_file() else None


# Reading -----------------------------------------------------------------------------------------


def settings_class(task: Task) -> type:
    """The class of a task's settings; importing it does not import torch."""
    module, _, name = task.config.partition(":")
    return getattr(importlib.import_module(module), name)


def _read_recipe(task: str, recipe: str) -> tuple[str, dict[str, Any]]:
    """What a recipe is called, and its content; settings of a run name the recipe they came from."""
    shipped = list_recipes(task)
    path = shipped.get(recipe)
    if path is None:
        path = Path(recipe)
        if path.suffix not in (".yaml", ".yml"):
            elsewhere = [
                other for other in TASKS if other != task and recipe in list_recipes(other)
            ]
            hint = f" (it is one of {elsewhere[0]})" if elsewhere else ""
            raise ValueError(unknown(f"{task} recipe", recipe, shipped) + hint)
        if not path.is_file():
            raise ValueError(f"recipe {recipe}: no such file")
    content = read_yaml(path)
    if "experiment" in content and "config" in content:
        if content.get("task") != task:
            raise ValueError(f"recipe {recipe}: settings of {content.get('task')}, not of {task}")
        return str(content.get("recipe") or recipe), content["config"]
    return recipe, content


def _fitting_options(written: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Options belong to a network: a plain network named in the place of a recipe's SE twin keeps
    those it has itself and drops those of the attention."""
    options, name = dict(written.get("options") or {}), written.get("name")
    if not options or not name or name == named["backbone"]["name"]:
        return options
    for path in named["backbone"].get("imports", ()):
        load_user_module(path)
    twin = twin_of(name, options)
    return twin[1] if twin is not None and twin[0] == named["backbone"]["name"] else options


def _imports_of(part: Mapping[str, Any]) -> object:
    backbone = part.get("backbone")
    return backbone.get("imports") if isinstance(backbone, Mapping) else None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# Identity ----------------------------------------------------------------------------------------


def _identity_fields(settings: Any) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(settings):
        if field.metadata.get("identity", True):
            value = getattr(settings, field.name)
            nested = dataclasses.is_dataclass(value)
            fields[field.name] = _identity_fields(value) if nested else value
    return fields


def _hash(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, allow_nan=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(found: Mapping[str, Any], experiment: Experiment) -> str:
    """The first settings in which a directory's experiment differs, for a message."""

    def flatten(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in part.items():
            nested = isinstance(value, Mapping) and value
            flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
        return flat

    theirs = flatten(
        {k: found.get(k) for k in ("task", "action")} | dict(found.get("config") or {})
    )
    ours = flatten({"task": experiment.task, "action": experiment.action, **experiment.settings})
    ours = json.loads(json.dumps(ours, default=list))
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    shown = [f"{key}: there {theirs.get(key)!r}, here {ours[key]!r}" for key in differing[:3]]
    return "; ".join(shown) or "its data or weights differ"
