"""Cells that several processes train together, started by the scheduler: `make engines`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from backbones import files

pytestmark = pytest.mark.engines


def _write(path: Path, epochs: int, **entry: object) -> Path:
    settings = {
        "data": {"classes": "folders", "workers": 1},
        "augment": {"size": 32},
        "train": {
            "epochs": epochs, "batch_size": 8, "tensorboard": False, "log_every": 5,
            "checkpoint_every": 0,
        },
        "evaluate": {"resize": 40, "crop": 32, "every": 0},
    }  # fmt: skip
    base = {
        "name": "first", "task": "classification", "recipe": "imagenet-paper",
        "backbones": ["resnet_tiny"], "sample": "imagenet", "settings": settings,
    }  # fmt: skip
    sample = {"imagenet": {"classes": 3, "train_per_class": 40, "size": 64}}
    content = {"needs": {"processes": 2}, "sample_data": sample, "experiments": [base | entry]}
    path.write_text(yaml.safe_dump(content))
    return path


def _start(study: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tools", "run", study, "-o", output, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_process_that_is_killed_ends_the_others_and_the_cell_goes_on(tmp_path):
    study = _write(tmp_path / "study.yaml", epochs=12)
    alone = _start(study, tmp_path / "alone", "--cell", "0")
    _, err = alone.communicate(timeout=400)
    assert alone.returncode == 0, err
    run = _start(study, tmp_path / "out")
    directory = tmp_path / "out" / "first" / "resnet_tiny-seed0"
    try:
        end = time.monotonic() + 200
        while not (directory / files.CHECKPOINT).is_file():
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        os.kill(json.loads((directory / files.HEARTBEAT).read_text())["pid"], signal.SIGKILL)
        _, err = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, err
    assert "resumed at step" in (directory / files.LOG).read_text()
    record = json.loads((directory / files.RECORD).read_text())
    assert record["device"]["processes"] == 2
    wanted = tmp_path / "alone" / "first" / "resnet_tiny-seed0" / files.WEIGHTS
    assert (directory / files.WEIGHTS).read_bytes() == wanted.read_bytes()


def test_what_is_wrong_with_a_cell_of_several_processes_is_named(tmp_path):
    study = _write(tmp_path / "study.yaml", 1, sample=None, data_root="/nonexistent")
    run = _start(study, tmp_path / "out")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "first · resnet_tiny-seed0: " in err
    assert "/nonexistent" in err.splitlines()[-1]
