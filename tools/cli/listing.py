"""What `sebench list` shows: rows of plain values, for a table or for JSON."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from backbones.config import describe_settings, unknown
from backbones.registry import list_backbones
from classification import catalog
from tools.experiments.experiment import describe_recipe, list_recipes, recipe_cost
from tools.experiments.tasks import TASKS, settings_class

Row = dict[str, Any]

_COCO = "https://cocodataset.org/#download"
# name: (task, what data.root holds, where it is had from)
DATASETS = {name: (row.task, row.layout, row.source) for name, row in catalog.DATASETS.items()} | {
    "coco_2017": ("detection", "coco/annotations/instances_{train,val}2017.json, images", _COCO),
    "coco_2014": (
        "detection",
        "coco/annotations/instances_{train,minival,...}2014.json, images",
        f"{_COCO}; minival: https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz",
    ),
    "custom": ("detection", "any, by data.train_annotations, data.train_images, data.val_...", ""),
}


def backbones() -> list[Row]:
    """Every network that is registered."""
    return [dataclasses.asdict(info) for info in list_backbones()]


def recipes() -> list[Row]:
    """Every shipped recipe with what it costs and what was published of it."""
    return [
        {
            "task": task,
            "name": name,
            "reproduces": describe_recipe(path),
            **recipe_cost(path),
            "path": str(path),
        }
        for task in TASKS
        for name, path in list_recipes(task).items()
    ]


def protocols() -> list[Row]:
    """How an image becomes the views that are scored, by name: `evaluate.protocol`."""
    from classification.protocols import PROTOCOLS

    return [
        {
            "name": name,
            "resize": "/".join(map(str, protocol.resize)) or None,
            "resize_mode": protocol.resize_mode,
            "crop": protocol.crop,
            "crops": protocol.crops,
            "views": protocol.views,
            "source": protocol.source,
        }
        for name, protocol in PROTOCOLS.items()
    ]


def settings(task: str | None = None) -> list[Row]:
    """Every setting of a task, or of all, as `key=value` takes it.

    Raises:
        ValueError: there is no such task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    return [
        {"task": name, **dataclasses.asdict(info)}
        for name in ([task] if task else TASKS)
        for info in describe_settings(settings_class(TASKS[name]))
    ]


def datasets() -> list[Row]:
    """Every data set, its task, and what its folder holds."""
    return [
        {"name": name, "task": task, "data_root_holds": layout, "source": source}
        for name, (task, layout, source) in DATASETS.items()
    ]


def attentions() -> list[Row]:
    """Every attention with its options."""
    from backbones.slot import ATTENTIONS, attention_options

    return [
        {
            "name": name,
            "options": attention_options(name),
            "what": (inspect.getdoc(builder) or "").split("\n")[0],
        }
        for name, builder in ATTENTIONS.items()
    ]


LISTS = {
    "backbones": backbones,
    "recipes": recipes,
    "datasets": datasets,
    "attentions": attentions,
    "protocols": protocols,
    "settings": settings,
}
