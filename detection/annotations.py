"""COCO files: read, checked and typed once, as arrays that training, scoring and the report share.

What a file leaves open is decided here, as pycocotools decides it or where it would stop:

- ids of boxes only have to differ; no evaluator sees them (pycocotools takes a box with id 0 for a
  detection that found nothing);
- a box without `area` has that of its sides, one without `iscrowd` is none;
- `ignore` is refused: pycocotools reads over it, and Detectron2 stops at it;
- masks are not read: boxes are what this suite is about.

Images and categories are numbered by rising id, and everything else names them by that number.
Imports neither torch nor Detectron2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np

from backbones.config import printable

_LARGEST = 2**63 - 1
Id = Annotated[int, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)] | float  # 139.0, as pandas writes it
Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]  # pixels
Box = tuple[Number, Number, Number, Number]  # x, y, width, height
Side = Annotated[int, msgspec.Meta(ge=1, le=10**6)]


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: Annotated[str, msgspec.Meta(min_length=1)]
    width: Side
    height: Side


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str | int | float


class _Annotation(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    bbox: Box
    area: Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)] | None = None
    iscrowd: bool | int | float | None = 0
    ignore: bool | int | float | None = 0


class _File(msgspec.Struct, gc=False):
    images: list[_Image] = []
    categories: list[_Category] = []
    annotations: list[_Annotation] = []


class _Detection(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: Box
    score: Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]


@dataclass(frozen=True, eq=False)
class Annotations:
    """The ground truth of a COCO file: I images, C categories, N boxes.

    Boxes are in the order of the file; `image` and `category` are places in `image_ids` and
    `category_ids`.
    """

    path: Path
    sha256: str  # of the file
    image_ids: np.ndarray  # (I,) int64, rising
    file_names: list[str]
    sizes: np.ndarray  # (I, 2) int64: width, height, pixels
    category_ids: np.ndarray  # (C,) int64, rising
    category_names: list[str]
    identifier: np.ndarray  # (N,) int64, of the file, for messages
    image: np.ndarray  # (N,) int64
    category: np.ndarray  # (N,) int64
    box: np.ndarray  # (N, 4) float64: x, y, width, height, pixels
    area: np.ndarray  # (N,) float64, square pixels
    crowd: np.ndarray  # (N,) bool: not one object but many

    @property
    def split(self) -> str:
        """The file's own word for it: 'val2017'."""
        return self.path.stem.removeprefix("instances_")

    def file(self, folder: Path, image: int) -> Path:
        """Where an image lies.

        Raises:
            ValueError: its name leads out of the folder.
        """
        name = self.file_names[image]
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(
                f"{self.path}: the file name {printable(name)!r} leads out of the image folder; "
                f"names are relative to it"
            )
        return folder / name

    def images_of(self, category: int) -> int:
        """How many images hold a box of a category, crowds included."""
        return len(np.unique(self.image[self.category == category]))


@dataclass(frozen=True, eq=False)
class Results:
    """D detections in the images and categories of some `Annotations`, in the order they came."""

    image: np.ndarray  # (D,) int64, places in `Annotations.image_ids`
    category: np.ndarray  # (D,) int64, places in `Annotations.category_ids`
    box: np.ndarray  # (D, 4) float64: x, y, width, height, pixels
    score: np.ndarray  # (D,) float64

    def __len__(self) -> int:
        return len(self.score)

    def as_rows(self) -> np.ndarray:
        """(D, 7) float64 as evaluators take them, images and categories counted from 1."""
        return np.column_stack([self.image + 1, self.box, self.score, self.category + 1])

    def as_json(self, truth: Annotations) -> str:
        """The text of a COCO results file; numbers exactly."""
        image_ids, category_ids = truth.image_ids[self.image], truth.category_ids[self.category]
        columns = (image_ids, category_ids, self.box, self.score)
        keys = ("image_id", "category_id", "bbox", "score")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return json.dumps([dict(zip(keys, row, strict=True)) for row in rows])

    def write_table(self, truth: Annotations, path: Path) -> None:
        """Write the columns of `_COLUMNS` to a Parquet file: an eighth of the text, numbers exactly."""
        import pyarrow as pa
        from pyarrow import parquet

        ids = [truth.image_ids[self.image], truth.category_ids[self.category]]
        floats = [
            narrow if ((narrow := column.astype(np.float32)) == column).all() else column
            for column in (*self.box.T, self.score)
        ]
        table = pa.table(dict(zip(_COLUMNS, [*ids, *floats], strict=True)))
        parquet.write_table(
            table,
            path,
            compression="zstd",
            use_dictionary=list(_COLUMNS[:2]),
            use_byte_stream_split=list(_COLUMNS[2:]),
        )


def read_annotations(path: Path | str) -> Annotations:
    """Read the ground truth of a COCO file.

    Raises:
        ValueError: the file cannot be read, a list or a key is missing, a value is of another type
            or not finite, an id is there twice or names nothing; with the first row at fault.
    """
    return annotations_from(_read(Path(path), "annotation"), Path(path))


def annotations_from(content: bytes, path: Path) -> Annotations:
    """As `read_annotations`, from the content of a file; `path` names it."""
    file = _decode(content, _File, path)
    _require_lists(file, path)
    image_ids = _ids(path, "images", "id", [row.id for row in file.images])
    category_ids = _ids(path, "categories", "id", [row.id for row in file.categories])
    identifier = _ids(path, "annotations", "id", [row.id for row in file.annotations])
    _require_single(path, "images", image_ids)
    _require_single(path, "categories", category_ids)
    # The minival and valminusminival files in circulation repeat annotation ids.
    if "minival" not in path.name:
        _require_single(path, "annotations", identifier)
    by_id, categories_by_id = np.argsort(image_ids), np.argsort(category_ids)
    image_ids, category_ids = image_ids[by_id], category_ids[categories_by_id]
    images = [file.images[place] for place in by_id]

    def places(key: str, known: np.ndarray) -> np.ndarray:
        ids = _ids(path, "annotations", key, [getattr(row, key) for row in file.annotations])
        found, strange = _places(known, ids)
        if strange.any():
            rows = [f"annotation {identifier[i]}: {key} {ids[i]}" for i in np.flatnonzero(strange)]
            raise ValueError(
                f"{path}: {len(rows)} annotations whose {key} does not exist ({some(rows)})"
            )
        return found

    box = _boxes([row.bbox for row in file.annotations])
    area = [row.area for row in file.annotations]
    _flags(path, "ignore", [row.ignore for row in file.annotations], allowed=(0,))
    return Annotations(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        image_ids=image_ids,
        file_names=[row.file_name for row in images],
        sizes=np.array([[row.width, row.height] for row in images], np.int64),
        category_ids=category_ids,
        category_names=[str(file.categories[place].name) for place in categories_by_id],
        identifier=identifier,
        image=places("image_id", image_ids),
        category=places("category_id", category_ids),
        box=box,
        area=np.array(
            [w * h if a is None else a for a, (_, _, w, h) in zip(area, box.tolist(), strict=True)]
        ),
        crowd=_flags(path, "iscrowd", [row.iscrowd for row in file.annotations], allowed=(0, 1)),
    )


def read_results(path: Path | str, truth: Annotations) -> Results:
    """Read a file of COCO results: `[{"image_id", "category_id", "bbox", "score"}, ...]`.

    A name that ends in .parquet is a file of `Results.write_table`.

    Raises:
        ValueError: the file cannot be read, or a detection lacks something or names an image or
            category that `truth` does not have; with the first row at fault.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_table(path, truth)
    rows = _decode(_read(path, "results"), list[_Detection], path)
    return results_from(
        truth,
        _ids(path, "", "image_id", [row.image_id for row in rows]),
        _ids(path, "", "category_id", [row.category_id for row in rows]),
        _boxes([row.bbox for row in rows]),
        np.array([row.score for row in rows], np.float64),
        path,
    )


def results_from(
    truth: Annotations,
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    box: np.ndarray,
    score: np.ndarray,
    source: Path | str = "the detections",
) -> Results:
    """Results from columns; ids as the annotation file has them.

    Raises:
        ValueError: an image or category that `truth` does not have.
    """
    image, strange_images = _places(truth.image_ids, image_ids)
    category, strange_categories = _places(truth.category_ids, category_ids)
    for key, ids, strange in (
        ("image_id", image_ids, strange_images),
        ("category_id", category_ids, strange_categories),
    ):
        if strange.any():
            unknown = np.unique(ids[strange])
            raise ValueError(
                f"{source}: {key} {unknown[0]} is not in {truth.path} ({len(unknown)} such ids); "
                "the results are of another set"
            )
    return Results(image, category, np.asarray(box, np.float64), np.asarray(score, np.float64))


def join_results(parts: Sequence[Results]) -> Results:
    """The detections of several parts, one after the other."""
    none = Results(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
    columns = zip(*(vars(part).values() for part in (none, *parts)), strict=True)
    return Results(*map(np.concatenate, columns))


def some(items: Sequence[str], count: int = 2) -> str:
    """The first few of many, for a message."""
    return "; ".join(items[:count]) + ("; ..." if len(items) > count else "")


# Reading -----------------------------------------------------------------------------------------

_COLUMNS = ("image_id", "category_id", "x", "y", "width", "height", "score")
_MOST_ROWS = 10_000_000  # of a table


def _read_table(path: Path, truth: Annotations) -> Results:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_metadata(path).num_rows
        if rows > _MOST_ROWS:
            raise ValueError(f"{path}: {rows} detections, more than {_MOST_ROWS}")
        kinds = [pa.int64()] * 2 + [pa.float64()] * 5
        schema = pa.schema(list(zip(_COLUMNS, kinds, strict=True)))
        table = parquet.read_table(path, columns=list(_COLUMNS)).select(_COLUMNS).cast(schema)
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = printable(str(error).splitlines()[0])
        raise ValueError(f"{path}: not readable as a table of detections ({reason})") from None
    columns = [table[name].to_numpy() for name in _COLUMNS]
    if table.num_rows and not all(np.isfinite(column).all() for column in columns):
        raise ValueError(f"{path}: a detection holds no number")
    image_ids, category_ids, *box, score = columns
    return results_from(truth, image_ids, category_ids, np.column_stack(box), score, path)


def _read(path: Path, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"no {what} file {path}: {error.strerror}") from error
    encoding = json.detect_encoding(content)
    if encoding == "utf-8":
        return content
    try:
        return content.decode(encoding).encode()  # Windows writes byte order marks and UTF-16
    except UnicodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _decode(content: bytes, kind: Any, path: Path) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        place = place.strip("`.") or "the file"
        message = message.replace("Object missing required field ", "has no ").replace("`", "'")
        if kind is not _File:
            place = f"detection {place.replace('[', '', 1).replace(']', '', 1)}"
            message += "; a COCO results file is a list of detections, {image_id, category_id, "
            message += "bbox: [x, y, width, height], score}"
        elif ".bbox" in place:
            message += "; a box is [x, y, width, height], four finite numbers"
        colon = "" if message.startswith("has no") else ":"
        raise ValueError(f"{path}: {place}{colon} {message}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = (
            "; NaN and Infinity are no JSON" if b"NaN" in content or b"Infinity" in content else ""
        )
        raise ValueError(f"{path} is not JSON: {error}{hint}") from None
    except RecursionError:
        raise ValueError(f"{path} is not a COCO file: it is nested too deeply") from None


# Checking ----------------------------------------------------------------------------------------


def _ids(path: Path, table: str, key: str, values: list[int | float]) -> np.ndarray:
    ids = np.array(values)
    if ids.dtype == np.int64:
        return ids
    for index, value in enumerate(values):
        if isinstance(value, float):
            if not (value.is_integer() and abs(value) <= 2**53):
                place = f"{table}[{index}]" if table else f"detection {index}"
                raise ValueError(f"{path}: {place}.{key} is {value}: ids are whole numbers")
            values[index] = int(value)
    return np.array(values, np.int64)


def _boxes(rows: list[tuple[float, float, float, float]]) -> np.ndarray:
    # Half the time of np.array, which looks at every row first.
    return np.fromiter(chain.from_iterable(rows), np.float64, 4 * len(rows)).reshape(-1, 4)


def _require_lists(file: _File, path: Path) -> None:
    for table in ("images", "categories", "annotations"):
        if not getattr(file, table):
            raise ValueError(
                f"{path} holds no list {table!r}: a COCO file has images, categories and "
                "annotations (the test sets have no annotations and cannot be scored here)"
            )


def _require_single(path: Path, table: str, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: two {table} have the id {values[counts > 1][0]}")


def _places(known: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `ids` stand among the rising `known` ids, and which are not there."""
    ids = np.asarray(ids, np.int64)
    found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return found, known[found] != ids


def _flags(
    path: Path, key: str, values: list[bool | int | float | None], allowed: tuple[int, ...]
) -> np.ndarray:
    wrong = next((i for i, value in enumerate(values) if (value or 0) not in allowed), None)
    if wrong is not None:
        advice = "must be 0 or 1"
        if key == "ignore":
            advice = "pycocotools reads over it; say iscrowd: 1, or leave it out"
        raise ValueError(f"{path}: annotations[{wrong}].{key} is {values[wrong]}: {advice}")
    return np.array([bool(value) for value in values], bool)
