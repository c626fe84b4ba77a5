"""A detection run that was killed or stopped ends as one that was left alone, from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tools import sample_data

SETTINGS = [
    "train.iterations=12",
    "train.batch_size=2",
    "train.warmup_iterations=3",
    "train.checkpoint_every=4",
    "train.log_every=5",
    "train.min_size=[64]",
    "train.max_size=96",
    "evaluate.min_size=64",
    "evaluate.max_size=96",
    "evaluate.every=3",
    "data.workers=-1",
]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "coco"
    return sample_data.make_coco(folder, train=10, val=5, size=64)


def start(coco, directory, *more):
    command = [sys.executable, "-m", "tools", "train", "detection", "-r", "tiny", *SETTINGS]
    command += [f"data.root={coco}", "-o", str(directory), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process, expected=0):
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == expected, errors
    return errors


@pytest.fixture(scope="module")
def whole(coco, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    finish(start(coco, directory))
    return directory


def interrupt(process, directory, number):
    """Send a signal as soon as the first checkpoint is there."""
    give_up = time.monotonic() + 90
    while not (directory / "checkpoint.pt").exists() and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    os.kill(process.pid, number)


def curve(directory):
    """The points but for what depends on the machine's speed."""
    rows = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def assert_equal(directory, whole):
    assert curve(directory) == curve(whole)
    one, other = (load_file(folder / "weights.safetensors") for folder in (directory, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads((folder / "record.json").read_text()) for folder in (directory, whole)]
    assert records[0]["metrics"] == records[1]["metrics"]


@pytest.fixture(scope="module")
def killed(coco, tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed") / "run"
    process = start(coco, directory)
    interrupt(process, directory, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert not (directory / "record.json").exists()
    return directory


def test_a_run_killed_at_once_and_resumed_has_the_curve_and_weights_of_a_whole_one(
    coco, whole, killed, tmp_path
):
    directory = shutil.copytree(killed, tmp_path / "run")
    finish(start(coco, directory, "--resume"))
    assert_equal(directory, whole)
    assert not (directory / "checkpoint.pt").exists()  # a finished run keeps none
    steps = [row["step"] for row in curve(directory)]
    assert steps == [3, 5, 6, 9, 10, 12]


def test_a_run_that_is_asked_to_stop_saves_where_it_is_and_says_how_to_go_on(coco, whole, tmp_path):
    directory = tmp_path / "run"
    process = start(coco, directory)
    interrupt(process, directory, signal.SIGTERM)
    errors = finish(process, 128 + signal.SIGINT)
    assert "--resume" in errors
    assert "Traceback" not in errors
    step = torch.load(directory / "checkpoint.pt", weights_only=True)["step"]
    assert 4 <= step < 12
    finish(start(coco, directory, "--resume"))
    assert_equal(directory, whole)


def test_processes_of_one_run_stop_together_with_one_checkpoint(coco, tmp_path):
    directory = tmp_path / "run"
    process = start(coco, directory, "processes=2", "device=cpu", "evaluate.every=0")
    interrupt(process, directory, signal.SIGTERM)
    errors = finish(process, 128 + signal.SIGINT)
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert 4 <= torch.load(directory / "checkpoint.pt", weights_only=True)["step"] < 12


def test_a_checkpoint_with_one_wrong_bit_is_refused(coco, killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    content = bytearray((killed / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content)
    errors = finish(start(coco, tmp_path / "run", "--resume"), 1)
    assert "checkpoint.pt is damaged" in errors
    assert "Traceback" not in errors
