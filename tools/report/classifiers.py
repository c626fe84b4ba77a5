"""Runs that left one row an image: accuracies compared, and images that only one twin gets right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.config import printable
from backbones.files import sha256_of_list
from tools import statistics
from tools.experiments.record import Record
from tools.experiments.settings import build_settings
from tools.experiments.tasks import TASKS, settings_class
from tools.report.compared import (
    SHOWN_EACH_WAY,
    Compared,
    Picture,
    file_of,
    make_picture,
)
from tools.report.pairs import Pair
from tools.statistics import Difference, Predictions, Variation, calibration

_THUMBNAIL = 96  # pixels, the longer side


def compare(pair: Pair, resamples: int, seed: int) -> Compared:
    """Compare top-1 and top-5 on the same images, and top-1 of each class.

    Raises:
        ValueError: a file is missing or damaged, or files and records do not agree.
    """
    plain, candidate = ([_rows(run) for run in side] for side in (pair.plain, pair.candidate))
    first = plain[0]
    for rows in (*plain, *candidate):
        if not np.array_equal(rows.image, first.image):
            raise ValueError("the per-image rows of the twins name other images")
        if not np.array_equal(rows.label, first.label):
            raise ValueError("the per-image rows of the twins have other labels")
    metrics: dict[str, Difference] = {}
    classes: dict[str, Difference] = {}
    variation: Variation | None = None
    for k in (1, 5):
        if first.top.shape[1] < k:
            continue
        right = [np.stack([rows.correct(k) for rows in side]) for side in (plain, candidate)]
        accuracy = statistics.compare_accuracy(*right)
        metrics[f"top{k}_accuracy"] = accuracy
        metrics[f"top{k}_error"] = accuracy.mirrored()
        if k == 1:
            by_class, varied = statistics.compare_classes(first.label, *right)
            names = pair.candidate[0].dataset.class_names
            classes = {
                name: by_class[index] for index, name in enumerate(names) if index in by_class
            }
            if varied is not None and len(classes) == len(by_class):  # every class has a name
                variation = varied
    return Compared(
        metrics, classes, {}, variation, _compare_scores(plain, candidate, resamples, seed)
    )


def _compare_scores(
    plain: Sequence[Predictions], candidate: Sequence[Predictions], resamples: int, seed: int
) -> dict[str, Difference]:
    """Proper scores and calibration; nothing where rows of either side hold no probabilities."""
    if any(rows.probability is None for rows in (*plain, *candidate)):
        return {}

    def stacked(name: str) -> list[np.ndarray]:
        return [np.stack([getattr(rows, name) for rows in side]) for side in (plain, candidate)]

    right = [np.stack([rows.correct(1) for rows in side]) for side in (plain, candidate)]
    first, second = zip(stacked("confidence"), right, strict=True)
    losses = [calibration.log_losses(side) for side in stacked("probability")]
    return {
        "nll": calibration.compare_scores(*losses),
        "brier": calibration.compare_scores(*stacked("brier")),
        "ece": calibration.compare_calibration(first, second, resamples=resamples, seed=seed),
    }


def recompute(record: Record) -> tuple[dict[str, float | None], list[float | None]]:
    """Top-k in percent from the rows alone, and top-1 accuracy by class; None where undefined.

    Raises:
        ValueError: the rows are missing, damaged or not those of the record's data.
    """
    rows = statistics.load_predictions(file_of(record, "samples"), record.dataset.images)
    classes, images = record.dataset.classes, len(rows.label)
    if len(np.unique(rows.image)) < images:
        raise ValueError("an image stands in the rows twice")
    if (
        min(rows.label.min(), rows.top.min()) < 0
        or max(rows.label.max(), rows.top.max()) >= classes
    ):
        raise ValueError(f"a class in the rows is none of {classes}")
    expected = record.dataset.reported_sha256
    if expected and sha256_of_list(rows.image.tolist(), rows.label) != expected:
        raise ValueError(
            "images and labels of the rows are not those of the data that are recorded"
        )
    if rows.probability is not None and rows.confidence is not None:
        first = rows.correct(1)
        if not np.array_equal(rows.probability[first], rows.confidence[first]):
            raise ValueError("the rows give a label another probability than their first class has")
    metrics: dict[str, float | None] = {}
    for k in (1, 5):
        correct = int(rows.correct(k).sum()) if classes > k else None
        for name, count in (("error", images - (correct or 0)), ("accuracy", correct)):
            metrics[f"top{k}_{name}"] = None if correct is None else 100 * (count or 0) / images
    seen = np.bincount(rows.label, minlength=classes).tolist()
    right = np.bincount(rows.label[rows.correct(1)], minlength=classes).tolist()
    return metrics, [100 * r / s if s else None for r, s in zip(right, seen, strict=True)]


def find_pictures(plain: Record, candidate: Record) -> list[Picture]:
    """Find images that one twin classifies rightly and the other does not, a few each way.

    Raises:
        ValueError: a file is missing, or the data are no longer there.
    """
    rows = [statistics.load_predictions(file_of(run, "samples")) for run in (plain, candidate)]
    right = [found.correct(1) for found in rows]
    gained, lost = np.flatnonzero(right[1] & ~right[0]), np.flatnonzero(right[0] & ~right[1])
    chosen = [*_spread(gained), *_spread(lost)]
    if not chosen:
        return []
    open_image = _opener(candidate)
    names = candidate.dataset.class_names
    pictures = []
    for index in chosen:
        said = [names[found.top[index, 0]] for found in rows]
        truth = names[rows[0].label[index]]
        better = candidate if right[1][index] else plain
        caption = (
            f"{truth}: plain says {said[0]}, its twin says {said[1]};"
            f" {better.backbone.name} is right"
        )
        image = open_image(str(rows[0].image[index]))
        pictures.append(make_picture(image, _THUMBNAIL, caption))
    return pictures


def _rows(record: Record) -> Predictions:
    rows = statistics.load_predictions(file_of(record, "samples"), record.dataset.images)
    metric = record.metrics.get("top1_error")
    measured = metric.value if metric is not None else None
    if measured is None or abs(100 * (1 - rows.correct(1).mean()) - measured) > 1e-6:
        raise ValueError(f"the per-image rows of seed {record.seed} disagree with its record")
    return rows


def _spread(indices: np.ndarray) -> list[int]:
    """A few of them, evenly spaced, so that they are not all of one class."""
    if len(indices) <= SHOWN_EACH_WAY:
        return indices.tolist()
    return indices[np.linspace(0, len(indices) - 1, SHOWN_EACH_WAY).astype(int)].tolist()


def _opener(record: Record) -> Callable[[str], Image.Image]:
    """Images of the reported split by their name, through the reader the run itself used."""
    root = Path(record.dataset.root or "")
    if not root.is_dir():
        raise ValueError(f"the data are no longer at {root}")
    from classification.images import to_pil  # imports torch

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
