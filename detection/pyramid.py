"""The feature pyramid in training: a batch in parts, or spread over processes as if it were in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.modeling import FPN
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from backbones.synced_norm import SYNCED


class Pyramid(FPN):
    """Detectron2's FPN, which can take the images of a batch part by part.

    A part's activations are dropped once its features are there, and computed again when its gradient
    is due: a third more time, and the memory of one part. Proposals, samples of boxes and losses are
    those of the whole batch, padded together, and so is the gradient, up to rounding. Only norms that
    take statistics of a batch (BN, SyncBN) see a part at a time.

    With SyncBN the batches of all processes are padded to one size, as one process would pad them: what
    is padded counts in the statistics.

    Attributes:
        images_at_a_time: images of a part in training; None: all.
    """

    images_at_a_time: int | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to {name: (N, channels, H / stride, W / stride)}."""
        compute, size = super().forward, self.images_at_a_time
        if self.training and any(isinstance(m, SYNCED) for m in self.modules()):
            x = _padded_alike(x)
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


def _padded_alike(images: Tensor) -> Tensor:
    """Pad images (N, 3, H, W) at the right and below to the largest H and W of all processes."""
    if comm.get_world_size() == 1:
        return images
    size = torch.tensor(images.shape[-2:], device=images.device)
    dist.all_reduce(size, dist.ReduceOp.MAX)
    height, width = (size - size.new_tensor(images.shape[-2:])).tolist()
    return F.pad(images, (0, width, 0, height))
