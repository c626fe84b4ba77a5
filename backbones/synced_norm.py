"""Batch norms that take their statistics over the images of all processes, as one process would."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm(nn.BatchNorm2d):
    """What torch's `SyncBatchNorm`, which wants a GPU, is there: for processes on CPUs.

    Parameters and running statistics are the tensors of the norm whose place it takes. Processes may
    have images of different numbers and sizes.
    """

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(self, name, tensor)
        # timm's norms have drop and activation inside.
        inside = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        self.inside = nn.Sequential(*inside)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        is_live = self.training and dist.is_initialized() and dist.get_world_size() > 1
        return self.inside(self._normalize(input) if is_live else super().forward(input))

    def _normalize(self, input: Tensor) -> Tensor:
        """By the mean, and the mean square of what is left of it, summed over the processes."""
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        pixels = values.new_tensor([values.numel() / values.shape[1]])
        sums = all_reduce(torch.cat([values.sum((0, 2, 3)), pixels]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        rest = values - mean[:, None, None]
        variance = all_reduce(rest.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        output = rest * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            output = output * self.weight[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def sync_norms(network: nn.Module) -> nn.Module:
    """A network of the same tensors whose `BatchNorm2d` keep in step over the processes.

    It is for training; `network` itself stays as it is, with the names it has.
    """
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    synced = copy.deepcopy(network, tensors)
    on_gpu = next(network.parameters()).device.type == "cuda"
    convert = convert_sync_batchnorm if on_gpu else SyncedBatchNorm
    norms: dict[int, nn.Module] = {}  # one that stands in several places stays one
    for name, module in list(synced.named_modules(remove_duplicate=False)):
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            if id(module) not in norms:
                norms[id(module)] = convert(module)
            synced.set_submodule(name, norms[id(module)])
    return synced
