"""Released weights are measured as they were trained to be fed, beside what was published."""

import math

import torch
import torchvision

from backbones.config import InputFormat
from backbones.libraries import input_format_of, split_name
from tools import sample_data
from tools.references.remeasure import (
    Checkpoint,
    checkpoints_of,
    published_checkpoints,
    remeasure,
    views_of,
)


def test_every_published_checkpoint_is_one_a_library_has():
    checkpoints = published_checkpoints()
    assert len(checkpoints) > 20
    for checkpoint in checkpoints:
        split_name(checkpoint.weights)  # raises for a name or tag that is not there
        assert checkpoint.published.references


def test_a_name_measured_at_two_crops_is_compared_with_each():
    found = checkpoints_of(["timm:seresnet50.a1_in1k"])
    values = [(c.published.references[0].value, *views_of(c, InputFormat())) for c in found]
    assert values == [(80.01, 235, 224), (81.11, 288, 288)]


def test_the_published_views_are_those_of_the_libraries():
    """timm's rows at the size and the crop fraction of its own table, rounded down as it does."""
    for checkpoint in published_checkpoints():
        told = input_format_of(checkpoint.weights)
        resize, crop = views_of(checkpoint, told)
        if crop == told.size:
            assert resize == math.floor(crop / told.crop + 1e-6), checkpoint.weights


def test_measured_stands_beside_published_and_failures_have_reasons(tmp_path):
    root = sample_data.make_imagenet(tmp_path / "imagenet", 2, 1, 2)
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), file)
    row = published_checkpoints()[0].published
    checkpoints = [Checkpoint(str(file), row), Checkpoint(str(tmp_path / "none"), row)]
    first, second = remeasure(checkpoints, root, tmp_path / "runs", classes="subset")
    assert first["backbone"] == "resnet18"
    assert first["protocol"] == "imagenet-256-224+resize256+crop224"
    assert 0 <= first["top1_accuracy"] <= first["top5_accuracy"] <= 100
    assert first["top1_accuracy_published"] == 77.65
    assert first["top1_accuracy_difference"] is None  # a subset is not ImageNet val
    assert second["reason"].endswith("no such file")
    assert second["top1_accuracy"] is None
