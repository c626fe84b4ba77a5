"""What `sebench list` shows: rows of plain values, for a table or for JSON."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from backbones.zoo import list_backbones
from tools.experiments.run import TASKS, describe_recipe, list_recipes

Row = dict[str, Any]

# name: (tasks, what --data-root holds)
DATASETS = {
    "cifar10": ("classification", "cifar-10-batches-py/"),
    "cifar100": ("classification", "cifar-100-python/"),
    "fashion_mnist": ("classification", "train-images-idx3-ubyte[.gz] and the three others"),
    "imagenet": ("classification", "train/<wnid>/, val/<wnid>/ or flat val/ with the devkit"),
    "folder": ("classification", "train/<class>/, val/<class>/"),
    "places365": ("scene", "categories_places365.txt, the lists, data_large/ or data_256/, val_*/"),
    "coco_2017": ("detection", "coco/annotations/instances_{train,val}2017.json, images"),
    "coco_2014": ("detection", "coco/annotations/instances_{train,minival,...}2014.json, images"),
    "custom": ("detection", "any, by data.train_annotations, data.train_images, data.val_..."),
}


def backbones() -> list[Row]:
    return [dataclasses.asdict(info) for info in list_backbones()]


def recipes() -> list[Row]:
    return [
        {"task": task, "name": name, "reproduces": describe_recipe(path), "path": str(path)}
        for task in TASKS
        for name, path in list_recipes(task).items()
    ]


def datasets() -> list[Row]:
    return [
        {"name": name, "task": task, "data_root_holds": layout}
        for name, (task, layout) in DATASETS.items()
    ]


def attentions() -> list[Row]:
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
}
