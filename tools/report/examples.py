"""Pictures on which twins disagree: thumbnails with labels, or with boxes of all three."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.config import printable
from detection.annotations import read_annotations, read_results
from tools import statistics
from tools.experiments.record import Record
from tools.experiments.settings import build_settings
from tools.experiments.tasks import TASKS, load_function, settings_class
from tools.report.comparison import Comparison
from tools.statistics.matching import match_detections

SHOWN_EACH_WAY = 3
SCORE = 0.5  # detections drawn and counted from here on
_THUMBNAIL, _SCENE = 96, 320  # pixels, the longer side


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    label: str
    right: bool = True  # a detection that found its box


@dataclass(frozen=True)
class Picture:
    """One image; the boxes in its own pixels."""

    data: str  # data: URI of a thumbnail
    width: int  # of the image itself, pixels
    height: int
    caption: str
    truth: tuple[Box, ...] = ()
    plain: tuple[Box, ...] = ()
    candidate: tuple[Box, ...] = ()
    is_boxed: bool = False


def find_pictures(comparison: Comparison) -> tuple[list[Picture], str | None]:
    """Up to SHOWN_EACH_WAY pictures each twin does better on (first seed), or why there are none."""
    try:
        pictures = load_function(TASKS[comparison.task].find_pictures)(comparison)
    # The data may be gone, moved or changed since the run: a report does without its pictures.
    except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [], printable(f"no pictures: {error}")
    return pictures, None if pictures else "the twins agree on every picture"


def classified_pictures(comparison: Comparison) -> list[Picture]:
    """Images that one twin classifies rightly and the other does not."""
    plain, candidate = comparison.pair.plain[0], comparison.pair.candidate[0]
    files = [record.file("samples") for record in (plain, candidate)]
    if None in files:
        raise ValueError("a run has no per-image rows")
    rows = [statistics.load_predictions(file) for file in files]
    right = [found.correct(1) for found in rows]
    gained, lost = np.flatnonzero(right[1] & ~right[0]), np.flatnonzero(right[0] & ~right[1])
    chosen = [*_spread(gained), *_spread(lost)]
    if not chosen:
        return []
    read = _reader(candidate)
    names = candidate.dataset.class_names
    pictures = []
    for index in chosen:
        said = [names[found.top[index, 0]] for found in rows]
        truth = names[rows[0].label[index]]
        better = comparison.candidate if right[1][index] else comparison.plain
        caption = f"{truth}: plain says {said[0]}, its twin says {said[1]}; {better} is right"
        pictures.append(_picture(read(str(rows[0].image[index])), _THUMBNAIL, printable(caption)))
    return pictures


def _spread(indices: np.ndarray) -> list[int]:
    """A few of them, evenly spaced, so that they are not all of one class."""
    if len(indices) <= SHOWN_EACH_WAY:
        return indices.tolist()
    return indices[np.linspace(0, len(indices) - 1, SHOWN_EACH_WAY).astype(int)].tolist()


def _reader(record: Record) -> Callable[[str], Image.Image]:
    """Images of the reported split by their name, through the reader the run itself used."""
    from classification.images import to_pil  # imports torch

    root = Path(record.dataset.root or "")
    if not root.is_dir():
        raise ValueError(f"the data are no longer at {root}")
    task = TASKS[record.task]
    given = {**record.experiment.settings}
    config = build_settings(settings_class(task), [("the record", given)])
    read, split = importlib.import_module(task.module).READERS[record.dataset.name]
    dataset = read(config.data, split)
    places = {printable(image): place for place, image in enumerate(dataset.ids)}

    def load(name: str) -> Image.Image:
        if name not in places:
            raise ValueError(f"image {name!r} is no longer in {dataset.root}")
        return to_pil(dataset.image(places[name]))

    return load


def detected_pictures(comparison: Comparison) -> list[Picture]:
    """Images in which one twin finds more objects than the other, or fewer false ones."""
    plain, candidate = comparison.pair.plain[0], comparison.pair.candidate[0]
    annotations = Path(candidate.dataset.annotations or "")
    truth = read_annotations(annotations)
    sides, quality = [], []
    for record in (plain, candidate):
        results = record.file("detections")
        if results is None:
            raise ValueError("a run has no detections file")
        found = match_detections(truth, read_results(results, truth))
        shown = found.score >= SCORE
        good = found.matched[0, 0] & ~found.ignored[0, 0]
        images = len(truth.image_ids)
        quality.append(
            np.bincount(found.image[shown & good], minlength=images)
            - np.bincount(found.image[shown & ~good & ~found.ignored[0, 0]], minlength=images)
        )
        sides.append((found, shown, good))
    change = quality[1] - quality[0]
    order = np.argsort(-change, kind="stable")
    best = [i for i in order[:SHOWN_EACH_WAY] if change[i] > 0]
    worst = [i for i in order[::-1][:SHOWN_EACH_WAY] if change[i] < 0]
    folder = _image_folder(candidate, annotations)
    pictures = []
    for index in (*best, *worst):
        path = truth.file(folder, int(index))
        of_image = (truth.image == index) & ~truth.crowd
        boxes = [
            Box(*truth.box[row].tolist(), truth.category_names[truth.category[row]])
            for row in np.flatnonzero(of_image)
        ]
        drawn = [
            tuple(
                Box(
                    *found.box[row].tolist(),
                    f"{truth.category_names[found.category[row]]} {found.score[row]:.2f}",
                    bool(good[row]),
                )
                for row in np.flatnonzero(shown & (found.image == index))
            )
            for found, shown, good in sides
        ]
        right = [sum(box.right for box in side) for side in drawn]
        caption = (
            f"{truth.file_names[index]}: of {len(boxes)} objects plain finds {right[0]} with"
            f" {len(drawn[0]) - right[0]} false, its twin {right[1]} with {len(drawn[1]) - right[1]} false"
        )
        pictures.append(
            _picture(Image.open(path), _SCENE, printable(caption), tuple(boxes), *drawn, True)
        )
    return pictures


def _image_folder(record: Record, annotations: Path) -> Path:
    data = record.experiment.settings.get("data", {})
    split = record.dataset.split
    root = annotations.parent.parent
    year = "val2014" if "2014" in split else split
    places = [root / split, root / year, root / f"coco_{year}", annotations.parent]
    given = data.get("val_images")
    places = [Path(given).expanduser(), *places] if given else places
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"no image folder beside {annotations}")


def _picture(image: Image.Image, side: int, caption: str, *boxes: Any) -> Picture:
    with image:
        width, height = image.size
        small = image.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72)
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(data, width, height, caption, *boxes)
