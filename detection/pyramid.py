"""The feature pyramid in training: a batch that is too large for the memory, taken in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.modeling import FPN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Pyramid(FPN):
    """Detectron2's FPN, which can take the images of a batch part by part.

    A part's activations are dropped once its features are there, and computed again when its gradient
    is due: a third more time, and the memory of one part. Proposals, samples of boxes and losses are
    those of the whole batch, padded together, and so is the gradient, up to rounding. Only norms that
    take statistics of a batch (BN, SyncBN) see a part at a time.

    Attributes:
        images_at_a_time: images of a part in training; None: all.
    """

    images_at_a_time: int | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to {name: (N, channels, H / stride, W / stride)}."""
        compute, size = super().forward, self.images_at_a_time
        if not self.training or size is None or len(x) <= size:
            return compute(x)
        parts = [
            checkpoint(compute, part, use_reentrant=False, context_fn=self._first_and_again)
            for part in x.split(size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _first_and_again(self) -> tuple[Any, Any]:
        return nullcontext(), self._with_statistics_kept()

    @contextmanager
    def _with_statistics_kept(self) -> Iterator[None]:
        """Running statistics count every image once, however often it is computed."""
        norms = [m for m in self.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
        tracking = [norm for norm in norms if norm.track_running_stats]
        for norm in tracking:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in tracking:
                norm.track_running_stats = True
