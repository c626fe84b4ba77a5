"""What a stopped run needs to go on as if it had not stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

# What a checkpoint holds.
KINDS = {
    "step": int,  # optimiser steps done
    "total_steps": int,
    "processes": int,
    "dataset": str,  # SHA-256 of the training images' names and labels
    "best": dict | None,  # error in percent, epoch and network of the best epoch
    "network": dict,
    "optimizer": dict,
    "scaler": dict,
    "average": dict | None,  # the moving average of the weights
    "schedule": dict,
    "monitor": dict,  # seconds of training, and the steps that curve.jsonl lacks yet
    "random": list,  # the generators of each process
    "bad_images": list,
}


def capture_random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that training draws from, as plain values."""
    drawn = np.random.get_state(legacy=True)
    assert isinstance(drawn, tuple)
    kind, keys, position, has_gauss, gauss = drawn
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": list(random.getstate()),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo everything drawn since `capture_random_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
