"""Inference: SE networks over their plain twins, and against timm's."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
    interleave,
    summarize,
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
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn) as peer:
            path = Path(folder) / "seresnet50.safetensors"
            save_file(calibrate_norms(timm.create_model("seresnet50")).state_dict(), path)
            load_weights(ours, path)
            loaded = peer.submit(_load_timm, path, device, dtype, count, torch.get_num_threads())
            theirs = torch.from_numpy(loaded.result())
            fast = prepare_for_inference(ours.to(device, dtype), "compiled")
            clock, name = choose_clock()
            with torch.inference_mode():
                difference = check_equal(fast(x).cpu(), theirs, ALLOWED[dtype])
                rounds = interleave(
                    lambda peer=peer: peer.submit(_time_timm).result(),  # type: ignore[misc]
                    partial(clock, partial(fast, x)),
                )
            settings = describe(x, mode="compiled", clock=name, peer="in its own process")
            yield summarize([slow / ours_ for slow, ours_ in rounds], settings, difference)


_timm_pass: Callable[[], Tensor]  # in the process of timm's network alone


def _load_timm(
    weights: Path, device: torch.device, dtype: torch.dtype, count: int, threads: int
) -> np.ndarray:
    """Load timm's network in this process, and return its logits."""
    global _timm_pass
    torch.set_num_threads(threads)
    network = timm.create_model("seresnet50").eval()
    network.load_state_dict(load_file(weights))
    network.to(device, dtype)
    _timm_pass = partial(network, images(count, (224, 224), device, dtype).contiguous())
    with torch.inference_mode():
        return _timm_pass().float().cpu().numpy()


def _time_timm() -> float:
    """Seconds of one forward pass."""
    with torch.inference_mode():
        return choose_clock()[0](_timm_pass)


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
