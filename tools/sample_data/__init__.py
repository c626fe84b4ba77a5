"""Tiny procedural data sets in the layouts of the real ones, for tests, the demo and first steps.

Every picture is drawn from a seeded generator, so the same call writes the same pictures anywhere.
A class is a pattern inside a silhouette with a hue; place, scale, hue, brightness and noise vary
from picture to picture, so a small network learns a set in seconds and still makes mistakes.

Each root gets a file named ``SYNTHETIC`` that says how it was made. Whatever reads the root and
finds that file marks its numbers as synthetic. A set is written whole or not at all, a second call
with the same settings does nothing, and a folder that holds anything else is refused.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.files import SYNTHETIC
from tools.sample_data.drawing import (
    COCO_CATEGORIES,
    picture_of_shapes,
    small_pictures,
    varied_picture,
)

CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# The first twenty of ImageNet's thousand, in their order.
IMAGENET_WNIDS = (
    *("n01440764", "n01443537", "n01484850", "n01491361", "n01494475"),
    *("n01496331", "n01498041", "n01514668", "n01514859", "n01518878"),
    *("n01530575", "n01531178", "n01532829", "n01534433", "n01537544"),
    *("n01558993", "n01560419", "n01580077", "n01582220", "n01592084"),
)
# Names of two and of three slashes; flattened with "_", desert_road and field_road would change
# places with their neighbours, which is how labels taken from sorted folders go wrong.
PLACES365_NAMES = (
    *("/a/airfield", "/a/apartment_building/outdoor", "/b/balcony/exterior", "/b/beach"),
    *("/c/canyon", "/d/desert/sand", "/d/desert/vegetation", "/d/desert_road"),
    *("/f/field/cultivated", "/f/field/wild", "/f/field_road", "/z/zen_garden"),
)


def make_cifar10(
    root: Path | str, train_per_class: int = 200, test_per_class: int = 50, seed: int = 0
) -> Path:
    """``cifar-10-batches-py/`` of ten classes: five training batches and a test batch.

    The files are pickles of Python 2 with NumPy arrays, opcode for opcode like the published ones.
    """

    def write(folder: Path, rng: np.random.Generator) -> None:
        base = folder / "cifar-10-batches-py"
        base.mkdir()
        images, labels = small_pictures(rng, 10, train_per_class, 32)
        for batch in range(5):
            name, part = f"data_batch_{batch + 1}", slice(batch, None, 5)
            _write_cifar(base / name, images[part], {"labels": labels[part].tolist()})
        images, labels = small_pictures(rng, 10, test_per_class, 32)
        _write_cifar(base / "test_batch", images, {"labels": labels.tolist()})
        meta = {"label_names": list(CIFAR10_NAMES), "num_vis": 3072}
        (base / "batches.meta").write_bytes(_python2_pickle(meta))

    return _write_whole(root, "cifar10", locals(), write)


def make_cifar100(
    root: Path | str, train_per_class: int = 20, test_per_class: int = 5, seed: int = 0
) -> Path:
    """``cifar-100-python/`` with ``train``, ``test`` and ``meta``: 100 fine, 20 coarse classes."""

    def write(folder: Path, rng: np.random.Generator) -> None:
        base = folder / "cifar-100-python"
        base.mkdir()
        for split, count in (("train", train_per_class), ("test", test_per_class)):
            images, fine = small_pictures(rng, 100, count, 32)
            labels = {"fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
            _write_cifar(base / split, images, labels)
        meta = {
            "fine_label_names": [f"fine_{index:02d}" for index in range(100)],
            "coarse_label_names": [f"coarse_{index:02d}" for index in range(20)],
        }
        (base / "meta").write_bytes(_python2_pickle(meta))

    return _write_whole(root, "cifar100", locals(), write)


def make_fashion_mnist(
    root: Path | str,
    train_per_class: int = 100,
    test_per_class: int = 50,
    compress: bool = True,
    seed: int = 0,
) -> Path:
    """The four idx files of MNIST's format, 28x28 grey, ten classes; ``.gz`` when compressed."""

    def write(folder: Path, rng: np.random.Generator) -> None:
        for split, count in (("train", train_per_class), ("t10k", test_per_class)):
            images, labels = small_pictures(rng, 10, count, 28)
            grey = images.mean(axis=3).round().astype(np.uint8)
            for name, array in (("images-idx3", grey), ("labels-idx1", labels.astype(np.uint8))):
                # Magic: two zero bytes, 8 for uint8, number of dimensions; then big-endian sizes.
                head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
                data = head + array.tobytes()
                if compress:
                    path = folder / f"{split}-{name}-ubyte.gz"
                    path.write_bytes(gzip.compress(data, mtime=0))
                else:
                    (folder / f"{split}-{name}-ubyte").write_bytes(data)

    return _write_whole(root, "fashion_mnist", locals(), write)


def make_imagenet(
    root: Path | str,
    classes: int = 10,
    train_per_class: int = 60,
    val_per_class: int = 20,
    size: int = 112,
    flat_val: bool = False,
    seed: int = 0,
) -> Path:
    """``train/<wnid>/`` and ``val/<wnid>/`` with JPEGs about ``size`` pixels wide and high.

    Args:
        classes: at most 20, the first ones of ImageNet's order.
        flat_val: write ``val/ILSVRC2012_val_000NNNNN.JPEG`` without class folders, and the devkit
            with the ground truth and ``meta.mat`` (needs SciPy), whose numbering of the classes is
            not the sorted one, as in the original.
    """
    wnids = _first(IMAGENET_WNIDS, classes)

    def write(folder: Path, rng: np.random.Generator) -> None:
        for label, wnid in enumerate(wnids):
            (folder / "train" / wnid).mkdir(parents=True)
            for number in range(train_per_class):
                path = folder / "train" / wnid / f"{wnid}_{number}.JPEG"
                _save(varied_picture(rng, label, classes, size), path)
        numbers = rng.permutation(classes) + 1  # label -> ILSVRC2012_ID
        labels = rng.permutation(np.repeat(np.arange(classes), val_per_class))
        for number, label in enumerate(labels, start=1):
            parent = folder / "val" if flat_val else folder / "val" / wnids[label]
            parent.mkdir(parents=True, exist_ok=True)
            path = parent / f"ILSVRC2012_val_{number:08d}.JPEG"
            _save(varied_picture(rng, label, classes, size), path)
        if flat_val:
            devkit = folder / "ILSVRC2012_devkit_t12" / "data"
            devkit.mkdir(parents=True)
            truth = "".join(f"{numbers[label]}\n" for label in labels)
            (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
            _write_synsets(devkit / "meta.mat", wnids, numbers)

    return _write_whole(root, "imagenet", locals(), write)


def make_places365(
    root: Path | str,
    classes: int = 12,
    train_per_class: int = 50,
    val_per_class: int = 20,
    size: int = 112,
    small: bool = False,
    edition: str = "standard",
    torchvision_names: bool = False,
    seed: int = 0,
) -> Path:
    """Places365's list files, category file and folders, with at most 12 of its 365 categories.

    Args:
        small: the 256x256 variant, folders ``data_256`` and ``val_256``, instead of the large one.
        edition: ``standard`` or ``challenge``: the name of the training list.
        torchvision_names: ``data_large_standard`` and the like, as torchvision renames the
            training folder, instead of the name the archive unpacks to.
    """
    if edition not in ("standard", "challenge"):
        raise ValueError(f"edition {edition!r}: choose 'standard' or 'challenge'")
    names = _first(PLACES365_NAMES, classes)

    def write(folder: Path, rng: np.random.Generator) -> None:
        # The published category file ends without a newline.
        categories = "\n".join(f"{name} {label}" for label, name in enumerate(names))
        (folder / "categories_places365.txt").write_text(categories)
        variant = "256" if small else "large"
        data = f"data_{variant}_{edition}" if torchvision_names else f"data_{variant}"
        picture = _small_picture if small else varied_picture
        lines = []
        for label, name in enumerate(names):
            parent = folder / data / name[1:]
            parent.mkdir(parents=True)
            for number in range(1, train_per_class + 1):
                _save(picture(rng, label, classes, size), parent / f"{number:08d}.jpg")
                lines.append(f"{name}/{number:08d}.jpg {label}\n")
        (folder / f"places365_train_{edition}.txt").write_text("".join(lines))
        (folder / f"val_{variant}").mkdir()
        lines = []
        labels = rng.permutation(np.repeat(np.arange(classes), val_per_class))
        for number, label in enumerate(labels, start=1):
            file_name = f"Places365_val_{number:08d}.jpg"
            _save(picture(rng, label, classes, size), folder / f"val_{variant}" / file_name)
            lines.append(f"{file_name} {label}\n")
        (folder / "places365_val.txt").write_text("".join(lines))

    return _write_whole(root, "places365", locals(), write)


def _small_picture(rng: np.random.Generator, label: int, classes: int, size: int) -> Image.Image:
    picture = varied_picture(rng, label, classes, size)
    return picture.resize((256, 256), Image.Resampling.BILINEAR)


def make_coco(
    root: Path | str,
    train: int = 160,
    val: int = 60,
    size: int = 128,
    year: int = 2017,
    seed: int = 0,
) -> Path:
    """``annotations/instances_*.json`` with ``train<year>/`` and ``val<year>/``: three shapes.

    Circles, squares and triangles of COCO's three sizes (small below 32x32 pixels of area, large
    above 96x96; a picture under 112 pixels holds no large one), one to three in a picture, and
    every twentieth picture empty.

    Args:
        size: width of a picture in pixels; its height varies around it.
        year: 2017, or 2014: its file names, and val split into minival and valminusminival.
    """
    if year not in (2014, 2017):
        raise ValueError(f"year {year}: choose 2014 or 2017")
    if size < 48:
        raise ValueError(f"size {size}: shapes need pictures of at least 48 pixels")

    def write(folder: Path, rng: np.random.Generator) -> None:
        (folder / "annotations").mkdir()
        parts = [("train", "train", train), ("val" if year == 2017 else "minival", "val", val)]
        if year == 2014:
            parts.append(("valminusminival", "val", max(1, val // 2)))
        image_id = annotation_id = 0
        for name, images_in, count in parts:
            (folder / f"{images_in}{year}").mkdir(exist_ok=True)
            prefix = f"COCO_{images_in}2014_" if year == 2014 else ""
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for _ in range(count):
                image_id += int(rng.integers(1, 9))  # real ids have gaps
                file_name = f"{prefix}{image_id:012d}.jpg"
                picture, shapes = picture_of_shapes(rng, size, empty=len(images) % 20 == 19)
                _save(picture, folder / f"{images_in}{year}" / file_name)
                width, height = picture.size
                row = {"id": image_id, "file_name": file_name, "width": width, "height": height}
                images.append(row)
                for shape in shapes:
                    annotation_id += 1
                    ids = {"id": annotation_id, "image_id": image_id}
                    annotations.append({**ids, **shape, "iscrowd": 0})
            path = folder / "annotations" / f"instances_{name}{year}.json"
            path.write_text(json.dumps(_coco_content(year, images, annotations)))

    return _write_whole(root, "coco", locals(), write)


def _coco_content(year: int, images: list, annotations: list) -> dict[str, Any]:
    return {
        "info": {"description": "synthetic shapes", "year": year},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in COCO_CATEGORIES
        ],
    }


MAKERS: dict[str, Callable[..., Path]] = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "fashion_mnist": make_fashion_mnist,
    "imagenet": make_imagenet,
    "places365": make_places365,
    "coco": make_coco,
}


def make_all(root: Path | str, only: list[str] | None = None, seed: int = 0) -> dict[str, Path]:
    """Make every set, or those in ``only``, in ``root/<name>``; returns name -> its root."""
    unknown = sorted(set(only or ()) - set(MAKERS))
    if unknown:
        raise ValueError(f"unknown sample data {unknown[0]!r}: choose from {', '.join(MAKERS)}")
    chosen = [name for name in MAKERS if not only or name in only]
    return {name: MAKERS[name](Path(root) / name, seed=seed) for name in chosen}


# Writing -----------------------------------------------------------------------------------------


def _write_whole(
    root: Path | str,
    name: str,
    arguments: dict,
    write: Callable[[Path, np.random.Generator], None],
) -> Path:
    """Let ``write`` fill a folder beside ``root``, then move it there in one step."""
    root = Path(root)
    plain = (bool, int, str)
    settings = {key: arguments[key] for key in sorted(arguments) if key != "root"}
    settings = {key: value for key, value in settings.items() if isinstance(value, plain)}
    for key, value in settings.items():
        if isinstance(value, int) and key != "seed" and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{key}={value}: a sample data set needs at least 1")
    marker = json.dumps({"made_by": "sebench data sample", "name": name, **settings}) + "\n"
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = root / SYNTHETIC
        if found.is_file() and found.read_text() == marker:
            return root
        raise ValueError(
            f"{root} holds something else than this sample data set; choose another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    folder = root.with_name(f".{root.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        write(folder, np.random.default_rng([settings["seed"], list(MAKERS).index(name)]))
        (folder / SYNTHETIC).write_text(marker)
        os.replace(folder, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def _remove_leftovers(root: Path) -> None:
    """Delete what calls for the same folder left behind that were killed."""
    for folder in root.parent.glob(f".{root.name}.*.partial"):
        number = folder.name.split(".")[-2]
        try:
            os.kill(int(number), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue  # another user's, at work


def _first(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    if not 2 <= count <= len(names):
        raise ValueError(f"classes={count}: choose from 2 to {len(names)}")
    return names[:count]


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="JPEG", quality=90)


def _write_cifar(path: Path, images: np.ndarray, labels: dict[str, list[int]]) -> None:
    """``images``: (N, 32, 32, 3) uint8, written as rows of 1024 red, green and blue values."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)
    files = [f"{path.name}_{index:05d}.png" for index in range(len(rows))]
    content = {"batch_label": path.name, "data": rows, "filenames": files, **labels}
    path.write_bytes(_python2_pickle(content))


def _python2_pickle(value: object) -> bytes:
    """Pickle as Python 2 with NumPy 1 did, protocol 2: byte strings, ``numpy.core``."""

    def string(text: str | bytes) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        if len(data) < 256:
            return b"U" + bytes((len(data),)) + data
        return b"T" + len(data).to_bytes(4, "little") + data

    def encode(item: object) -> bytes:
        if item is None:
            return b"N"
        if isinstance(item, bool):
            return b"\x88" if item else b"\x89"
        if isinstance(item, int):
            return b"J" + item.to_bytes(4, "little", signed=True)
        if isinstance(item, (str, bytes)):
            return string(item)
        if isinstance(item, tuple):
            return b"(" + b"".join(map(encode, item)) + b"t"
        if isinstance(item, list):
            return b"](" + b"".join(map(encode, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(encode(k) + encode(v) for k, v in item.items()) + b"u"
        assert isinstance(item, np.ndarray)
        assert item.dtype == np.uint8
        dtype = b"cnumpy\ndtype\n" + encode(("u1", 0, 1)) + b"R"
        dtype += encode((3, "|", None, None, None, -1, -1, 0)) + b"b"
        array = b"cnumpy.core.multiarray\n_reconstruct\n"
        array += b"(cnumpy\nndarray\n" + encode((0,)) + string("b") + b"tR"
        state = encode(1) + encode(item.shape) + dtype + b"\x89" + string(item.tobytes())
        return array + b"(" + state + b"tb"

    return b"\x80\x02" + encode(value) + b"."


def _write_synsets(path: Path, wnids: tuple[str, ...], numbers: np.ndarray) -> None:
    from scipy.io import savemat

    rows = [(int(numbers[label]), wnid, f"name of {wnid}", 0) for label, wnid in enumerate(wnids)]
    rows.sort()
    # Groups of classes follow the classes; readers have to leave them out.
    rows.append((len(wnids) + 1, "n00001740", "entity", len(wnids)))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    savemat(path, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
