"""The end of a residual block in training, forward and backward, in as few passes as there are.

    y = relu(gate(norm(x)) * norm(x) + shortcut)

for the output x of the block's last convolution. `blocks.ResidualBlock` has the readable form. Autograd
takes it operation by operation, reads or writes a map of the block's size nineteen times, where a
plain block needs eight, and keeps one map more. Here the batch norm takes part: its output need not
be kept, and its gradient finds the sums it needs already made for the gate.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.squeeze_excite import EXCITATIONS, SEBlock

_CHUNK = 1 << 21  # bytes of a map that pass through the cache together


def applies_to(x: Tensor, norm: nn.Module, se: nn.Module) -> bool:
    """Whether `normed_residual_sum` can take the place of the readable form.

    It is for training with batch statistics, on CPUs, where it was measured; not under autocast, and
    not inside torch.compile, which fuses by itself.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and type(se) is SEBlock
        and se.squeeze == "avg"
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def normed_residual_sum(x: Tensor, norm: nn.BatchNorm2d, se: SEBlock, shortcut: Tensor) -> Tensor:
    """Return relu(se(norm(x)) + shortcut), all (N, C, H, W), and update the norm's statistics."""
    norm.num_batches_tracked.add_(1)
    parameters = tuple(se.parameters())
    return _NormedResidualSum.apply(x, norm.weight, norm.bias, shortcut, norm, se, *parameters)


class _NormedResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor,
        norm: nn.BatchNorm2d,
        se: SEBlock,
        *parameters: Tensor,
    ) -> Tensor:
        y, mean, deviation = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )  # `deviation` is its inverse, 1 / sqrt(variance + eps)
        scale = weight * deviation  # norm(x) = x * scale + shift, and so for the means
        shift = bias - mean * scale
        means = x.mean(dim=(2, 3))  # (N, C)
        gate = _excite(se, means * scale + shift)[:, :, None, None]
        for part in _chunks(y):
            torch.addcmul(shortcut[part], y[part], gate[part], out=y[part]).relu_()
        ctx.se = se
        ctx.save_for_backward(x, weight, bias, mean, deviation, means, y, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, deviation, means, y, *parameters = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        total = len(x) * pixels
        scale = weight * deviation
        shift = bias - mean * scale

        grad_sum = torch.empty_like(y)  # before the ReLU: also the shortcut's gradient
        sums, products = torch.empty_like(means), torch.empty_like(means)  # (N, C)
        for part in _chunks(y):
            own = torch.ops.aten.threshold_backward.grad_input(
                grad[part], y[part], 0, grad_input=grad_sum[part]
            )
            sums[part] = own.sum(dim=(2, 3))
            products[part] = (own * x[part]).sum(dim=(2, 3))

        with torch.enable_grad():  # the graph of the gate alone
            squeezed = (means * scale + shift).requires_grad_()
            gate = _excite(ctx.se, squeezed)
        grad_squeezed, *grad_parameters = torch.autograd.grad(
            gate, (squeezed, *parameters), products * scale + sums * shift
        )
        gate = gate.detach()

        # The gradient of norm(x) is grad_sum * gate + grad_squeezed / pixels; its sums over
        # pictures and pixels, alone and times x, are what the gradient of a batch norm needs.
        grad_bias = (sums * gate + grad_squeezed).sum(dim=0)
        grad_weight = (products * gate + grad_squeezed * means).sum(dim=0)
        grad_weight = (grad_weight - mean * grad_bias) * deviation
        slope = -scale * deviation * grad_weight / total  # (C,)
        factor = (gate * scale)[:, :, None, None]
        offset = scale * (grad_squeezed / pixels - grad_bias / total) - slope * mean
        offset, slope = offset[:, :, None, None], slope[:, None, None]
        grad_x = torch.empty_like(x)
        for part in _chunks(x):
            torch.addcmul(offset[part], grad_sum[part], factor[part], out=grad_x[part])
            grad_x[part].addcmul_(x[part], slope)
        return grad_x, grad_weight, grad_bias, grad_sum, None, None, *grad_parameters


def _excite(se: SEBlock, squeezed: Tensor) -> Tensor:
    """The gate of `se` for squeezed maps (N, C), of the same shape."""
    return EXCITATIONS[se.excitation](se.fc2(torch.relu(se.fc1(squeezed))))


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of pictures that together are about `_CHUNK` bytes, at least one picture."""
    size = max(1, _CHUNK * len(x) // max(1, x.nbytes))
    return (slice(start, start + size) for start in range(0, len(x), size))
