"""What is found by comparing the files that runs of one task left behind.

A task's row names the functions that know its files (`compare` and `find_pictures` of
`tools.experiments.tasks.Task`); each raises a ValueError where files are gone, damaged or of
something else, and the report says so in the place of the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tools.experiments.record import Record
from tools.statistics import Difference, Variation

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
