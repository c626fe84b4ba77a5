"""Published checkpoints measured anew on ImageNet val, beside what was published of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.config import InputFormat
from backbones.libraries import input_format_of
from backbones.registry import EXTERNAL
from backbones.result import WeightsFile
from backbones.weights.load import read_weights
from tools.experiments.experiment import load_experiment
from tools.experiments.run import run_experiment
from tools.references.tables import Row, reference
from tools.references.verdicts import is_released

MEASURED = ("top1_accuracy", "top5_accuracy")


@dataclass(frozen=True)
class Checkpoint:
    """Weights to measure: a file, or a name that a library downloads; and what was published."""

    weights: str
    published: Row | None


def published_checkpoints() -> list[Checkpoint]:
    """List the rows of `sebench reference released-weights` that a library can download."""
    rows = reference("released-weights").rows
    return [Checkpoint(row.download, row) for row in rows if row.download]


def checkpoints_of(named: Sequence[str]) -> list[Checkpoint]:
    """Find what was published of files and names: a file by the start of its SHA-256."""
    if not named:
        return published_checkpoints()
    found = []
    for weights in named:
        if weights.startswith(EXTERNAL):
            known = [c for c in published_checkpoints() if c.weights == weights]
            found += known or [Checkpoint(weights, None)]
            continue
        file = WeightsFile(weights, read_weights(weights).sha256)
        rows = (row for row in reference("released-weights").rows if is_released(row, file))
        found.append(Checkpoint(weights, next(rows, None)))
    return found


def views_of(checkpoint: Checkpoint, told: InputFormat) -> tuple[int, int]:
    """Pixels of the shorter side and of the centre crop: published, else as the weights tell."""
    if checkpoint.published is not None:
        protocol = checkpoint.published.references[0].protocol
        base, *changes = protocol.split("+")
        views = dict(zip(("resize", "crop"), map(int, re.findall(r"\d+", base)), strict=True))
        for key, value in re.findall(r"(resize|crop)(\d+)", " ".join(changes)):
            views[key] = int(value)
        return views["resize"], views["crop"]
    crop = told.size or 224
    return math.floor(crop / (told.crop or 0.875) + 1e-6), crop  # timm rounds down


def remeasure(
    checkpoints: Sequence[Checkpoint], data_root: Path, output: Path, classes: str = "all"
) -> Iterator[dict[str, Any]]:
    """Evaluate each checkpoint as it was trained to be fed, and yield measured beside published.

    Args:
        data_root: ImageNet, in any of the layouts of data set `imagenet`.
        output: gets a run directory for each, with its record.
        classes: "subset" where the folder holds some of the 1000 classes only; nothing published
            may be compared with that.

    Yields:
        Accuracies in percent; `difference` is measured less published, None where one is missing;
        `reason` says why nothing was measured.
    """
    for checkpoint in checkpoints:
        row: dict[str, Any] = {"weights": checkpoint.weights}
        row |= dict.fromkeys(("backbone", "protocol", "images", "reason"))
        values = {}
        try:
            record = _evaluate(checkpoint, data_root, output, classes)
        except ValueError as error:
            row["reason"] = str(error)
        else:
            row |= {
                "backbone": record.backbone.name,
                "protocol": record.protocol.name,
                "images": record.dataset.images,
            }
            values = {name: record.metrics[name].value for name in MEASURED}
        references = checkpoint.published.references if checkpoint.published else ()
        for name in MEASURED:
            measured = values.get(name)
            published = next((r.value for r in references if r.metric == name), None)
            row |= {name: measured, f"{name}_published": published, f"{name}_difference": None}
            if measured is not None and published is not None and classes == "all":
                row[f"{name}_difference"] = measured - published
        yield row


def _evaluate(checkpoint: Checkpoint, data_root: Path, output: Path, classes: str) -> Any:
    weights = read_weights(checkpoint.weights)
    # Our own network where there is one, else the library's.
    network = checkpoint.weights
    if weights.backbone is not None:
        network = weights.backbone.name
    elif not network.startswith(EXTERNAL):
        raise ValueError(f"{network} ({weights.title}) fits no network of `sebench list backbones`")
    told = weights.input_format or InputFormat()
    if checkpoint.weights.startswith(EXTERNAL):
        told = input_format_of(checkpoint.weights)
    resize, crop = views_of(checkpoint, told)
    experiment = load_experiment(
        "classification",
        "imagenet-paper",
        settings={
            "backbone": {"name": network, "weights": checkpoint.weights},
            "data": {"root": str(data_root), "classes": classes},
            "evaluate": {"crop": crop, "resize": resize},
        },
        action="evaluate",
    )
    name = re.sub(r"[^\w.-]+", "_", Path(checkpoint.weights).name)
    return run_experiment(experiment, output / f"{name}-{crop}-{experiment.hash[:8]}")
