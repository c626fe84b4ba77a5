"""Runs that do not fit into memory go on with smaller parts of the same batch, and say so."""

import json

import pytest
import torch
from safetensors.torch import load_file

from backbones import build_network, files
from detection.config import DetectionConfig
from tools.experiments.memory import make_fit
from tools.sample_data import MAKERS

# A network whose memory is short: by a real allocation, larger than any machine's.
HUNGRY = """
from backbones import build_backbone, register_backbone

def build(training=1, evaluating=1):
    network = build_backbone("resnet20")

    def take(module, inputs):
        images = inputs[0]
        if len(images) > (training if module.training else evaluating) and images.device.type != "meta":
            images.new_empty(1 << 46)

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


def test_an_evaluation_of_one_image_at_a_time_is_told_what_is_left_to_lower(tmp_path):
    error = RuntimeError("-- Process 0 terminated:\nCUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(MemoryError, match=r"^CUDA out of memory.*one image at a time already"):
        make_fit(DetectionConfig(), error, tmp_path)
    assert not make_fit(DetectionConfig(), RuntimeError("something else"), tmp_path)
    assert not list(tmp_path.iterdir())


# A network for detectors that is refused memory as CUDA does it, above so many images at a time.
HUNGRY_STAGES = """
import torch
from backbones import build_backbone, register_backbone

def build(training=1):
    network = build_backbone("resnet_tiny")

    def take(module, inputs):
        if module.training and len(inputs[0]) > training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.register_forward_pre_hook(take)
    return network

register_backbone("hungry_stages", build, family="test")
"""
SMALL_DETECTOR = (
    "train.iterations=2 train.batch_size=4 train.warmup_iterations=0 train.min_size=[64,80] "
    "train.max_size=96 train.checkpoint_every=1 evaluate.min_size=64 evaluate.max_size=96 device=cpu "
    "data.workers=0 detector.norm=FrozenBN"
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder with a network, its weights, and small data."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "net.py").write_text(HUNGRY_STAGES)
    network = build_network("resnet_tiny", 3)
    network(torch.randn(8, 3, 64, 64))  # statistics of its norms, which stay
    torch.save(network.state_dict(), folder / "weights.pth")
    MAKERS["coco"](folder / "coco", train=6, val=1, size=64)
    return folder


def _train_detector(sebench, coco, output, *changes):
    data = (
        "--import",
        coco / "net.py",
        "--data-root",
        coco / "coco",
        "--weights",
        coco / "weights.pth",
    )
    arguments = ("-r", "tiny", *data, "-o", output, "--json", *SMALL_DETECTOR.split(), *changes)
    code, out, err = sebench("train", "detection", *arguments)
    assert code == 0, err
    return json.loads(out), load_file(output / files.WEIGHTS)


def test_a_detector_whose_batch_does_not_fit_ends_as_one_whose_batch_does(coco, sebench, tmp_path):
    short = ("-b", "hungry_stages", "backbone.options.training=1")
    record, weights = _train_detector(sebench, coco, tmp_path / "short", *short)
    assert record["memory"]["accumulate"] == 4
    assert record["memory"]["reason"].startswith("CUDA out of memory")
    assert record["experiment"]["settings"]["train"]["accumulate"] == 1  # as planned
    asked = ("-b", "resnet_tiny", "train.accumulate=4")
    planned, same = _train_detector(sebench, coco, tmp_path / "asked", *asked)
    assert planned["memory"] is None
    assert planned["experiment"]["hash"] != record["experiment"]["hash"]
    _, whole = _train_detector(sebench, coco, tmp_path / "whole", "-b", "resnet_tiny")
    for name in whole:
        assert torch.equal(weights[name], same[name])
        torch.testing.assert_close(weights[name], whole[name], rtol=1e-4, atol=1e-6)
