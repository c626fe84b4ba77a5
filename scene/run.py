"""The door: Places365 through classification's engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from classification import run
from classification.config import ClassificationConfig
from classification.splits import Readers
from scene.places365 import read_places365

# Data set -> its reader and the split whose numbers are reported.
READERS: Readers = {"places365": (read_places365, "val")}


def check(config: ClassificationConfig, training: bool = True) -> dict[str, Any]:
    """See `classification.run.check`."""
    return run.check(config, training, READERS)


def train(
    config: ClassificationConfig, directory: Path, resume: bool = False
) -> dict[str, Any] | None:
    """See `classification.run.train`."""
    return run.train(config, directory, resume, READERS)


def evaluate(config: ClassificationConfig, directory: Path) -> dict[str, Any] | None:
    """See `classification.run.evaluate`."""
    return run.evaluate(config, directory, READERS)


def evaluate_together(
    runs: Sequence[tuple[ClassificationConfig, Path]],
) -> list[dict[str, Any]] | None:
    """See `classification.run.evaluate_together`."""
    return run.evaluate_together(runs, READERS)
