"""Inference: SE networks over their plain twins, and against timm's."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbones import build_network, load_weights
from backbones.inference import prepare_for_inference
from tools.speed.timing import (
    Measurement,
    check_equal,
    choose_clock,
    compare,
    compare_seconds,
)

# Outputs of two exact forms may differ by so much of the largest: rounding, which untrained networks
# amplify. That the forms are exact is tested in float64.
ALLOWED = {torch.float32: 5e-4, torch.bfloat16: 5e-2}


def conditions(batch: int) -> Iterator[tuple[torch.device, torch.dtype, int]]:
    """Where, in which precision and at which batch to measure: as the machine has it."""
    if not torch.cuda.is_available():
        yield torch.device("cpu"), torch.float32, batch
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield torch.device("cuda"), dtype, 256 if batch > 1 else 1


def over_twin(mode: str, batch: int) -> Iterator[Measurement]:
    """SE-ResNet-50 over ResNet-50, both prepared in the same mode."""
    for device, dtype, count in conditions(batch):
        x = images(count, (224, 224), device, dtype)
        se, plain = (
            place(calibrate_norms(build_network(name)), device, dtype)
            for name in ("se_resnet50", "resnet50")
        )
        yield compare_twins(se, plain, mode, x)


def against_timm(batch: int) -> Iterator[Measurement]:
    """Our best mode against `timm.create_model("seresnet50")` as it comes, with the same weights.

    As it comes is also with glibc's own way with memory, which a process that keeps large tensors
    on the heap cannot go back to: timm's network has a process of its own, asked in turns.
    """
    for device, dtype, count in conditions(batch):
        ours = build_network("se_resnet50", stride_in_1x1=False)  # where timm has its strides
        x = images(count, (224, 224), device, dtype)
        context = multiprocessing.get_context("spawn")
        timm_side, connection = context.Pipe()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seresnet50.safetensors"
            save_file(calibrate_norms(timm.create_model("seresnet50")).state_dict(), path)
            load_weights(ours, path)
            arguments = (path, timm_side, device, dtype, count, torch.get_num_threads())
            process = context.Process(target=_serve_timm, args=arguments, daemon=True)
            process.start()
            timm_side.close()
            theirs = torch.from_numpy(connection.recv())
        fast = prepare_for_inference(ours.to(device, dtype), "compiled")
        clock, name = choose_clock()

        def slow(connection: Connection = connection) -> float:
            connection.send(True)
            return connection.recv()

        with torch.inference_mode():
            difference = check_equal(fast(x).cpu(), theirs, ALLOWED[dtype])
            settings = describe(x, mode="compiled", clock=name, peer="in its own process")
            yield compare_seconds(slow, partial(clock, partial(fast, x)), settings, difference)
        connection.send(False)
        process.join()


def _serve_timm(
    weights: Path,
    connection: Connection,
    device: torch.device,
    dtype: torch.dtype,
    count: int,
    threads: int,
) -> None:
    """Send the logits of timm's network, then the seconds of a forward pass whenever asked."""
    torch.set_num_threads(threads)
    network = timm.create_model("seresnet50").eval()
    network.load_state_dict(load_file(weights))
    network.to(device, dtype)
    x = images(count, (224, 224), device, dtype).contiguous()
    clock, _ = choose_clock()
    with torch.inference_mode():
        connection.send(network(x).float().cpu().numpy())
        while connection.recv():
            connection.send(clock(partial(network, x)))


def compare_twins(se: nn.Module, plain: nn.Module, mode: str, x: Tensor) -> Measurement:
    """Inference of `se` over that of `plain`, both prepared; each first equals its plain form."""
    fast_se, fast_plain = prepare_for_inference(se, mode), prepare_for_inference(plain, mode)
    with torch.inference_mode():
        allowed = ALLOWED[x.dtype]
        difference = max(
            check_equal(fast_se(x), se(x), allowed), check_equal(fast_plain(x), plain(x), allowed)
        )
        settings = describe(x, mode=mode)
        return compare(partial(fast_se, x), partial(fast_plain, x), settings, difference)


def images(count: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random images (count, 3, *size), channels last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, *size, generator=generator).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last)


def place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network, channels last."""
    return network.to(device, dtype).to(memory_format=torch.channels_last)


def calibrate_norms(network: nn.Module) -> nn.Module:
    """Give the norms of an untrained network statistics of their inputs, as training does.

    Without, activations grow from block to block and gates are all 0 or 1, which hides differences.
    Frozen norms are thawed for it by what they are made of: a weight, a bias, two statistics.
    """

    def set_statistics(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        (x,) = inputs
        variance, mean = torch.var_mean(x, dim=(0, 2, 3))
        variance = variance.clamp(min=float(variance.mean()) / 10)  # channels almost silent here
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        return (x - mean[:, None, None]) / (variance + norm.eps).sqrt()[:, None, None]

    norms = [module for module in network.eval().modules() if hasattr(module, "running_var")]
    hooks = [norm.register_forward_hook(set_statistics) for norm in norms]
    with torch.no_grad():
        network(images(8, (128, 128), torch.device("cpu"), torch.float32))
    for hook in hooks:
        hook.remove()
    return network


def describe(x: Tensor, **settings: str) -> dict[str, object]:
    """The settings of a measurement on images `x`."""
    return {
        "device": x.device.type,
        "precision": str(x.dtype).removeprefix("torch."),
        "images": "x".join(map(str, x.shape)),
        "memory_format": "channels_last",
        **settings,
    }
