"""COCO and COCO-format sets: where they lie, and what is wrong with them, before any compute.

The layout is Detectron2's: under the root `annotations/instances_*.json` beside one image folder a
split. 2014 trains on train + valminusminival and is scored on minival, the paper's 80k + 35k / 5k;
these are the same images as 2017's train and val. Imports neither torch nor Detectron2 until
`register_dataset`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.config import printable
from backbones.files import DECODED_UP_FRONT, IMAGE_FORMATS, SYNTHETIC

from .annotations import Annotations, read_annotations, some
from .config import DataSettings

# split: (annotation file, image folder); several files are read as one set.
LAYOUTS = {
    "coco_2017": {
        "train": [("instances_train2017.json", "train2017")],
        "val": [("instances_val2017.json", "val2017")],
    },
    "coco_2014": {
        "train": [
            ("instances_train2014.json", "train2014"),
            ("instances_valminusminival2014.json", "val2014"),
        ],
        "val": [("instances_minival2014.json", "val2014")],
    },
}
# COCO's own boxes keep inside to the rounding of their coordinates.
_OUTSIDE = 1.0  # pixels a box may reach beyond the image
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # EXIF: tag, and the values that swap width and height


@dataclass(frozen=True)
class CocoPart:
    """One annotation file and its images, checked."""

    annotations: Annotations
    folder: Path  # of the images
    bad_boxes: int  # without area or outside the image, tolerated by data.accept_bad_boxes
    bad_images: frozenset[int]  # places of images left out, tolerated by data.skip_bad_images

    @property
    def image_count(self) -> int:
        """Images that are read: without those left out."""
        return len(self.annotations.image_ids) - len(self.bad_images)

    def records(self) -> list[dict[str, Any]]:
        """Images and boxes as Detectron2 has them; `image_id` is the place in `annotations`."""
        from detectron2.structures import BoxMode

        truth = self.annotations
        boxes: dict[int, list[dict[str, Any]]] = {}
        columns = (truth.image, truth.category, truth.box, truth.crowd.astype(int))
        for image, category, box, crowd in zip(*(c.tolist() for c in columns), strict=True):
            row = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
            row |= {"category_id": category, "iscrowd": crowd}
            boxes.setdefault(image, []).append(row)
        return [
            {
                "file_name": str(truth.file(self.folder, image)),
                "width": width,
                "height": height,
                "image_id": image,
                "annotations": boxes.get(image, []),
            }
            for image, (width, height) in enumerate(truth.sizes.tolist())
            if image not in self.bad_images
        ]


@dataclass(frozen=True)
class CocoData:
    """The splits of an experiment, checked."""

    train: tuple[CocoPart, ...]  # empty when only an evaluation was asked for
    val: CocoPart
    synthetic: bool  # the root holds a file named SYNTHETIC
    root: Path

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, by rising id."""
        return self.val.annotations.category_names

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories in the annotation files, rising."""
        return self.val.annotations.category_ids.tolist()

    def sha256(self) -> str:
        """Hash of the annotation files, train and val, in order."""
        digest = hashlib.sha256()
        for part in (*self.train, self.val):
            with part.annotations.path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def load_coco(data: DataSettings, splits: Iterable[str] = ("train", "val")) -> CocoData:
    """Find and check the splits of `data`; 'val' is always read.

    Raises:
        ValueError: a file or image is missing, an id is unknown or twice there, more boxes lie
            outside their image or have no area than `data.accept_bad_boxes`, an image is
            damaged, or train and val disagree about the categories.
    """
    train: tuple[CocoPart, ...] = ()
    if "train" in splits:
        train = tuple(_check_part(*paths, "train", data) for paths in _locate(data, "train"))
    (paths,) = _locate(data, "val")
    val = _check_part(*paths, "val", data)
    for part in train:
        _require_same_categories(part.annotations, val.annotations)
    if train:
        _require_a_box(train)
    root = val.annotations.path.parent if data.name == "custom" else datasets_root(data)
    marks = (root / SYNTHETIC, root.parent / SYNTHETIC)
    return CocoData(train, val, any(mark.is_file() for mark in marks), root)


def datasets_root(data: DataSettings) -> Path:
    """The folder of COCO: what `data.root` names, or its `coco/`."""
    root = Path(data.root or os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    return root / "coco" if (root / "coco").is_dir() else root


def register_dataset(part: CocoPart) -> str:
    """Enter `part` into Detectron2's catalog and return its name there. Safe to call twice."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    truth = part.annotations
    name = f"coco:{truth.path}"
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, part.records)
    MetadataCatalog.get(name).set(
        json_file=str(truth.path),
        image_root=str(part.folder),
        thing_classes=truth.category_names,
        thing_dataset_id_to_contiguous_id={
            category_id: place for place, category_id in enumerate(truth.category_ids.tolist())
        },
    )
    return name


# Finding ------------------------------------------------------------------------------------------


def _locate(data: DataSettings, split: str) -> list[tuple[Path, Path]]:
    if data.name == "custom":
        keys = (f"{split}_annotations", f"{split}_images")
        given = [getattr(data, key) for key in keys]
        if None in given:
            raise ValueError(
                f"data.name=custom: data.{keys[given.index(None)]} is missing; give the COCO file "
                f"and the image folder, data.{keys[0]}=FILE data.{keys[1]}=FOLDER"
            )
        found = [(Path(given[0]).expanduser(), Path(given[1]).expanduser())]
        advice = f"check data.{keys[0]} and data.{keys[1]}"
    else:
        root = datasets_root(data)
        if not root.is_dir():
            raise ValueError(
                f"data.root: no folder {root} (looked for {root}/annotations/"
                f"{LAYOUTS[data.name][split][0][0]}); set data.root or $DETECTRON2_DATASETS"
            )
        found = [
            (root / "annotations" / file, _image_folder(root, folder))
            for file, folder in LAYOUTS[data.name][split]
        ]
        advice = f"{data.name} under data.root={root} needs it"
    for file, folder in found:
        if not file.is_file():
            raise ValueError(f"no annotation file {file}: {advice}")
        if not folder.is_dir():
            raise ValueError(f"no image folder {folder}: {advice}")
    return found


def _image_folder(root: Path, name: str) -> Path:
    """`root/name`, or `root/coco_name` as the first Detectron has it."""
    older = root / f"coco_{name}"
    return older if older.is_dir() and not (root / name).is_dir() else root / name


# Checking -----------------------------------------------------------------------------------------


def _check_part(path: Path, folder: Path, split: str, data: DataSettings) -> CocoPart:
    annotations = read_annotations(path)
    bad_boxes = _find_bad_boxes(annotations)
    if len(bad_boxes) > data.accept_bad_boxes:
        raise ValueError(
            f"{path}: {len(bad_boxes)} boxes have no area or lie outside their image "
            f"({some(bad_boxes)}); mend the file, or tolerate them by "
            f"data.accept_bad_boxes={len(bad_boxes)}"
        )
    bad_images = _find_bad_images(annotations, folder)
    if bad_images and (split == "val" or len(bad_images) > data.skip_bad_images):
        advice = (
            "an evaluation leaves no image out"
            if split == "val"
            else f"mend them, or leave them out by data.skip_bad_images={len(bad_images)}"
        )
        problems = [
            f"{printable(annotations.file_names[image])}: {problem}"
            for image, problem in bad_images.items()
        ]
        raise ValueError(f"{folder}: {len(bad_images)} damaged images ({some(problems)}); {advice}")
    return CocoPart(annotations, folder, len(bad_boxes), frozenset(bad_images))


def _require_same_categories(train: Annotations, val: Annotations) -> None:
    one, other = (
        set(zip(each.category_ids.tolist(), each.category_names, strict=True))
        for each in (train, val)
    )
    if one != other:
        raise ValueError(
            f"{train.path.name} and {val.path.name} disagree about the categories, e.g. "
            f"{min(one ^ other)}: they are of different sets"
        )


def _require_a_box(parts: Sequence[CocoPart]) -> None:
    """Training leaves images out that hold crowds alone, and needs one that is left."""
    for part in parts:
        truth = part.annotations
        images = set(truth.image[~truth.crowd].tolist()) - part.bad_images
        if images:
            return
    raise ValueError(
        f"{parts[0].annotations.path}: every box is a crowd (iscrowd: 1) or in an image that is "
        "left out; nothing is left to train on"
    )


def _find_bad_boxes(truth: Annotations) -> list[str]:
    """What is wrong with boxes that are readable: no area, or beyond the image."""
    low, sides = truth.box[:, :2], truth.box[:, 2:]
    sizes = truth.sizes[truth.image]
    flat = np.any(sides <= 0, axis=1)
    beyond = np.any((low < -_OUTSIDE) | (low + sides > sizes + _OUTSIDE), axis=1)
    problems = []
    for row in np.flatnonzero(flat | beyond):
        what = "{2:g} x {3:g} pixels" if flat[row] else "[{:g}, {:g}, {:g}, {:g}] in an image of "
        what = what.format(*truth.box[row])
        if not flat[row]:
            what += "{} x {}".format(*sizes[row])
        problems.append(f"annotation {truth.identifier[row]}: {what}")
    return problems


def _find_bad_images(truth: Annotations, folder: Path) -> dict[int, str]:
    """What is wrong with damaged images, by their places; missing ones raise."""
    paths = [truth.file(folder, image) for image in range(len(truth.file_names))]
    present = {entry.name for entry in os.scandir(folder)}
    missing = [
        printable(name)
        for name, path in zip(truth.file_names, paths, strict=True)
        if name not in present and not path.is_file()
    ]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of {len(paths)} images ({some(missing)})")
    whole = sum(path.stat().st_size for path in paths) <= DECODED_UP_FRONT
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(_image_problem, paths, truth.sizes.tolist(), itertools.repeat(whole))
    return {image: problem for image, problem in enumerate(problems) if problem}


def _image_problem(path: Path, size: list[int], whole: bool) -> str | None:
    """None for an image that is whole and of the size its row says.

    Where not the whole of it is asked for, a JPEG that ends as it should is not decoded: 118,287 of
    them are checked in under a minute.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:  # no PostScript: PIL would run it
            stored = list(image.size)
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            deep = image.mode == "I" or image.mode.startswith(("I;", "F"))
            if whole or not _ends_as_jpeg(path):
                image.load()
    except Exception as error:  # Pillow raises what it likes for a damaged file
        return "not an image" if "cannot identify" in str(error) else printable(str(error))
    if deep:
        return (
            f"mode {image.mode}: Detectron2 would clip it to white; convert it to 8 bits a channel"
        )
    seen = stored[::-1] if turned else stored
    if seen == size:
        return None
    width, height = seen
    if turned and stored == size:
        return (
            f"seen as {width} x {height} pixels by its EXIF orientation, annotated as stored; "
            "remove the orientation, or annotate the image as it is seen"
        )
    return f"{width} x {height} pixels, not {size[0]} x {size[1]}"


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(max(0, path.stat().st_size - 32))
        return start == b"\xff\xd8" and b"\xff\xd9" in file.read()
