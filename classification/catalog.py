"""The data sets by name: who reads one, which split is reported, what its folder holds.

A new one is a row here and its reader. Imports no torch: settings and `sebench list` know the names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from classification.config import DataSettings
    from classification.datasets import ImageArray, ImageFiles

Reader: TypeAlias = "Callable[[DataSettings, str], ImageArray | ImageFiles]"
Readers: TypeAlias = Mapping[str, tuple[Reader, str]]  # by data set: reader and reported split


@dataclass(frozen=True)
class DatasetRow:
    """A data set.

    Attributes:
        task: that uses it.
        reader: "module:function", called with settings and the name of a split.
        reported: the split whose numbers are reported; the other is "train".
        layout: what `data.root` holds, in a line.
        source: where it is had from.
        download: "module:function", called with settings: puts it into `data.root`; none: it is had by hand.
    """

    task: str
    reader: str
    reported: str
    layout: str
    source: str = ""
    download: str = ""


# fmt: off
DATASETS: Mapping[str, DatasetRow] = {
    "cifar10": DatasetRow(
        "classification", "classification.readers:read_cifar", "test",
        "cifar-10-batches-py/, the Python pickles",
        "https://www.cs.toronto.edu/~kriz/cifar.html", "classification.downloads:download_cifar",
    ),
    "cifar100": DatasetRow(
        "classification", "classification.readers:read_cifar", "test",
        "cifar-100-python/, the Python pickles",
        "https://www.cs.toronto.edu/~kriz/cifar.html", "classification.downloads:download_cifar",
    ),
    "fashion_mnist": DatasetRow(
        "classification", "classification.readers:read_fashion_mnist", "test",
        "train-images-idx3-ubyte[.gz] and the three others",
        "https://github.com/zalandoresearch/fashion-mnist",
        "classification.downloads:download_fashion_mnist",
    ),
    "imagenet": DatasetRow(
        "classification", "classification.readers:read_imagenet", "val",
        "train/<wnid>/, val/<wnid>/ or flat val/ with its labels; Kaggle's; Tiny ImageNet's",
        "https://image-net.org/download.php (an account is needed), or its competition on Kaggle",
    ),
    "folder": DatasetRow(
        "classification", "classification.readers:read_folder", "val",
        "train/<class>/, and val/, valid/, validation/ or test/<class>/",
    ),
    "places365": DatasetRow(
        "scene", "scene.places365:read_places365", "val",
        "the lists, data_large/ or data_256/, val_*/; or train/<class>/, val/<class>/",
        "http://places2.csail.mit.edu/download.html",
        "classification.downloads:download_places365",
    ),
}
# fmt: on


def readers_of(task: str) -> Readers:
    """Import the readers of a task's data sets; needs torch."""
    readers = {}
    for name, row in DATASETS.items():
        if row.task == task:
            module, _, function = row.reader.partition(":")
            readers[name] = (getattr(importlib.import_module(module), function), row.reported)
    return readers
