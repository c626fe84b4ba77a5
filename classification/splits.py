"""The images of an experiment: trained on, chosen on, reported; and whether they are fit for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.config import check_choice
from classification.config import ClassificationConfig, DataSettings
from classification.datasets import (
    INSPECTED_UP_FRONT,
    ImageArray,
    ImageFiles,
    find_bad_images,
    read_cifar,
    read_fashion_mnist,
    read_folder,
    select_listed,
    split_holdout,
)
from classification.imagenet import read_imagenet
from classification.loader import BadImages

Split = ImageArray | ImageFiles
Reader = Callable[[DataSettings, str], Split]
Readers = Mapping[str, tuple[Reader, str]]

# Data set -> its reader and the split whose numbers are reported.
READERS: Readers = {
    "cifar10": (read_cifar, "test"),
    "cifar100": (read_cifar, "test"),
    "fashion_mnist": (read_fashion_mnist, "test"),
    "imagenet": (read_imagenet, "val"),
    "folder": (read_folder, "val"),
}


@dataclass(frozen=True)
class Splits:
    reported: Split
    train: Split | None = None
    held_out: Split | None = None

    def describe(self, skipped: list[str]) -> dict[str, Any]:
        """The reported set as plain values, for the result.

        `images` counts what was seen: with `skipped_images` it adds up to `images_in_set`.
        """
        reported = self.reported
        return {
            "name": reported.name,
            "split": reported.split,
            "images": len(reported) - len(skipped),
            "images_in_set": len(reported),
            "skipped_images": skipped,
            "classes": len(reported.class_names),
            "class_names": list(reported.class_names),
            "synthetic": reported.synthetic,
            "root": str(reported.root),
            "annotations": None,
            "train_images": None if self.train is None else len(self.train),
            "held_out_images": None if self.held_out is None else len(self.held_out),
            "sha256": reported.sha256(),
        }


def load_splits(config: ClassificationConfig, training: bool, readers: Readers) -> Splits:
    """Read the reported split, and for training the train split and what is held out of it.

    Raises:
        ValueError: the set is unknown here, incomplete, disagrees with itself, or holds more
            unreadable files than allowed.
    """
    data = config.data
    check_choice("data.name", data.name, tuple(readers))
    read, reported_name = readers[data.name]
    reported = read(data, reported_name)
    if config.evaluate.images is not None:
        reported = select_listed(reported, Path(config.evaluate.images).expanduser())
    if not training:
        return _inspected(Splits(reported), data)
    train, held_out = read(data, "train"), None
    if list(train.class_names) != list(reported.class_names):
        raise ValueError(f"{reported.root}: train and {reported.split} have different classes")
    if data.holdout:
        kept, held = split_holdout(train.labels, data.holdout)
        train, held_out = train.subset(kept), train.subset(held)
    return _inspected(Splits(reported, train, held_out), data)


def _inspected(splits: Splits, data: DataSettings) -> Splits:
    for split in (splits.reported, splits.train, splits.held_out):
        if isinstance(split, ImageFiles) and len(split) <= INSPECTED_UP_FRONT:
            BadImages(data.skip_bad_images, split.root).add(find_bad_images(split))
    return splits


def check_batches(config: ClassificationConfig, train: Split, processes: int) -> int:
    """Whether the batch can be shared out; returns the optimiser steps of an epoch.

    Raises:
        ValueError: the batch does not divide among processes and parts, is larger than the set,
            or leaves parts that cannot be mixed.
    """
    settings = config.train
    parts = processes * settings.accumulate
    if settings.batch_size % parts:
        lower = max(parts, settings.batch_size // parts * parts)
        raise ValueError(
            f"train.batch_size={settings.batch_size} does not divide among {processes} processes "
            f"x {settings.accumulate} parts (train.accumulate); {lower} would"
        )
    if settings.batch_size > len(train):
        raise ValueError(
            f"train.batch_size={settings.batch_size} is more than the {len(train)} training "
            "images; lower it"
        )
    mixes = config.augment.mixup or config.augment.cutmix
    if mixes and settings.batch_size // parts % 2:
        raise ValueError(
            f"augment.mixup and cutmix pair images, but {settings.batch_size} images in {parts} "
            "parts leave odd ones; choose train.batch_size a multiple of "
            f"{2 * parts}"
        )
    if isinstance(train, ImageFiles) and config.augment.size == 0:
        raise ValueError("augment.size=0: files of many sizes need one size, e.g. augment.size=224")
    return len(train) // settings.batch_size
