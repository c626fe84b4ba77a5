"""Studies that reproduce the paper's tables, made of the tables themselves.

A row says which network, recipe, settings and protocol it was published with; nothing of that is
repeated here. What is here is the smoke scale: the same networks and recipes on synthetic images,
for a few steps, whose numbers are compared with nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backbones.config import describe_settings, unknown
from backbones.files import WEIGHTS
from tools.experiments.experiment import Experiment, load_experiment
from tools.experiments.networks import folder_name
from tools.experiments.settings import merge, parse_override
from tools.experiments.tasks import TASKS, settings_class
from tools.references.tables import Row, Table, canonical, load_references
from tools.references.verdicts import DEFAULT_OPTIONS

Scale = Literal["paper", "smoke"]
# Panels of Figure 4, each a network beside its SE twin; named in arXiv v3 (v4 does not say).
_FIGURE_4 = ("resnet50", "resnet152", "resnext50_32x4d", "bn_inception")
_PRETRAINING = "imagenet-paper"  # where a table starts from ImageNet and no weights are given


@dataclass(frozen=True)
class Smoke:
    """The smoke scale of a data set: how images are made, and what of recipes changes, no network."""

    made: dict[str, Any]  # arguments of tools.sample_data
    settings: dict[str, Any]
    resized: bool = False  # whether images are brought to the size of the recipe's crop


_FEW_STEPS = {
    "train": {
        # The recipes' rates are for their batches: with five images networks this deep overflow.
        "iterations": 6, "batch_size": 5, "log_every": 1, "tensorboard": False,
        "optimizer": {"lr": 0.001}, "schedule": {"warmup": 0},
    },
    "evaluate": {"batch_size": 6, "every": 1},
}  # fmt: skip
_FEWER_STEPS = merge(_FEW_STEPS, {"train": {"iterations": 2, "batch_size": 4}})
# Gates without an upper bound overflow before the running statistics are those of the images.
_LONGER = {"train": {"iterations": 60, "batch_size": 18}, "evaluate": {"every": 0}}
_DETECTOR_STEPS = {
    "train": {
        "iterations": 2, "batch_size": 2, "lr": 0.0001, "warmup_iterations": 0, "min_size": [96], "max_size": 128,
        "tensorboard": False,
    },
    "evaluate": {"min_size": 96, "max_size": 128},
}  # fmt: skip
_PHOTOS = {"classes": 6, "train_per_class": 4, "val_per_class": 2}
_SMOKE = {
    "imagenet": Smoke(
        {**_PHOTOS, "size": 96}, merge(_FEW_STEPS, {"data": {"classes": "folders"}}), resized=True
    ),
    "places365": Smoke(
        {**_PHOTOS, "small": True, "edition": "challenge"}, _FEW_STEPS, resized=True
    ),
    "cifar10": Smoke({"train_per_class": 5, "test_per_class": 2}, _FEWER_STEPS),
    "cifar100": Smoke({"train_per_class": 1, "test_per_class": 1}, _FEWER_STEPS),
    "coco": Smoke({"train": 8, "val": 4, "size": 96}, _DETECTOR_STEPS),
}
_YEARS = {"coco_2014": 2014, "coco_2017": 2017}


@dataclass(frozen=True)
class Target:
    """A table, or a figure that is made of some rows of one."""

    name: str  # "table-2", "figure-4"
    where: str  # as people cite it: "Table 2"
    title: str
    table: Table
    rows: tuple[Row, ...]

    @property
    def runnable(self) -> list[Row]:
        """The rows whose network and recipe this suite has; the others were published only."""
        return [row for row in self.rows if row.backbone and row.recipes]


@dataclass(frozen=True)
class Wish:
    """How targets are to be reproduced."""

    scale: Scale = "paper"
    seeds: int = 1
    roots: Mapping[str, str] | None = None  # data set of a table -> its folder
    weights: Mapping[str, str] | None = None  # network -> ImageNet weights that it starts from
    recipe: str | None = None  # which of the recipes that rows name; None: their first
    overrides: Sequence[str] = ()  # "train.accumulate=16": for the tasks that have the setting


@dataclass(frozen=True)
class Training:
    """How a row is trained, where in a study's folder, and by what it is evaluated afterwards."""

    task: str
    recipe: str
    entry: str
    network: dict[str, Any]  # as in a study's `backbones`
    settings: dict[str, Any]
    dataset: str  # of the table
    protocol: str | None  # where it is not the recipe's own

    def directory(self, seed: int) -> Path:
        """Of the run whose record has the row's numbers."""
        entry = f"{self.entry}-{self.protocol}" if self.protocol else self.entry
        return Path(entry) / f"{folder_name(self.network)}-seed{seed}"


def list_targets() -> dict[str, Target]:
    """What can be reproduced, by name, in the paper's order."""
    tables = load_references()
    found = {
        name: Target(name, table.where, table.title, table, table.rows)
        for name, table in tables.items()
        if name.startswith(("table-", "footnote-"))
    }
    curves = tables["table-2"]
    rows = tuple(
        row for row in curves.rows if row.backbone and row.backbone.removeprefix("se_") in _FIGURE_4
    )
    found["figure-4"] = Target(
        "figure-4", "Figure 4", "Training curves of four networks and their SE twins", curves, rows
    )
    return found


def find_targets(names: Sequence[str]) -> list[Target]:
    """Targets by name ("table-2", "2"), or "all".

    Raises:
        ValueError: there is none of that name; near matches are named.
    """
    targets = list_targets()
    found: dict[str, Target] = {}
    for name in names:
        asked = canonical(name)
        if asked == "all":
            found |= targets
        elif asked in targets:
            found[asked] = targets[asked]
        else:
            raise ValueError(unknown("table or figure", name, [*targets, "all"]))
    return list(found.values())


def training_of_row(row: Row, table: Table, wish: Wish) -> Training:
    """How a runnable row is trained and evaluated.

    Raises:
        ValueError: `wish.recipe` is none of the row's.
    """
    if wish.recipe is not None and wish.recipe not in row.recipes:
        raise ValueError(f"--recipe: {row.network}: " + unknown("recipe", wish.recipe, row.recipes))
    recipe, dataset = wish.recipe or row.recipes[0], str(table.dataset["name"])
    own = _recipe(table.task, recipe).config
    written = own.backbone.options if row.backbone and row.backbone.startswith("se_") else {}
    usual = DEFAULT_OPTIONS | written
    options = {key: value for key, value in row.options.items() if usual.get(key) != value}
    network: dict[str, Any] = {"name": row.backbone}
    if options:
        network["options"] = options
    if table.initial == "imagenet" and wish.weights:
        if row.backbone not in wish.weights:
            raise ValueError(f"--weights: none for {row.backbone}; add {row.backbone}=FILE")
        network["weights"] = wish.weights[str(row.backbone)]
    protocol = row.references[0].protocol
    same = getattr(own.evaluate, "protocol", None) in (None, protocol)
    changes = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in row.settings.items()]
    settings: dict[str, Any] = {}
    for key, value in row.settings.items():
        settings = merge(settings, _nested(key, value))
    entry = "-".join([recipe, *changes])
    if wish.scale == "smoke":
        entry, settings = f"smoke-{entry}", merge(settings, _smoke(_SMOKE[dataset], own))
        if options.get("excitation") == "relu":
            entry, settings = f"{entry}-longer", merge(settings, _LONGER)
    for text in wish.overrides:
        if text.partition("=")[0] in _setting_names(table.task):
            settings = merge(settings, parse_override(text))
    return Training(
        table.task, recipe, entry, network, settings, dataset, None if same else protocol
    )


def study_of(targets: Sequence[Target], wish: Wish) -> dict[str, Any]:
    """The study of some targets, as a study's YAML file has it; rows that are trained alike share cells.

    Raises:
        ValueError: an option that does not fit any of them.
    """
    trainings = [
        (training_of_row(row, target.table, wish), target.table)
        for target in targets
        for row in target.runnable
    ]
    tasks = {training.task for training, _ in trainings}
    for text in wish.overrides:
        key = text.partition("=")[0]
        known = [name for task in sorted(tasks) for name in _setting_names(task)]
        if key not in known:
            raise ValueError(unknown("setting", key, known))
    entries: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[str, Any]] = {}
    for training, table in trainings:
        source = None
        if table.initial == "imagenet" and not wish.weights:
            source = _pretraining(str(training.network["name"]), wish)
            _add(entries, samples, source, wish)
        _add(entries, samples, training, wish, source)
    study: dict[str, Any] = {"seeds": list(range(wish.seeds)), "twins": False}
    if wish.scale == "smoke":
        study["sample_data"] = samples
    return {**study, "experiments": list(entries.values())}


def evaluation_of(training: Training, wish: Wish, output: Path, seed: int) -> Experiment:
    """What evaluates a trained row by a protocol that is not its recipe's.

    Raises:
        ValueError: settings that the protocol cannot take.
    """
    trained = output / training.entry / training.directory(seed).name
    sample = output / "data" / training.dataset
    root = str(sample) if wish.scale == "smoke" else (wish.roots or {}).get(training.dataset)
    evaluate: dict[str, Any] = {"protocol": training.protocol}
    if wish.scale == "smoke":
        evaluate |= {"resize": 88, "crop": 80}
    named = {
        "backbone": {**training.network, "weights": str(trained / WEIGHTS)},
        "data": {"root": root} if root else {},
        "evaluate": evaluate,
        "seed": seed,
    }
    settings = merge(training.settings, named)
    return load_experiment(training.task, training.recipe, settings=settings, action="evaluate")


# Parts -------------------------------------------------------------------------------------------


@functools.cache
def _recipe(task: str, recipe: str) -> Experiment:
    return load_experiment(task, recipe)


@functools.cache
def _setting_names(task: str) -> list[str]:
    return [info.name for info in describe_settings(settings_class(TASKS[task]))]


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _pretraining(network: str, wish: Wish) -> Training:
    """The ImageNet training that a detector starts from: that of Table 2."""
    table = load_references()["table-2"]
    row = next(row for row in table.rows if row.backbone == network)
    assert _PRETRAINING in row.recipes
    plain = Wish(wish.scale, wish.seeds, wish.roots, overrides=wish.overrides)
    return training_of_row(row, table, plain)


def _add(
    entries: dict[str, dict[str, Any]],
    samples: dict[str, dict[str, Any]],
    training: Training,
    wish: Wish,
    source: Training | None = None,
) -> None:
    """Put a training into its entry, unless another row has put it there."""
    entry = entries.get(training.entry)
    if entry is None:
        entry = {"name": training.entry, "task": training.task, "recipe": training.recipe}
        if wish.scale == "smoke":
            entry["sample"] = training.dataset
            made = dict(_SMOKE[training.dataset].made)
            if year := _YEARS.get(_recipe(training.task, training.recipe).config.data.name):
                made["year"] = year
            samples[training.dataset] = made
        elif root := (wish.roots or {}).get(training.dataset):
            entry["data_root"] = root
        if source is not None:
            entry["weights_from"] = source.entry
        entry["backbones"], entry["settings"] = [], training.settings
        entries[training.entry] = entry
    if training.network not in entry["backbones"]:
        entry["backbones"].append(training.network)


def _smoke(smoke: Smoke, own: Any) -> dict[str, Any]:
    """Changes to a recipe that leave the network as it is."""
    if not smoke.resized:
        return smoke.settings
    side = 96 if own.augment.size > 224 else 64  # the networks of 299 have unpadded convolutions
    sizes = {"augment": {"size": side}, "evaluate": {"resize": side + 8, "crop": side}}
    return merge(smoke.settings, sizes)
