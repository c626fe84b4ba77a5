"""Images on which twins disagree: thumbnails with captions, or with boxes of all three."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from backbones.config import printable
from tools.experiments.record import Record
from tools.experiments.tasks import TASKS, load_function
from tools.report.compared import explain

SHOWN_EACH_WAY = 3


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
