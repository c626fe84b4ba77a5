"""Data sets in the layouts people have, as one of two things: arrays in memory or a list of files."""

import gzip
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backbones.weights.pickles import read_pickle
from classification.config import DataSettings

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# Sets up to this many files have each file's head and tail looked at before anything is computed.
INSPECTED_UP_FRONT = 20_000


class Names(Sequence[str]):
    """Many names in one block of memory: millions of Python strings would be copied, a page at a
    time, into every reading process that looks at them."""

    def __init__(self, names: Iterable[str]) -> None:
        text = "\n".join(names).encode() + b"\n"
        self._bytes = np.frombuffer(text, np.uint8)
        self._ends = np.flatnonzero(self._bytes == ord("\n")) if len(text) > 1 else np.empty(0, int)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]
        start = self._ends[index - 1] + 1 if index % len(self) else 0
        return self._bytes[start:end].tobytes().decode()


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        ids: what each image is called in results, unique.
        labels: int64 array, an index into `class_names` for each image.
        root: where it was read from.
    """

    name: str
    split: str
    ids: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    root: Path

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def synthetic(self) -> bool:
        return (self.root / "SYNTHETIC").is_file()

    def sha256(self) -> str:
        """Of the ids and labels, in order."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageArray(Dataset):
    """A small set held whole in memory: `images` is uint8 (N, 3, H, W), RGB."""

    images: torch.Tensor

    def subset(self, indices: np.ndarray) -> "ImageArray":
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            labels=self.labels[indices],
            images=self.images[torch.from_numpy(indices)],
        )

    def sha256(self) -> str:
        digest = hashlib.sha256(super().sha256().encode())
        digest.update(self.images.contiguous().numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageFiles(Dataset):
    """A set of image files: `folder / id` is the path of an image."""

    folder: Path

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        names = Names(self.ids[i] for i in indices.tolist())
        return replace(self, ids=names, labels=self.labels[indices])


# Looking into folders --------------------------------------------------------------------------


def require(path: Path, what: str) -> Path:
    """Return `path`, or raise a ValueError that says what was looked for and what is there."""
    if path.exists():
        return path
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    there = sorted(n for n in os.listdir(parent) if n[0] != ".") if parent.is_dir() else []
    found = some(there, 8) or "nothing"
    raise ValueError(f"{what} not found: looked for {path}; {parent} holds {found}")


def require_root(settings: DataSettings) -> Path:
    if not settings.root:
        raise ValueError(f"data.root is not set: say where {settings.name} lies, data.root=FOLDER")
    return require(Path(settings.root).expanduser(), f"the root of {settings.name}")


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(folder: Path) -> list[str]:
    """Names of the image files in `folder`, sorted; the directory is read, no file is touched."""
    names = os.listdir(folder)
    return sorted(n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and n[0] != ".")


def check_listed(names: Iterable[str], folder: Path, source: Path) -> None:
    """See that every relative path in `names` is in `folder`: one look into each directory.

    Raises:
        ValueError: naming the missing files and `source`, the list that promises them; or a path
            leads out of `folder`.
    """
    by_directory: dict[str, set[str]] = {}
    for name in names:
        if name.startswith("/") or ".." in name:
            raise ValueError(f"{source} lists {name!r}, which leads out of {folder}")
        directory, _, file = name.rpartition("/")
        by_directory.setdefault(directory, set()).add(file)
    missing = []
    for directory, files in by_directory.items():
        path = folder / directory
        lost = files.difference(os.listdir(path) if path.is_dir() else ())
        missing += [f"{directory}/{file}".lstrip("/") for file in sorted(lost)]
    if missing:
        raise ValueError(
            f"{source} lists {len(missing)} files that are not in {folder}: {some(missing)}"
        )


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of `names` and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def read_class_folders(
    name: str, split: str, root: Path, folder: Path, classes: Sequence[str]
) -> ImageFiles:
    """Read `folder/<class>/<image>` for each of `classes`; the label is the place in `classes`.

    Raises:
        ValueError: a class folder holds no image.
    """
    ids: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        directory = folder / class_name
        if not directory.is_dir():
            continue
        images = list_images(directory)
        if not images:
            raise ValueError(f"{directory} holds no image: fill it or remove the folder")
        ids += [f"{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    return ImageFiles(
        name, split, Names(ids), np.array(labels, np.int64), list(classes), root, folder
    )


# Readers ---------------------------------------------------------------------------------------


def read_cifar(settings: DataSettings, split: str) -> ImageArray:
    """Read the Python pickles of CIFAR-10 or -100, without executing them.

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
    class_names = read_pickle(require(folder / ("batches.meta" if ten else "meta"), "class names"))
    class_names = list(class_names[names_key])
    rows, labels = [], []
    for file in files:
        batch = read_pickle(require(folder / file, f"a part of {settings.name}"))
        try:
            data, batch_labels = np.asarray(batch["data"]), batch[key]
        except (KeyError, TypeError):
            raise ValueError(f"{folder / file}: no 'data' and {key!r} in it, not CIFAR") from None
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise ValueError(
                f"{folder / file}: data {data.dtype} {data.shape}, wanted uint8 (N, 3072)"
            )
        if len(batch_labels) != len(data):
            raise ValueError(f"{folder / file}: {len(data)} images but {len(batch_labels)} labels")
        rows.append(data)
        labels += list(batch_labels)
    images = torch.from_numpy(np.concatenate(rows).reshape(-1, 3, 32, 32))
    return _array(settings.name, split, images, labels, class_names, root)


FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_idx(path: Path) -> np.ndarray:
    """Read a uint8 idx file, gzipped or not.

    Raises:
        ValueError: neither `path` nor `path.gz` exists, or the content does not match its header.
    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    zipped = path.with_name(f"{path.name}.gz")
    if zipped.is_file() and not path.is_file():
        path = zipped
    require(path, "an idx file (plain or .gz)")
    try:
        content = gzip.decompress(path.read_bytes()) if path == zipped else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from None
    dimensions = content[3] if len(content) > 4 and content[:3] == b"\x00\x00\x08" else 0
    head = 4 + 4 * dimensions
    if not dimensions or len(content) < head:
        raise ValueError(f"{path}: not an idx file of uint8")
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", dimensions, 4))
    values = np.frombuffer(content, np.uint8, offset=head)
    if min(shape) < 0 or values.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{path}: the header says {shape}, the file holds {values.size} values")
    return values.reshape(shape)


def read_fashion_mnist(settings: DataSettings, split: str) -> ImageArray:
    """Read Fashion-MNIST's idx files; the grey value stands in all three channels."""
    root = require_root(settings)
    prefix = {"train": "train", "test": "t10k"}[split]
    images = read_idx(root / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(root / f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{root}: {images.shape} images do not go with {labels.shape} labels")
    tensor = torch.from_numpy(images.copy())[:, None].expand(-1, 3, -1, -1)
    return _array(settings.name, split, tensor, labels.tolist(), list(FASHION_NAMES), root)


def _array(name, split, images, labels, class_names, root) -> ImageArray:
    labels = np.array(labels, np.int64)
    if labels.size == 0 or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"{root}: labels outside 0..{len(class_names) - 1} in {split}")
    ids = [f"{split}/{index:05d}" for index in range(len(labels))]
    return ImageArray(name, split, ids, labels, class_names, root, images)


def read_folder(settings: DataSettings, split: str) -> ImageFiles:
    """Read `root/{train,val}/<class>/<image>`; classes are the folder names of train, sorted."""
    root = require_root(settings)
    folder = require(root / split, f"the {split} folder")
    source = root / "train" if (root / "train").is_dir() else folder
    classes = list_folders(source)
    if not classes:
        raise ValueError(f"{source} holds no class folders")
    unknown = sorted(set(list_folders(folder)) - set(classes))
    if unknown:
        near = get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{folder}: class {some(unknown)} is not in {source}{hint}")
    return read_class_folders(settings.name, split, root, folder, classes)


# Parts of a set ----------------------------------------------------------------------------------


def split_holdout(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept for training and indices held out, the same `fraction` of every class.

    The choice is the same for every seed, so that networks and seeds are chosen on the same
    images. At least one image of each class is held out and one kept.

    Raises:
        ValueError: a class has a single image.
    """
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(f"data.holdout={fraction}: class {label} has one image, none to spare")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(np.random.default_rng([365, int(label)]).permutation(members)[:count])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def select_listed(dataset: ImageFiles | ImageArray, path: Path) -> ImageFiles | ImageArray:
    """Keep the images listed in the file at `path`: ids, file names or stems, one a line.

    Raises:
        ValueError: a line names no image of the set or the same image as another line.
    """
    lines = [line.strip() for line in require(path, "the list of images").read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    index = {}
    for position, image_id in enumerate(dataset.ids):
        file_name = image_id.rsplit("/", 1)[-1]
        for key in (image_id, file_name, file_name.rsplit(".", 1)[0]):
            index.setdefault(key, position)
    unknown = [name for name in wanted if name not in index]
    if unknown or not wanted:
        what = some(unknown) if unknown else "nothing"
        raise ValueError(f"{path}: lists {what}, not an image of {dataset.name} {dataset.split}")
    chosen = np.array([index[name] for name in wanted])
    if len(np.unique(chosen)) != len(chosen):
        raise ValueError(f"{path}: lists an image twice; every image counts once")
    return dataset.subset(np.sort(chosen))


# Bad files ---------------------------------------------------------------------------------------


def find_bad_images(dataset: ImageFiles) -> list[str]:
    """Ids of images that are missing, empty, truncated or none; pixels are rarely decoded.

    A JPEG or PNG without its end marker near the end of the file is decoded to be sure.
    """
    return [image_id for image_id in dataset.ids if not _is_whole(dataset.folder / image_id)]


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
        if marker is not None:
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - 4096))
                if marker in file.read():
                    return True
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True
