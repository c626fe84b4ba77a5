"""Places365 by its official lists, in every layout its archives leave behind.

Source: https://github.com/CSAILVision/places365 for the lists and archives.
"""

from dataclasses import replace
from pathlib import Path

from classification.config import DataSettings
from classification.datasets import ImageFiles
from classification.folders import (
    is_number,
    list_folders,
    read_class_folders,
    read_labels,
    read_lines,
    read_listed,
    require,
    require_root,
    some,
)

CATEGORIES = "categories_places365.txt"
OFFICIAL = Path(__file__).with_name(CATEGORIES)  # as published


def read_places365(settings: DataSettings, split: str) -> ImageFiles:
    """Read one split.

    `root` holds

    - `places365_train_{standard,challenge}.txt` and `places365_val.txt`, with the images in
      `data_large` or `data_256` (as the archives unpack) or `data_large_standard` and the like (as
      torchvision renames them), and `val_large` or `val_256`; or
    - the easyformat archive's `train/<class>/` and `val/<class>/`, class names flattened.

    A list may hold a part of the official one; every file it lists must be there. Labels go by the
    class's name in `categories_places365.txt`, never by the order of folders. Where the root has
    no such file, the classes are the 365 official ones.

    Args:
        settings: `edition` and `size` choose among lists and folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: a list, folder or file is missing, or a label disagrees with its class's name.
    """
    root = require_root(settings)
    named = root / CATEGORIES
    classes = read_categories(named if named.exists() else OFFICIAL)
    name = f"places365_train_{settings.edition}.txt" if split == "train" else "places365_val.txt"
    if not (root / name).is_file() and (root / split).is_dir():
        return _read_easyformat(settings, split, root, classes)
    listed = require(root / name, f"the {split} list of Places365 {settings.edition}")
    labelled = read_labels(listed, len(classes))
    labelled = replace(labelled, names=[name.lstrip("/\\") for name in labelled.names])
    folder = _find_folder(settings, split, root)
    found = read_listed(settings.name, split, root, folder, classes, labelled)
    if split == "train":
        _check_names(listed, found)
    return found


def read_categories(path: Path) -> list[str]:
    """Class names such as 'apartment_building/outdoor', in the order of their labels.

    Raises:
        ValueError: a line is not '/<letter>/<name> <label>', or labels are not 0, 1, 2, ...
    """
    classes = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, _, label = line.rpartition(" ")
        if not (name.startswith("/") and name.count("/") >= 2 and is_number(label)):
            raise ValueError(f"{path}, line {number}: {line!r}, wanted '/a/airfield 0'")
        if int(label) in classes:
            raise ValueError(f"{path}, line {number}: label {label} has a class already")
        classes[int(label)] = name[3:]
    if sorted(classes) != list(range(len(classes))) or not classes:
        raise ValueError(f"{path}: labels are not 0 to {len(classes) - 1}, each once")
    return [classes[label] for label in range(len(classes))]


def _check_names(path: Path, train: ImageFiles) -> None:
    """A training image's folder names its class, and the list's number must say the same."""
    folders = [f"{name[0]}/{name}" for name in train.class_names]
    for name, label in zip(train.ids, train.labels.tolist(), strict=True):
        if name.rpartition("/")[0] != folders[label]:
            there = train.class_names[label]
            raise ValueError(
                f"{path}: /{name} is labelled {label}, which {CATEGORIES} calls {there!r}"
            )


def _find_folder(settings: DataSettings, split: str, root: Path) -> Path:
    sizes = ("large", "256") if settings.size == "auto" else (settings.size,)
    if split == "train":
        wanted = [f"data_{size}{end}" for size in sizes for end in (f"_{settings.edition}", "")]
    else:
        wanted = [f"val_{size}" for size in sizes]
    found = [root / name for name in wanted if (root / name).is_dir()]
    if not found:
        there = ", ".join(list_folders(root)) or "no folders"
        raise ValueError(
            f"images of Places365 {split} not found: looked for {' or '.join(wanted)} in {root}, "
            f"which holds {there}"
        )
    return found[0]


def _read_easyformat(
    settings: DataSettings, split: str, root: Path, classes: list[str]
) -> ImageFiles:
    """`<split>/<class>/`, where a class's '/' became '-' (or '_', in copies people made)."""
    if split == "train" and settings.edition != "standard":
        raise ValueError(f"{root} holds the easyformat archive: it has data.edition=standard only")
    folder = root / split
    there = list_folders(folder)
    names = []
    for name in classes:
        flattened = [
            flat for flat in (name.replace("/", "-"), name.replace("/", "_")) if flat in there
        ]
        names.append(flattened[0] if flattened else name.replace("/", "-"))
    missing, unknown = sorted(set(names) - set(there)), sorted(set(there) - set(names))
    if missing or unknown or len(set(names)) != len(names):
        what = (
            f"class folders {some(missing)} missing" if missing else f"{some(unknown)} no classes"
        )
        raise ValueError(f"{folder}: {what}, by {CATEGORIES}")
    found = read_class_folders(settings.name, split, root, folder, names)
    return replace(found, class_names=classes)
