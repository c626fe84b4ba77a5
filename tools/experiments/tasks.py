"""The tasks: one row says what everything above a task's own folder has to know of it.

A task is added by its folder, a row here, and what compares two of its results. Modules and
functions are named as text and imported when they are used, so that a list of tasks needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from backbones.config import unknown

ACTIONS = ("train", "evaluate")  # what can be done with a task


@dataclass(frozen=True)
class Task:
    """What a task is. Functions are named "module:function"."""

    label: str  # in sentences, e.g. "image classification"
    hub_name: str  # what the Hugging Face Hub calls it
    settings: str  # "module:class"; importing the module does not import torch
    module: str  # entry points: check, train, evaluate, perhaps evaluate_together
    recipes: str  # the package whose folder `recipes` holds them
    training_only: tuple[str, ...]  # groups of settings that an evaluation does not read
    headline: tuple[str, ...]  # keys of METRICS: the one it is known by, then those beside it
    class_metric: str  # key of METRICS: what is measured of each class
    # (pair, resamples, seed) -> a `tools.report.compared.Compared`
    compare: str
    # (plain record, candidate record) -> [`tools.report.compared.Picture`, ...], where twins disagree
    find_pictures: str
    # settings -> the `backbones.result.Protocol` that they ask for
    protocol: str
    # record -> (its metrics, its classes' values) anew, from the files of the run alone
    recompute: str
    # (results file, annotations file, evaluator) -> scores of results without a network
    score: str | None = None
    # Settings of the shortest training that there is, over those of any recipe: for `sebench plan`.
    two_steps: Mapping[str, Any] = field(default_factory=dict)


def load_function(name: str) -> Any:
    """Import what a row names as "module:function"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def find_task(name: str) -> Task:
    """The row of a task. Raises ValueError, with near matches, for an unknown name."""
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return TASKS[name]


def settings_class(task: Task) -> type:
    """The class of a task's settings; importing it does not import torch."""
    return load_function(task.settings)


_classifiers = partial(
    Task,
    hub_name="image-classification",
    settings="classification.config:ClassificationConfig",
    training_only=("augment", "train"),
    headline=("top1_error", "top5_error"),
    class_metric="top1_accuracy",
    compare="tools.report.classifiers:compare",
    find_pictures="tools.report.classifiers:find_pictures",
    protocol="classification.protocols:describe_protocol",
    recompute="tools.report.classifiers:recompute",
    two_steps={
        "train": {"iterations": 2, "schedule": {"name": "constant", "warmup": 0, "milestones": []}},
        "evaluate": {"every": 0},
    },
)

# In the order in which a report shows them.
TASKS = {
    "classification": _classifiers(
        label="image classification", module="classification.run", recipes="classification"
    ),
    "scene": _classifiers(label="scene classification", module="scene.run", recipes="scene"),
    "detection": Task(
        label="object detection",
        hub_name="object-detection",
        settings="detection.config:DetectionConfig",
        module="detection.run",
        recipes="detection",
        training_only=("train",),
        headline=("AP", "AP50", "AP75"),
        class_metric="AP",
        compare="tools.report.detectors:compare",
        find_pictures="tools.report.detectors:find_pictures",
        protocol="detection.scoring:describe_protocol",
        recompute="tools.report.detectors:recompute",
        two_steps={"train": {"iterations": 2, "steps": None, "warmup_iterations": 0}},
        score="detection.scoring:score_results",
    ),
}
