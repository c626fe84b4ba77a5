"""ImageNet-C's corruptions of evaluation crops, by an optional library.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (arXiv 1903.12261), as the package imagecorruptions reimplements it. The published
ImageNet-C was drawn with other random numbers and saved as JPEG: its numbers are close, not equal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the names of protocols are listed without torch
    from torch import Tensor

_PACKAGE = "imagecorruptions-imaug"  # the release of imagecorruptions for NumPy 2
_SEEDED_BY_ARGUMENT = ("glass_blur", "impulse_noise")  # the others draw from NumPy's generator
SMALLEST = 32  # pixels a side


@dataclass(frozen=True)
class Corruption:
    """A corruption of ImageNet-C, its severity 1 to 5, and the library it is drawn by."""

    name: str
    severity: int
    library: str

    def seed(self, image_id: str) -> int:
        """What an image is corrupted by in any batch, process or subset: its id alone decides."""
        text = f"{self.name} {self.severity} {image_id}"
        return int.from_bytes(
            hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:4], "little"
        )

    def apply(self, image: Tensor, seed: int) -> Tensor:
        """Corrupt uint8 (3, H, W) of 32 pixels a side or more; NumPy's generator is left as it was."""
        import torch
        from imagecorruptions import corrupt

        seeds = {"seed": seed} if self.name in _SEEDED_BY_ARGUMENT else {}
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            corrupted = corrupt(pixels, self.severity, self.name, **seeds)
        finally:
            np.random.set_state(state)
        return torch.from_numpy(np.array(corrupted)).permute(2, 0, 1)


def choose_corruption(name: str, severity: int) -> Corruption:
    """Raises ValueError where the library is not installed."""
    try:
        return Corruption(name, severity, f"{_PACKAGE} {version(_PACKAGE)}")
    except PackageNotFoundError:
        raise ValueError(
            f"evaluate.corruption={name} needs the package {_PACKAGE}: "
            "pip install 'sebench[corruptions]'"
        ) from None
