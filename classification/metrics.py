"""Top-k from integer counts: correct answers are counted, and divided by the images once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backbones.result import ClassScore

SHOWN = 5  # best classes kept for each image
_KS = (1, 5)


class TopK:
    """Counts images, and those whose class is among their first 1 and 5 answers, by class."""

    def __init__(self, classes: int) -> None:
        self._images = np.zeros(classes, np.int64)
        self._correct = {k: np.zeros(classes, np.int64) for k in _KS}

    def update(self, labels: np.ndarray, top: np.ndarray) -> None:
        """Count images by their class `labels` (N,) and their best classes `top` (N, <=5)."""
        classes = len(self._images)
        self._images += np.bincount(labels, minlength=classes)
        for k, correct in self._correct.items():
            is_right = (top[:, :k] == labels[:, None]).any(axis=1)
            correct += np.bincount(labels[is_right], minlength=classes)

    @property
    def images(self) -> int:
        """Images counted so far."""
        return int(self._images.sum())

    def correct(self, k: int) -> int:
        """Images whose class is among their first `k` answers; `k` is 1 or 5."""
        return int(self._correct[k].sum())

    def error(self, k: int) -> float:
        """Top-k error in percent of at least one image."""
        return 100 * (self.images - self.correct(k)) / self.images

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """Top-1 and top-5 error and accuracy in percent, and why a missing one is missing."""
        metrics: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        images, classes = self.images, len(self._images)
        for k in _KS:
            reason = None
            if images == 0:
                reason = "no image was seen"
            elif classes <= k:
                reason = f"with {classes} classes the first {k} always hold the right one"
            if reason is None:
                metrics[f"top{k}_error"] = self.error(k)
                metrics[f"top{k}_accuracy"] = 100 * self.correct(k) / images
                continue
            for name in (f"top{k}_error", f"top{k}_accuracy"):
                metrics[name], missing[name] = None, reason
        return metrics, missing

    def compute_per_class(self, class_names: Sequence[str]) -> list[ClassScore]:
        """Top-1 accuracy in percent of each class, None where the set has no image of it."""
        counts = zip(class_names, self._images.tolist(), self._correct[1].tolist(), strict=True)
        return [
            ClassScore(name, images, 100 * correct / images)
            if images
            else ClassScore(name, 0, None, "no image of this class")
            for name, images, correct in counts
        ]


def chance_level(classes: int) -> float:
    """The top-1 error in percent of guessing one of `classes`."""
    return 100 * (classes - 1) / classes


def best_classes(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The up to five best classes of each row of `scores` (N, C), best first, and their scores.

    Equal scores stand in the order of the classes, whatever the machine.
    """
    ordered, classes = scores.sort(dim=1, descending=True, stable=True)
    return classes[:, :SHOWN], ordered[:, :SHOWN]


def mean_softmax(logits: Tensor) -> Tensor:
    """Scores (N, C) in float64 from the logits (N, V, C) of V views each."""
    return torch.softmax(logits.double(), dim=-1).mean(dim=1)
