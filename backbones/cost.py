"""What a network costs: parameters, multiply-adds, latency.

The rule for multiply-adds, wherever nothing else is said: one for each multiplication of a
convolution, a fully connected layer or another matrix product, and one for each element of a
residual addition. Norms, activations, pooling, gating and biases are not counted. With it ResNet-50,
-101 and -152 have the 3.86, 7.58 and 11.30 G that Table 2 of the paper prints.

Section 4 of the paper names two more parts of SE's cost. The second rule counts these too: one for
each element that a global pooling reads, and one for each element that a gate scales. Neither rule
gives every printed row: `sebench list backbones --paper` shows which digits each of them meets.
"""

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.result import Latency


def count_parameters(module: nn.Module) -> int:
    """Count the learned numbers of a module (running statistics are not learned)."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(
    module: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    with_gating: bool = False,
) -> int:
    """Count the multiply-adds of one image, on shapes alone; the module stays as it is.

    Args:
        input_size: channels, height, width.
        with_gating: by the second rule, which counts global pooling and scaling by gates too.
    """
    module = copy.deepcopy(module).to("meta").eval()
    image = torch.empty(1, *input_size, device="meta", dtype=_dtype(module))
    counted: dict[Any, Any] = {
        torch.ops.aten.add: _residual_addition,
        torch.ops.aten.add_: _residual_addition,
    }
    if with_gating:
        counted |= {
            torch.ops.aten.mean: _global_pooling,
            torch.ops.aten.amax: _global_pooling,
            torch.ops.aten.mul: _scaling,
        }
    with FlopCounterMode(display=False, custom_mapping=counted) as counter, torch.no_grad():
        module(image)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two operations


def count_everything(network: nn.Module, side: int) -> dict[str, int]:
    """What a `BackboneInfo` tells of the cost of a network with 1000 classes, at `side` pixels."""
    size = (3, side, side)
    return {
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, size),
        "multiply_adds_with_gating": count_multiply_adds(network, size, with_gating=True),
        "input_size": side,
        "classes": 1000,
    }


def _residual_addition(x_shape, y_shape, *args, out_shape=None, **kwargs) -> int:
    """Count the sum of two feature maps of equal shape, in torch's unit of half multiply-adds."""
    if isinstance(y_shape, torch.Size) and len(x_shape) == 4 and x_shape == y_shape:
        return 2 * x_shape.numel()
    return 0


def _global_pooling(x_shape, dim=None, *args, out_shape=None, **kwargs) -> int:
    """Count the elements of a map that becomes one number a channel."""
    if len(x_shape) == 4 and isinstance(dim, (list, tuple)) and {d % 4 for d in dim} == {2, 3}:
        return 2 * x_shape.numel()
    return 0


def _scaling(x_shape, y_shape, *args, out_shape=None, **kwargs) -> int:
    """Count the elements of a map that is multiplied by a gate, of a channel or of a pixel."""
    if isinstance(y_shape, torch.Size) and len(x_shape) == len(y_shape) == 4:
        return 2 * max(x_shape.numel(), y_shape.numel())
    return 0


def measure_latency(
    modules: Sequence[nn.Module],
    input_size: tuple[int, int, int] = (3, 224, 224),
    repeats: int = 20,
    budget: float = 10.0,
) -> Latency:
    """Time one image alone by `modules` one after another, on their device, in evaluation mode.

    Images are noise in channels-last. Three passes warm up; after `budget` seconds of a module no
    further repeat is begun, once there are three.
    """
    found = [_seconds(module, input_size, repeats, budget) for module in modules]
    return Latency(
        median_ms=1000 * sum(map(statistics.median, found)),
        fastest_ms=1000 * sum(map(min, found)),
        slowest_ms=1000 * sum(map(max, found)),
        repeats=min(map(len, found)),
    )


@torch.inference_mode()
def _seconds(
    module: nn.Module, input_size: tuple[int, int, int], repeats: int, budget: float
) -> list[float]:
    parameter = next(module.parameters())
    training = module.training
    module.eval()
    image = torch.randn(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    for index in range(repeats + 3):
        start = time.perf_counter()
        module(image)
        if parameter.device.type == "cuda":
            torch.cuda.synchronize(parameter.device)
        if index >= 3:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= 3 and sum(seconds) > budget:
            break
    module.train(training)
    return seconds


def _dtype(module: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in module.parameters()), torch.get_default_dtype())
