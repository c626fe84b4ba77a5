"""A detector's batch in parts, or spread over processes, as if it were in one.

Proposals, samples of boxes and losses stay those of the whole batch, padded together: only what maps
image by image, and holds most of the memory, takes a few images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def take_in_parts(model: nn.Module, images: int) -> None:
    """Let backbone, pyramid and dense heads of a detector have so many images at a time in training.

    What a part computes on its way is dropped, and computed again when its gradient is due: one
    forward pass more. The gradient is that of the whole batch up to rounding, but for norms that take
    statistics of a batch (BN, SyncBN): they see a part at a time.
    """
    heads = ("head", "proposal_generator.rpn_head")  # of RetinaNet, of Faster R-CNN
    names = [name for name, _ in model.named_modules() if name in ("backbone", *heads)]
    for module in map(model.get_submodule, names):
        module.forward = partial(_in_parts, module, module.forward, images)


def pad_alike(backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A hook before a backbone: in training, pad images (N, 3, H, W) to the size of all processes' largest.

    What is padded counts in the statistics of norms.
    """
    (images,) = inputs
    if not backbone.training:
        return inputs
    own = torch.tensor(images.shape[-2:], device=images.device)
    largest = own.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    below, right = (largest - own).tolist()
    return (F.pad(images, (0, right, 0, below)),)


def _in_parts(module: nn.Module, compute: Callable[..., Any], images: int, inputs: Any) -> Any:
    if not module.training:
        return compute(inputs)
    if isinstance(inputs, Tensor):
        parts: list[Any] = list(inputs.split(images))
    else:
        parts = [
            list(part) for part in zip(*(level.split(images) for level in inputs), strict=True)
        ]

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _with_statistics_kept(module)

    return _joined(
        [checkpoint(compute, p, use_reentrant=False, context_fn=contexts) for p in parts]
    )


def _joined(parts: Sequence[Any]) -> Any:
    """One output, of tensors in lists or dicts, of those of all parts."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return [_joined(each) for each in zip(*parts, strict=True)]


@contextmanager
def _with_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics count every image once, however often it is computed."""
    norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    tracking = [norm for norm in norms if norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
