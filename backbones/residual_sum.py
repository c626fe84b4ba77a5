"""The end of a residual block in training, forward and backward, with as few passes over memory as possible.

    y = relu(gate(norm(x)) * norm(x) + shortcut)

for the output x of the block's last convolution. `blocks.ResidualBlock` has the readable form. Autograd
takes it operation by operation, reads or writes a map of the block's size nineteen times, where a
plain block needs eight, and keeps one map more. Here the batch norm takes part: its output need not
be kept, and its gradient finds the sums it needs already made for the gate. Inside torch.compile the
same algebra stands in plain operations, which the compiler fuses and differentiates.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.squeeze_excite import EXCITATIONS, SEBlock

Norm = Any  # nn.BatchNorm2d, or the FrozenBatchNorm2d of Detectron2 or torchvision
_CHUNK = 1 << 21  # bytes of a map that pass through the cache together


def applies_to(x: Tensor, norm: Norm, se: nn.Module) -> bool:
    """Whether `normed_residual_sum` can take the place of the readable form.

    It is for training, with batch statistics or frozen ones, on CPUs, where it was measured; not
    under autocast, and not where a hook is to see what `se` or the norm gives.
    """
    return (
        norm.training
        and (is_frozen(norm) or (type(norm) is nn.BatchNorm2d and norm.momentum is not None))
        and type(se) is SEBlock
        and se.squeeze == "avg"
        and norm.running_var is not None
        and norm.weight is not None
        and not (_has_hooks(norm) or _has_hooks(se))
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _has_hooks(module: nn.Module) -> bool:
    """Whether someone wants to see the module's output.

    Torch has no public way to ask. Were the attribute gone, this would raise in the first step of
    every training on a CPU.
    """
    return bool(module._forward_hooks)


def is_frozen(norm: nn.Module | None) -> bool:
    """Whether it is a batch norm whose statistics and weights are fixed.

    Detectron2 and torchvision each have one, under this name and with the same tensors.
    """
    return type(norm).__name__ == "FrozenBatchNorm2d"


def normed_residual_sum(x: Tensor, norm: Norm, se: SEBlock, shortcut: Tensor) -> Tensor:
    """Return relu(se(norm(x)) + shortcut), all (N, C, H, W), and update the norm's statistics."""
    if not is_frozen(norm):
        norm.num_batches_tracked.add_(1)
    if torch.compiler.is_compiling():
        return traced_residual_sum(x, norm, se, shortcut)
    parameters = tuple(se.parameters())
    return _NormedResidualSum.apply(x, norm.weight, norm.bias, shortcut, norm, se, *parameters)


def traced_residual_sum(x: Tensor, norm: Norm, se: SEBlock, shortcut: Tensor) -> Tensor:
    """Do what `normed_residual_sum` does in operations that torch.compile fuses to two passes.

    The mean and variance of a channel come from the means over the pixels of each image, of x and
    its square, which the gate needs as well. Both are taken from a pixel of the channel on, so that
    the difference of the two squares keeps its digits.
    """
    if is_frozen(norm):
        centred, mean, variance = x, norm.running_mean, norm.running_var
        means = x.mean(dim=(2, 3))  # (N, C)
    else:
        # Not the running mean: the compiler may take it again for the backward pass, updated.
        centre = x[0, :, 0, 0].detach()
        centred = x - centre[:, None, None]
        means, squares = centred.mean(dim=(2, 3)), centred.square().mean(dim=(2, 3))
        mean = means.mean(dim=0)
        variance = (squares.mean(dim=0) - mean.square()).clamp(min=0)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            norm.running_mean.lerp_(centre + mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shift = norm.bias - mean * scale
    gate = _excite(se, means * scale + shift)
    factor, offset = (gate * scale)[:, :, None, None], (gate * shift)[:, :, None, None]
    return torch.relu(centred * factor + offset + shortcut)


class _NormedResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor,
        norm: Norm,
        se: SEBlock,
        *parameters: Tensor,
    ) -> Tensor:
        """Compute the block's end, and keep what the backward pass needs."""
        # `deviation` is the inverse of the standard deviation.
        if is_frozen(norm):
            mean, deviation = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
        else:
            statistics = norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
            y, mean, deviation = _batch_norm(x, weight, bias, *statistics)
        scale = weight * deviation  # norm(x) = x * scale + shift, and so for the means
        shift = bias - mean * scale
        means = x.mean(dim=(2, 3))  # (N, C)
        gate = _excite(se, means * scale + shift)
        factor = gate[:, :, None, None]
        if is_frozen(norm):  # scaled and gated at once
            y, offset = torch.empty_like(x), (gate * shift)[:, :, None, None]
            factor = (gate * scale)[:, :, None, None]
        for part in _chunks(y):
            if is_frozen(norm):
                torch.addcmul(offset[part], x[part], factor[part], out=y[part])
                y[part].add_(shortcut[part]).relu_()
            else:
                torch.addcmul(shortcut[part], y[part], factor[part], out=y[part]).relu_()
        ctx.is_frozen = is_frozen(norm)
        ctx.se = se
        ctx.save_for_backward(x, weight, bias, mean, deviation, means, y, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, from that of its result (N, C, H, W)."""
        x, weight, bias, mean, deviation, means, y, *parameters = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        total = len(x) * pixels
        scale = weight * deviation
        shift = bias - mean * scale

        grad_sum = torch.empty_like(y)  # before the ReLU: also the shortcut's gradient
        sums, products = torch.empty_like(means), torch.empty_like(means)  # (N, C)
        for part in _chunks(y):
            own = _relu_backward(grad[part], y[part], out=grad_sum[part])
            sums[part] = own.sum(dim=(2, 3))
            products[part] = (own * x[part]).sum(dim=(2, 3))

        with torch.enable_grad():  # the graph of the gate alone
            squeezed = (means * scale + shift).requires_grad_()
            gate = _excite(ctx.se, squeezed)
        grad_squeezed, *grad_parameters = torch.autograd.grad(
            gate, (squeezed, *parameters), products * scale + sums * shift
        )
        gate = gate.detach()

        # The gradient of norm(x) is grad_sum * gate + grad_squeezed / pixels.
        factor = (gate * scale)[:, :, None, None]
        offset = scale * grad_squeezed / pixels
        slope = grad_weight = grad_bias = None
        if not ctx.is_frozen:
            # Its sums over images and pixels, alone and times x, which a batch norm needs.
            grad_bias = (sums * gate + grad_squeezed).sum(dim=0)
            grad_weight = (products * gate + grad_squeezed * means).sum(dim=0)
            grad_weight = (grad_weight - mean * grad_bias) * deviation
            slope = -scale * deviation * grad_weight / total  # (C,)
            offset = offset - scale * grad_bias / total - slope * mean
            slope = slope[:, None, None]
        offset = offset[:, :, None, None]
        grad_x = torch.empty_like(x)
        for part in _chunks(x):
            torch.addcmul(offset[part], grad_sum[part], factor[part], out=grad_x[part])
            if slope is not None:
                grad_x[part].addcmul_(x[part], slope)
        return grad_x, grad_weight, grad_bias, grad_sum, None, None, *grad_parameters


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *statistics: Any) -> tuple[Tensor, ...]:
    """Normalise as `F.batch_norm`, which keeps the mean and deviation it worked out to itself.

    An operator of ATen without documentation, behind every batch norm of torch. Were its arguments
    changed, `test_residual_sum.py` compares values and gradients with the readable form.
    """
    return torch.native_batch_norm(x, weight, bias, *statistics)


def _relu_backward(grad: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Write the gradient before a ReLU, from the gradient after it and its output, into `out`.

    Autograd's own operator; torch has no public function that writes it into given memory. Were it
    changed, `test_residual_sum.py` compares the gradients with the readable form.
    """
    return torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=out)


def _excite(se: SEBlock, squeezed: Tensor) -> Tensor:
    """The gate of `se` for squeezed maps (N, C), of the same shape."""
    return EXCITATIONS[se.excitation](se.fc2(torch.relu(se.fc1(squeezed))))


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of images that together are about `_CHUNK` bytes, at least one image."""
    size = max(1, _CHUNK * len(x) // max(1, x.nbytes))
    return (slice(start, start + size) for start in range(0, len(x), size))
