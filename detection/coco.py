"""COCO and COCO-format sets: where they lie, and what is wrong with them, before any compute.

The layout is Detectron2's: under the root `annotations/instances_*.json` beside one image folder a
split. 2014 trains on train + valminusminival and is scored on minival, the paper's 80k + 35k / 5k;
these are the same pictures as 2017's train and val. Imports neither torch nor Detectron2 until
`register_dataset`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

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
_OUTSIDE = 1.0  # pixels a box may reach beyond the picture
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # EXIF: tag, and the values that swap width and height


@dataclass(frozen=True)
class CocoPart:
    """One annotation file and its pictures, checked."""

    annotations: Path
    images: Path
    image_count: int
    box_count: int
    categories: dict[int, str]  # id -> name, by rising id
    bad_boxes: int  # without area or outside the picture, tolerated by data.accept_bad_boxes
    bad_images: tuple[str, ...]  # file names, tolerated by data.skip_bad_images

    @property
    def split(self) -> str:
        """The file's own word for it: 'val2017'."""
        return self.annotations.stem.removeprefix("instances_")


@dataclass(frozen=True)
class CocoData:
    train: tuple[CocoPart, ...]  # empty when only an evaluation was asked for
    val: CocoPart
    synthetic: bool  # the root holds a file named SYNTHETIC
    root: Path

    @property
    def class_names(self) -> list[str]:
        return list(self.val.categories.values())

    def sha256(self) -> str:
        """Hash of the annotation files, train and val, in order."""
        digest = hashlib.sha256()
        for part in (*self.train, self.val):
            with part.annotations.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def load_coco(data: DataSettings, splits: Iterable[str] = ("train", "val")) -> CocoData:
    """Find and check the splits of `data`; 'val' is always read.

    Raises:
        ValueError: a file or picture is missing, an id is unknown or twice there, more boxes lie
            outside their picture or have no area than `data.accept_bad_boxes`, a picture is
            damaged, or train and val disagree about the categories.
    """
    train = ()
    if "train" in splits:
        train = tuple(_check_part(*paths, "train", data) for paths in _locate(data, "train"))
    (paths,) = _locate(data, "val")
    val = _check_part(*paths, "val", data)
    for part in train:
        if part.categories != val.categories:
            differ = dict(part.categories.items() ^ val.categories.items())
            raise ValueError(
                f"{part.annotations.name} and {val.annotations.name} disagree about the "
                f"categories, e.g. {next(iter(differ.items()))}: they are of different sets"
            )
    root = val.annotations.parent if data.name == "custom" else datasets_root(data)
    marks = (root / "SYNTHETIC", root.parent / "SYNTHETIC")
    return CocoData(train, val, any(mark.is_file() for mark in marks), root)


def datasets_root(data: DataSettings) -> Path:
    """The folder of COCO: what `data.root` names, or its `coco/`."""
    root = Path(data.root or os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    return root / "coco" if (root / "coco").is_dir() else root


def register_dataset(part: CocoPart) -> str:
    """Enter `part` into Detectron2's catalog and return its name there; again is no harm."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    name = f"coco:{part.annotations}"
    bad = {str(part.images / file_name) for file_name in part.bad_images}

    def load() -> list[dict[str, Any]]:
        records = load_coco_json(str(part.annotations), str(part.images), name)
        return [record for record in records if record["file_name"] not in bad]

    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(json_file=str(part.annotations), image_root=str(part.images))
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


def _check_part(annotations: Path, images: Path, split: str, data: DataSettings) -> CocoPart:
    content = read_annotations(annotations)
    categories = {row["id"]: str(row["name"]) for row in content["categories"]}
    pictures = {row["id"]: row for row in content["images"]}
    bad_boxes = _check_boxes(annotations, content["annotations"], pictures)
    if len(bad_boxes) > data.accept_bad_boxes:
        raise ValueError(
            f"{annotations}: {len(bad_boxes)} boxes have no area or lie outside their picture "
            f"({_some(bad_boxes)}); mend the file, or tolerate them by "
            f"data.accept_bad_boxes={len(bad_boxes)}"
        )
    bad_images = _check_pictures(images, list(pictures.values()))
    if bad_images and (split == "val" or len(bad_images) > data.skip_bad_images):
        advice = (
            "an evaluation leaves no picture out"
            if split == "val"
            else f"mend them, or leave them out by data.skip_bad_images={len(bad_images)}"
        )
        problems = [f"{name}: {problem}" for name, problem in bad_images]
        raise ValueError(
            f"{images}: {len(bad_images)} damaged pictures ({_some(problems)}); {advice}"
        )
    return CocoPart(
        annotations=annotations,
        images=images,
        image_count=len(pictures) - len(bad_images),
        box_count=len(content["annotations"]),
        categories=dict(sorted(categories.items())),
        bad_boxes=len(bad_boxes),
        bad_images=tuple(name for name, _ in bad_images),
    )


def read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a COCO file; its three lists are there, their rows whole and their ids single.

    Raises:
        ValueError: naming the file and the first rows at fault.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"no annotation file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    needed = {
        "images": ("id", "file_name", "width", "height"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
    }
    for table, keys in needed.items():
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise ValueError(
                f"{path} holds no list {table!r}: a COCO file has images, categories and "
                "annotations (the test sets have no annotations and cannot be scored here)"
            )
        for index, row in enumerate(rows):
            lacking = [key for key in keys if not isinstance(row, dict) or key not in row]
            if lacking:
                raise ValueError(f"{path}: {table}[{index}] has no {lacking[0]!r}")
        # The minival and valminusminival files in circulation repeat annotation ids.
        if table != "annotations" or "minival" not in path.name:
            _require_single_ids(path, table, rows)
    image_ids = {row["id"] for row in content["images"]}
    category_ids = {row["id"] for row in content["categories"]}
    rows = content["annotations"]
    _refuse(path, rows, "image_id", lambda row: row["image_id"] not in image_ids)
    _refuse(path, rows, "category_id", lambda row: row["category_id"] not in category_ids)
    _refuse(
        path, rows, "bbox", lambda row: not _is_box(row["bbox"]), "is not [x, y, width, height]"
    )
    return content


def _require_single_ids(path: Path, table: str, rows: list[dict[str, Any]]) -> None:
    seen: set[int] = set()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"{path}: two {table} have the id {row['id']}")
        seen.add(row["id"])


def _refuse(
    path: Path,
    rows: list[dict[str, Any]],
    key: str,
    wrong: Callable[[dict[str, Any]], bool],
    reason: str = "does not exist",
) -> None:
    bad = [f"annotation {row['id']}: {key} {row[key]}" for row in rows if wrong(row)]
    if bad:
        raise ValueError(f"{path}: {len(bad)} annotations whose {key} {reason} ({_some(bad)})")


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in value)
    )


def _check_boxes(
    path: Path, annotations: list[dict[str, Any]], pictures: dict[int, dict[str, Any]]
) -> list[str]:
    """What is wrong with boxes that are readable: no area, or beyond the picture."""
    problems = []
    for row in annotations:
        x, y, width, height = row["bbox"]
        picture = pictures[row["image_id"]]
        if width <= 0 or height <= 0:
            problems.append(f"annotation {row['id']}: {width:g} x {height:g} pixels")
        elif (
            min(x, y) < -_OUTSIDE
            or x + width > picture["width"] + _OUTSIDE
            or y + height > picture["height"] + _OUTSIDE
        ):
            size = f"{picture['width']} x {picture['height']}"
            problems.append(f"annotation {row['id']}: {row['bbox']} in a picture of {size}")
    return problems


def _check_pictures(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(file name, what is wrong) of damaged pictures; missing ones raise."""
    strange = [row["file_name"] for row in rows if ".." in Path(row["file_name"]).parts]
    if strange:
        raise ValueError(f"{folder}: the file name {strange[0]!r} leads out of the image folder")
    present = {entry.name for entry in os.scandir(folder)}
    names = [row["file_name"] for row in rows]
    missing = [n for n in names if n not in present and not (folder / n).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(rows)} pictures ({_some(missing)})"
        )
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(lambda row: _picture_problem(folder, row), rows)
    return [(name, problem) for name, problem in zip(names, problems, strict=True) if problem]


def _picture_problem(folder: Path, row: dict[str, Any]) -> str | None:
    """None for a picture that is whole and of the size its row says.

    A JPEG that ends as it should is not decoded: 118,287 of them are checked in under a minute.
    """
    path = folder / row["file_name"]
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            if not _ends_as_jpeg(path):
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return "not an image" if "cannot identify" in str(error) else str(error)
    if (width, height) != (row["width"], row["height"]):
        return f"{width} x {height} pixels, not {row['width']} x {row['height']}"
    return None


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(max(0, path.stat().st_size - 32))
        return start == b"\xff\xd8" and b"\xff\xd9" in file.read()


def _some(items: list[str], count: int = 2) -> str:
    return "; ".join(items[:count]) + ("; ..." if len(items) > count else "")
