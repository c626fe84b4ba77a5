"""Runs that do not fit into memory go on with smaller parts of the same batch, and say so."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from backbones import files
from tools.sample_data import MAKERS

# A network whose memory is short: by a real allocation, larger than any machine's.
HUNGRY = """
import os, pathlib, signal
from backbones import build_backbone, register_backbone

def build(training=1, evaluating=1, kill="", **options):
    network = build_backbone("resnet20")

    def take(module, inputs):
        images = inputs[0]
        if len(images) > (training if module.training else evaluating) and images.device.type != "meta":
            images.new_empty(1 << 46)
        if kill and images.device.type != "meta" and not pathlib.Path(kill).exists():
            pathlib.Path(kill).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    network.register_forward_pre_hook(take)
    return network

register_backbone("hungry", build, family="test", input_size=32)
"""
SMALL = (
    "train.epochs=1",
    "train.schedule.warmup=0",
    "train.batch_size=16",
    "train.tensorboard=false",
    "evaluate.batch_size=20",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the network, `net.py`, and small data, `cifar`."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "net.py").write_text(HUNGRY)
    MAKERS["cifar10"](folder / "cifar", train_per_class=4, test_per_class=2)
    return folder


def _train(sebench, place, output, *changes):
    data = ("--import", place / "net.py", "-b", "hungry", "--data-root", place / "cifar")
    arguments = ("-r", "cifar-short", *data, "-o", output, "--json")
    code, out, err = sebench("train", "classification", *arguments, *SMALL, *changes)
    return (json.loads(out) if code == 0 else None), err


def test_a_batch_that_does_not_fit_is_taken_in_parts_and_the_record_says_so(
    place, sebench, tmp_path
):
    short = ("backbone.options.training=4", "backbone.options.evaluating=5")
    record, err = _train(sebench, place, tmp_path / "short", *short)
    assert record, err
    assert record["memory"]["accumulate"] == 4
    assert record["memory"]["evaluate_batch_size"] == 5
    assert "can't allocate memory" in record["memory"]["reason"]
    assert record["experiment"]["settings"]["train"]["accumulate"] == 1  # as planned
    ample = ("backbone.options.training=99", "backbone.options.evaluating=99")
    asked, _ = _train(sebench, place, tmp_path / "asked", *ample, "train.accumulate=4")
    assert asked["memory"] is None
    first, second = (load_file(tmp_path / name / files.WEIGHTS) for name in ("short", "asked"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    again, err = _train(sebench, place, tmp_path / "short", *short)
    assert again == record
    assert "nothing was run" in err


def test_a_batch_that_fits_in_no_part_is_refused_with_the_mend(place, sebench, tmp_path):
    _, err = _train(sebench, place, tmp_path / "never", "backbone.options.training=0")
    assert "with train.accumulate=8 a part of a batch has 2 images, which cannot be halved" in err


def test_a_cell_whose_process_is_killed_is_started_again(place, tmp_path):
    """Killed once, as the system does where memory is short: the study ends all the same."""
    train = {"epochs": 1, "batch_size": 16, "tensorboard": False, "schedule": {"warmup": 0}}
    options = {"training": 99, "evaluating": 99, "kill": str(tmp_path / "killed")}
    entry = {
        "task": "classification", "recipe": "cifar-short", "data_root": str(place / "cifar"),
        "backbones": [{"name": "hungry", "options": options}], "settings": {"train": train}, "name": "c",
    }  # fmt: skip
    study, output = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump({"experiments": [entry]}))
    command = [
        sys.executable,
        "-m",
        "tools",
        "run",
        study,
        "-o",
        output,
        "--import",
        place / "net.py",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert len(list(output.glob("c/*/record.json"))) == 1
