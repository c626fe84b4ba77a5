"""A study of one small network on synthetic images, run by the command line: for tests of engines."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

SAMPLE_DATA = {"imagenet": {"classes": 3, "train_per_class": 40, "size": 64}}


def entry(epochs: int, **changes: object) -> dict:
    """An experiment that saves its checkpoint at every epoch; ``changes`` replace whole keys."""
    settings = {
        "data": {"classes": "folders"},
        "augment": {"size": 32},
        "train": {
            "epochs": epochs, "batch_size": 8, "tensorboard": False, "log_every": 5,
            "checkpoint_every": 0,
        },
        "evaluate": {"resize": 40, "crop": 32, "every": 0},
    }  # fmt: skip
    return {
        "name": "first", "task": "classification", "recipe": "imagenet-paper",
        "backbones": ["resnet_tiny"], "sample": "imagenet", "settings": settings, **changes,
    }  # fmt: skip


def write_study(path: Path, *experiments: dict, **study: object) -> Path:
    """Write the study's file; ``study`` are further keys of it."""
    content = {"sample_data": SAMPLE_DATA, "experiments": list(experiments), **study}
    path.write_text(yaml.safe_dump(content))
    return path


def start(study: Path, output: Path, *options: str, **environment: str) -> subprocess.Popen:
    """`sebench run` in a process of its own."""
    command = [sys.executable, "-m", "tools", "run", study, "-o", output, *options]
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
