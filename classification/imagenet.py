"""ImageNet-1k in the three layouts of its validation images, with labels in the order of the wnids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from classification.config import DataSettings
from classification.datasets import (
    ImageFiles,
    Names,
    check_listed,
    list_folders,
    list_images,
    read_class_folders,
    require,
    require_root,
    some,
)


def read_imagenet(settings: DataSettings, split: str) -> ImageFiles:
    """Read `root/train/<wnid>/` and, for val, whichever of these is there:

    - `val/<wnid>/<image>`;
    - flat `val/` with `ILSVRC2012_devkit_t12/data/{ILSVRC2012_validation_ground_truth.txt,meta.mat}`;
    - flat `val/` with `meta/val.txt`, lines `<file> <label>`, labels in wnid order from 0.

    `train` may be listed by `meta/train.txt` too. A root that holds Kaggle's `ILSVRC/Data/CLS-LOC`
    is entered. The class index is the place of the wnid among the sorted 1000, and `data.classes`
    says what to do when not all of them are there.

    Raises:
        ValueError: classes, folders, list entries or the ground truth are missing or disagree.
    """
    root = require_root(settings)
    if (root / "ILSVRC" / "Data" / "CLS-LOC").is_dir():
        root = root / "ILSVRC" / "Data" / "CLS-LOC"
    folder = require(root / split, f"ImageNet's {split} folder")
    present = list_folders(folder)
    classes = _classes(settings, root, folder, present)
    if present:
        return read_class_folders(settings.name, split, root, folder, classes)
    listed = root / "meta" / f"{split}.txt"
    if listed.is_file():
        return _read_list(settings, split, root, folder, listed, classes)
    if split == "val":
        return _read_devkit(settings, root, folder, classes)
    raise ValueError(f"{folder} holds no class folders such as n01440764, and there is no {listed}")


def _classes(settings: DataSettings, root: Path, folder: Path, present: Sequence[str]) -> list[str]:
    """The wnids in label order; `present` are the class folders of this split, if it has any."""
    thousand = ImageNetInfo().label_names()
    if settings.classes == "folders":
        train = root / "train"
        classes = list_folders(train) if train.is_dir() else list(present)
        unknown = sorted(set(present) - set(classes))
        if not classes or unknown:
            raise ValueError(f"{folder}: class folders {some(unknown)} are not in {train}")
        absent = sorted(set(classes) - set(present))
        if present and absent:
            raise ValueError(
                f"{folder}: {len(absent)} of the {len(classes)} classes of {train} missing "
                f"({some(absent)}); complete it, or remove them from both"
            )
        return classes
    unknown = sorted(set(present) - set(thousand))
    if unknown:
        raise ValueError(
            f"{folder}: {some(unknown)} are none of ImageNet's 1000 wnids; "
            "data.classes=folders numbers the folders as they are"
        )
    missing = sorted(set(thousand) - set(present))
    if present and missing and settings.classes == "all":
        raise ValueError(
            f"{folder}: {len(missing)} of 1000 classes missing ({some(missing)}); complete it, or "
            "data.classes=subset to keep the 1000 labels, or data.classes=folders for a set of "
            f"{len(present)} classes"
        )
    return list(thousand)


def _read_list(
    settings: DataSettings, split: str, root: Path, folder: Path, listed: Path, classes: list[str]
) -> ImageFiles:
    names, labels = [], []
    for number, line in enumerate(listed.read_text().splitlines(), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit() or int(label) >= len(classes):
            allowed = f"'<file> <label 0..{len(classes) - 1}>'"
            raise ValueError(f"{listed}, line {number}: {line!r}, wanted {allowed}")
        names.append(name)
        labels.append(int(label))
    check_listed(names, folder, listed)
    return ImageFiles(
        settings.name, split, Names(names), np.array(labels, np.int64), classes, root, folder
    )


def _read_devkit(
    settings: DataSettings, root: Path, folder: Path, classes: list[str]
) -> ImageFiles:
    from scipy.io import loadmat

    data = root / "ILSVRC2012_devkit_t12" / "data"
    what = f"{folder} has no class folders and no meta/val.txt beside it; the devkit's labels"
    truth = require(data / "ILSVRC2012_validation_ground_truth.txt", what)
    # Columns of meta.mat: ILSVRC2012_ID, WNID, words, gloss, num_children, ...; leaves are classes.
    synsets = loadmat(require(data / "meta.mat", what), squeeze_me=True)["synsets"]
    wnid_of = {
        int(s["ILSVRC2012_ID"]): str(s["WNID"])
        for s in np.atleast_1d(synsets)
        if int(s["num_children"]) == 0
    }
    if len(wnid_of) < 1000 and settings.classes == "all":
        raise ValueError(
            f"{data / 'meta.mat'}: {len(wnid_of)} of 1000 classes; data.classes=subset keeps the "
            "1000 labels, data.classes=folders numbers the class folders of train"
        )
    index_of = {wnid: index for index, wnid in enumerate(classes)}
    numbers = [int(line) for line in truth.read_text().split()]
    images = list_images(folder)
    if len(images) != len(numbers):
        raise ValueError(f"{folder} holds {len(images)} images, {truth} labels {len(numbers)}")
    try:
        labels = [index_of[wnid_of[number]] for number in numbers]
    except KeyError as error:
        raise ValueError(f"{truth}: {error} is no class of meta.mat and of this set") from None
    return ImageFiles(
        settings.name, "val", Names(images), np.array(labels, np.int64), classes, root, folder
    )
