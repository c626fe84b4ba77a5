"""What is found by comparing the files that runs of one task left behind, and images to show.

A task's row names the functions that know its files (`compare` and `find_pictures` of
`tools.experiments.tasks.Task`); each raises a ValueError where files are gone, damaged or of
something else, and the report says so in the place of the number.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from backbones.config import printable
from tools.experiments.record import Record
from tools.experiments.tasks import TASKS, load_function
from tools.statistics import Difference, Variation

SHOWN_EACH_WAY = 3  # images that one twin does better on
# Losses of probabilities: label, unit. Lower is better; they are shown and not judged.
SCORES = {
    "nll": ("negative log likelihood", "nats"),
    "brier": ("Brier score", "0 to 2"),
    "ece": ("expected calibration error", "0 to 1"),
}


@dataclass(frozen=True)
class Score:
    """A loss of probabilities, lower is better, in its own unit and not in percent."""

    name: str
    label: str
    unit: str
    difference: Difference


@dataclass(frozen=True)
class Compared:
    """What the files of a pair say: differences by metric, and by class."""

    metrics: dict[str, Difference]
    classes: dict[str, Difference]
    errors: dict[str, tuple[float, float]]  # kind -> points that it costs plain, candidate
    variation: Variation | None = None  # of the classes
    scores: dict[str, Difference] = field(default_factory=dict)  # of probabilities, by `SCORES`


def explain(error: Exception, records: Iterable[Record]) -> str:
    """What is wrong with a file of a run, named by its run, wherever that was read from."""
    text = str(error)
    for record in records:
        text = text.replace(f"{record.directory}/", f"{record.name}/")
        if record.annotations:
            text = text.replace(str(record.annotations), str(record.dataset.annotations))
    return text


def file_of(record: Record, kind: str) -> Path:
    """Find a file that a run left: its samples, detections or curve.

    Raises:
        ValueError: it has none, or it is gone.
    """
    path = record.file(kind)
    if path is None:
        raise ValueError(f"seed {record.seed} of {record.backbone.name} has no {kind} file")
    return path


# Images on which twins disagree ------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A box in its image's own pixels."""

    x: float
    y: float
    width: float
    height: float
    label: str
    right: bool = True  # a detection that found its box


@dataclass(frozen=True)
class Picture:
    """One image, perhaps with boxes in its own pixels."""

    data: str  # data: URI of a thumbnail
    width: int  # of the image itself, pixels
    height: int
    caption: str
    truth: tuple[Box, ...] = ()
    plain: tuple[Box, ...] = ()
    candidate: tuple[Box, ...] = ()
    is_boxed: bool = False


def find_pictures(plain: Record, candidate: Record) -> tuple[list[Picture], str | None]:
    """Find up to SHOWN_EACH_WAY images that each twin does better on, or say why there are none."""
    find = load_function(TASKS[candidate.task].find_pictures)
    try:
        pictures = find(plain, candidate)
    # The data may be gone, moved or changed since the run: a report does without its pictures.
    except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [], printable(f"no pictures: {explain(error, (plain, candidate))}")
    return pictures, None if pictures else "the twins agree on every picture"


def make_picture(
    image: Image.Image,
    side: int,
    caption: str,
    boxes: Sequence[tuple[Box, ...]] = (),
) -> Picture:
    """Make a thumbnail; the image is closed.

    Args:
        side: pixels of its longer side.
        boxes: of the ground truth, the plain network and the candidate; none for images without.
    """
    with image:
        width, height = image.size
        small = image.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72)
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    truth, plain, candidate = boxes or ((), (), ())
    return Picture(
        data, width, height, printable(caption), truth, plain, candidate, is_boxed=bool(boxes)
    )
