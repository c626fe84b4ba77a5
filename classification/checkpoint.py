"""What a stopped run needs to go on as if it had not stopped: its state, and how it is stopped."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TrainingState:
    """The content of a checkpoint: tensors and plain values."""

    step: int  # optimiser steps done
    total_steps: int
    processes: int
    dataset: str  # SHA-256 of the training images' names and labels
    best: dict[str, Any] | None  # error in percent, epoch and network of the best epoch
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: dict[str, Tensor] | None  # the moving average of the weights
    schedule: dict[str, Any]
    monitor: dict[str, Any]  # seconds of training, and the steps that curve.jsonl lacks yet
    random: list[Any]  # of each process
    bad_images: list[str]

    def save(self, path: Path) -> None:
        """Write it whole, or leave what was there."""
        save_checkpoint({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged, or is no checkpoint of classification.
        """
        state = load_checkpoint(path)
        keys = {field.name: field.type for field in fields(cls)}
        if not isinstance(state, dict) or not keys.keys() <= state.keys():
            raise ValueError(
                f"{path} is no checkpoint of classification, or one of another version; remove it "
                "to train from the start"
            )
        kinds = {"int": int, "float": float, "str": str, "dict": dict, "list": list}
        for key, annotation in keys.items():
            value, kind = state[key], kinds[str(annotation).partition("[")[0]]
            absent = value is None and str(annotation).endswith("None")
            if not absent and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(
                    f"{path} is no checkpoint of this suite: its {key} is a "
                    f"{type(value).__name__}, not a {kind.__name__}; remove it to train from the "
                    "start"
                )
        return cls(**{key: state[key] for key in keys})


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
