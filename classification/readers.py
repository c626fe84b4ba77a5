"""Readers of the published layouts: `read_NAME(settings, split)` returns one split of a data set."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo

from backbones.weights.pickles import read_pickle
from classification.config import DataSettings
from classification.datasets import ImageArray, ImageFiles
from classification.devkit import read_synsets
from classification.folders import (
    Listed,
    find_folder,
    find_images,
    is_number,
    label_by_name,
    list_classes,
    list_folders,
    read_class_folders,
    read_labels,
    read_lines,
    read_listed,
    report_left_out,
    require,
    require_root,
    some,
)

LARGEST_ARRAY = 2**31  # bytes of pixels that a set held in memory may have
_LARGEST_PICKLE = 2**29  # bytes; CIFAR-100's training images take 155 MB


# CIFAR and Fashion-MNIST ---------------------------------------------------------------------------


def read_cifar(settings: DataSettings, split: str) -> ImageArray:
    """Read the Python pickles of CIFAR-10 or -100, without executing them.

    Raises:
        ValueError: a file is missing, or not what CIFAR's are.
    Source: https://www.cs.toronto.edu/~kriz/cifar.html; each row of `data` is 1024 red, 1024
    green, 1024 blue values of a 32x32 image, row by row.
    """
    root = require_root(settings)
    ten = settings.name == "cifar10"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    if not folder.is_dir() and (root / ("batches.meta" if ten else "meta")).is_file():
        folder = root
    require(folder, f"the folder of {settings.name}")
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}[split]
    if not ten:
        files = [split]
    key, names_key = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    meta = folder / ("batches.meta" if ten else "meta")
    class_names = _as_texts(_read_part(meta, "class names", names_key)[names_key], meta)
    rows, labels = [], []
    for file in files:
        path = folder / file
        batch = _read_part(path, f"a part of {settings.name}", "data", key)
        data = batch["data"]
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise ValueError(f"{path}: {_describe(data)} as data, wanted uint8 (N, 3072)")
        batch_labels = np.asarray(batch[key]) if _is_flat(batch[key]) else np.empty(0)
        if batch_labels.dtype.kind not in "iu" or batch_labels.shape != data.shape[:1]:
            found = _describe(batch[key])
            raise ValueError(f"{path}: {found} as {key}, wanted {len(data)} whole numbers")
        rows.append(data)
        labels.append(batch_labels.astype(np.int64))
    images = torch.from_numpy(np.concatenate(rows).reshape(-1, 3, 32, 32))
    return _array(settings.name, split, images, np.concatenate(labels), class_names, root)


def _read_part(path: Path, what: str, *keys: str) -> Mapping[str, Any]:
    """A pickled dict with at least these keys; those that Python 3 wrote as bytes are text again."""
    require(path, what)
    if path.stat().st_size > _LARGEST_PICKLE:
        raise ValueError(f"{path} is larger than {_LARGEST_PICKLE} bytes, which CIFAR's are not")
    content = read_pickle(path)
    if isinstance(content, dict):
        content = {k.decode("latin1") if isinstance(k, bytes) else k: content[k] for k in content}
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path}: no {key!r} in it, so it is none of CIFAR's files")
    return content


def _is_flat(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.ndim == 1
    return isinstance(values, (list, tuple)) and all(type(value) is int for value in values)


def _as_texts(values: Any, path: Path) -> list[str]:
    texts = [v.decode("latin1") if isinstance(v, bytes) else v for v in _as_list(values)]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: {_describe(values)} as class names, wanted a list of texts")
    return texts


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else []


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)


FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_fashion_mnist(settings: DataSettings, split: str) -> ImageArray:
    """Read Fashion-MNIST's idx files; the grey value stands in all three channels.

    Raises:
        ValueError: a file is missing or damaged, or images and labels do not go together.
    """
    root = require_root(settings)
    prefix = {"train": "train", "test": "t10k"}[split]
    images = read_idx(root / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(root / f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1] or 0 in images.shape:
        raise ValueError(f"{root}: {images.shape} images do not go with {labels.shape} labels")
    tensor = torch.from_numpy(images.copy())[:, None].expand(-1, 3, -1, -1)
    return _array(settings.name, split, tensor, labels.astype(np.int64), list(FASHION_NAMES), root)


def read_idx(path: Path) -> np.ndarray:
    """Read a uint8 idx file, gzipped or not. No more is unpacked than its header announces.

    Raises:
        ValueError: neither `path` nor `path.gz` exists, or the content does not match its header.
    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    zipped = path.with_name(f"{path.name}.gz")
    if zipped.is_file() and not path.is_file():
        path = zipped
    require(path, "an idx file (plain or .gz)")
    try:
        with gzip.open(path) if path == zipped else path.open("rb") as file:
            head = file.read(4)
            dimensions = head[3] if len(head) == 4 and head[:3] == b"\x00\x00\x08" else 0
            sizes = file.read(4 * dimensions)
            if not dimensions or len(sizes) < 4 * dimensions:
                raise ValueError(f"{path}: not an idx file of uint8")
            shape = tuple(int(n) for n in np.frombuffer(sizes, ">i4"))
            size = int(np.prod(shape, dtype=object))
            if min(shape) < 0 or size > LARGEST_ARRAY:
                raise ValueError(
                    f"{path}: the header says {shape}, more than can be held in memory"
                )
            values = file.read(size)
            more = len(file.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged file ({error})") from None
    if len(values) != size or more:
        found = "more" if more else len(values)
        raise ValueError(f"{path}: the header says {shape}, the file holds {found} values")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _array(
    name: str,
    split: str,
    images: torch.Tensor,
    labels: np.ndarray,
    class_names: list[str],
    root: Path,
) -> ImageArray:
    if labels.size == 0 or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"{root}: labels outside 0..{len(class_names) - 1} in {split}")
    ids = [f"{split}/{index:05d}" for index in range(len(labels))]
    return ImageArray(name, split, ids, labels, class_names, root, images)


# Folders of classes --------------------------------------------------------------------------------

_EVALUATED = ("val", "valid", "validation", "test")  # the first that is there is reported


def read_folder(settings: DataSettings, split: str) -> ImageFiles:
    """Read `root/train/<class>/` and, for val, `root/{val,valid,validation,test}/<class>/`.

    Classes are the folders of train, see `list_classes`. A val folder without class folders is read
    by Tiny ImageNet's `val_annotations.txt` in it.

    Raises:
        ValueError: a folder is missing or empty, or has classes that train has not.
    """
    root = require_root(settings)
    names = ("train",) if split == "train" else _EVALUATED
    folder = find_folder(root, names, f"the {split} folder")
    source = root / "train" if (root / "train").is_dir() else folder
    classes = list_classes(source)
    if not classes:
        raise ValueError(f"{source} holds no class folders")
    if (folder / TINY_LABELS).is_file():
        listed = _read_tiny(folder / TINY_LABELS, classes)
        return read_listed(settings.name, folder.name, root, folder, classes, listed)
    unknown = sorted(set(list_folders(folder)) - set(classes))
    if unknown:
        near = get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{folder}: class {some(unknown)} is not in {source}{hint}")
    return read_class_folders(settings.name, folder.name, root, folder, classes)


TINY_LABELS = "val_annotations.txt"


def _read_tiny(path: Path, classes: Sequence[str]) -> Listed:
    """Tiny ImageNet: `val/images/*.JPEG`, and lines of file, class and box, separated by tabs."""
    rows = [[*line.split("\t"), ""][:2] for line in read_lines(path)]
    return label_by_name(
        path, [f"images/{row[0]}" for row in rows], [row[1] for row in rows], classes
    )


# ImageNet ------------------------------------------------------------------------------------------

KAGGLE_FOLDER = Path("ILSVRC", "Data", "CLS-LOC")
KAGGLE_LABELS = "LOC_val_solution.csv"


def read_imagenet(settings: DataSettings, split: str) -> ImageFiles:
    """Read ImageNet: `root/train/<wnid>/` and the images of val.

    For val, whichever of these is there:

    - `val/<wnid>/<image>`;
    - flat `val/` with `meta/val.txt`, lines `<file> <label>`, labels in wnid order from 0;
    - flat `val/` with Kaggle's `LOC_val_solution.csv` in the root;
    - Tiny ImageNet's `val/images/` with `val/val_annotations.txt`;
    - flat `val/` with `ILSVRC2012_devkit_t12/data/{ILSVRC2012_validation_ground_truth.txt,meta.mat}`.

    `train` may be listed by `meta/train.txt` too. A root that holds Kaggle's `ILSVRC/Data/CLS-LOC`
    is entered. The class index is the place of the wnid among the sorted 1000, and `data.classes`
    says what to do when not all of them are there.

    Raises:
        ValueError: classes, folders, list entries or the ground truth are missing or disagree.
    """
    root = given = require_root(settings)
    if (root / KAGGLE_FOLDER).is_dir():
        root = root / KAGGLE_FOLDER
    folder = require(root / split, f"ImageNet's {split} folder")
    listed, tiny = root / "meta" / f"{split}.txt", folder / TINY_LABELS
    present = [] if tiny.is_file() else list_folders(folder)
    classes = _classes(settings, root, folder, present)
    if present:
        return read_class_folders(settings.name, split, root, folder, classes)
    # Kaggle's archive has the labels three folders above the images.
    kaggle = [above / KAGGLE_LABELS for above in (given, root, *root.parents[:3])]
    kaggle = [path for path in kaggle if split == "val" and path.is_file()]
    if tiny.is_file():
        found = _read_tiny(tiny, classes)
    elif listed.is_file():
        found = read_labels(listed, len(classes))
    elif kaggle:
        found = _read_kaggle(kaggle[0], classes)
    elif split == "val":
        found = _read_devkit(settings, root, folder, classes)
    else:
        raise ValueError(
            f"{folder} holds no class folders such as n01440764, and there is no {listed}"
        )
    return read_listed(settings.name, split, root, folder, classes, found)


def _classes(settings: DataSettings, root: Path, folder: Path, present: Sequence[str]) -> list[str]:
    """The wnids in label order; `present` are the class folders of this split, if it has any."""
    thousand = ImageNetInfo().label_names()
    if settings.classes == "folders":
        train = root / "train"
        classes = list_classes(train if train.is_dir() else folder)
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


def _read_kaggle(listed: Path, classes: Sequence[str]) -> Listed:
    """Kaggle's labels: rows of an image's name without suffix, and its wnid before each box."""
    try:
        rows = list(csv.reader(read_lines(listed)))
    except csv.Error as error:
        raise ValueError(f"{listed}: no table of comma-separated values ({error})") from None
    if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
        raise ValueError(f"{listed}: the first line is not 'ImageId,PredictionString'")
    names, wnids = [], []
    for number, row in enumerate(rows[1:], start=2):
        wnid = row[1].split(" ")[0] if len(row) == 2 else ""
        if not wnid:
            raise ValueError(f"{listed}, line {number}: wanted '<image>,<wnid> <box> ...'")
        names.append(f"{row[0]}.JPEG")
        wnids.append(wnid)
    return label_by_name(listed, names, wnids, classes)


def _read_devkit(
    settings: DataSettings, root: Path, folder: Path, classes: Sequence[str]
) -> Listed:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    what = f"{folder} has no class folders, and beside it is no meta/val.txt; the devkit's labels"
    truth = require(data / "ILSVRC2012_validation_ground_truth.txt", what)
    wnid_of = read_synsets(require(data / "meta.mat", what))
    if len(wnid_of) < 1000 and settings.classes == "all":
        raise ValueError(
            f"{data / 'meta.mat'}: {len(wnid_of)} of 1000 classes; data.classes=subset keeps the "
            "1000 labels, data.classes=folders numbers the class folders of train"
        )
    numbers = read_lines(truth)
    wrong = [line for line in numbers if not is_number(line) or int(line) not in wnid_of]
    if wrong:
        raise ValueError(f"{truth}: {some(map(repr, wrong))} is no class number of meta.mat")
    left_out: Counter[str] = Counter()
    images = find_images(folder, left_out)
    report_left_out(folder, left_out)
    if len(images) != len(numbers) or not images:
        raise ValueError(f"{folder} holds {len(images)} images, {truth} labels {len(numbers)}")
    return label_by_name(truth, images, [wnid_of[int(number)] for number in numbers], classes)
