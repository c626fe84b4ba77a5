"""Top-k from integer counts: correct answers are counted, and divided by the images once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 5  # best classes kept for each image


def best_classes(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The up to five best classes of each row of `scores` (N, C), best first, and their scores.

    Equal scores stand in the order of the classes, whatever the machine.
    """
    ordered, classes = scores.sort(dim=1, descending=True, stable=True)
    return classes[:, :SHOWN], ordered[:, :SHOWN]


def count_correct(labels: np.ndarray, top: np.ndarray, k: int) -> int:
    """Images whose label is among the first `k` of their best classes `top` (N, <=5)."""
    return int((top[:, :k] == labels[:, None]).any(axis=1).sum())


def top_k_metrics(
    labels: np.ndarray, top: np.ndarray, classes: int
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Top-1 and top-5 error and accuracy in percent, and why a missing one is missing."""
    metrics: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for k in (1, 5):
        reason = None
        if len(labels) == 0:
            reason = "no image was seen"
        elif classes <= k:
            reason = f"with {classes} classes the first {k} always hold the right one"
        correct = count_correct(labels, top, k)
        for name, count in (("error", len(labels) - correct), ("accuracy", correct)):
            metrics[f"top{k}_{name}"] = 100 * count / len(labels) if reason is None else None
            if reason is not None:
                missing[f"top{k}_{name}"] = reason
    return metrics, missing


def per_class_accuracy(
    labels: np.ndarray, top: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Top-1 accuracy in percent of each class, None where the set has no image of it."""
    images = np.bincount(labels, minlength=len(class_names))
    right = np.bincount(labels[top[:, 0] == labels], minlength=len(class_names))
    rows = []
    for name, count, correct in zip(class_names, images.tolist(), right.tolist(), strict=True):
        row: dict[str, Any] = {"class": name, "images": count}
        row["top1_accuracy"] = 100 * correct / count if count else None
        if not count:
            row["reason"] = "no image of this class"
        rows.append(row)
    return rows


def mean_softmax(logits: Tensor) -> Tensor:
    """Scores (N, C) in float64 from the logits (N, V, C) of V views each."""
    return torch.softmax(logits.double(), dim=-1).mean(dim=1)
