"""The plain network that costs what an SE network costs: wider or deeper, and trained like any other."""

import json

import pytest
import torch

from backbones import BackboneSettings, InputFormat, build_network, save_weights
from backbones.cost import count_multiply_adds, count_parameters
from backbones.equal_cost import find_equal_cost, spell
from backbones.zoo import PAIRS
from detection.backbone import build_detectron2_backbone
from tools.experiments.record import read_record
from tools.experiments.study import load_study, plan
from tools.sample_data import MAKERS

GOLDEN = {pair.se: pair for pair in PAIRS}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("se_resnet50", "wider"),
        ("se_resnet18", "deeper"),
        ("se_resnext50_32x4d", "wider"),
        ("se_resnet56", "deeper"),
        ("se_inception_resnet_v2", "deeper"),
        ("se_shake_even_29_2x4x64d", "deeper"),
    ],
)
def test_a_wider_or_deeper_plain_network_has_the_se_network_s_parameters(name, way):
    pair = GOLDEN[name]
    found = find_equal_cost(name, {}, "parameters", way)
    assert found.name == pair.plain
    assert found.options
    with torch.device("meta"):
        counted = count_parameters(build_network(found.name, pair.classes, **found.options))
    assert counted / pair.parameters[1] == pytest.approx(found.ratio, abs=1e-9)
    assert found.error <= 1


def test_se_adds_so_few_multiply_adds_that_the_plain_twin_itself_has_as_many():
    found = find_equal_cost("se_resnet20", {}, "multiply_adds")
    assert (found.way, found.options) == ("as it is", {})
    wider = find_equal_cost("se_resnet_tiny", {}, "multiply_adds", "wider")
    with torch.device("meta"):
        network = build_network(wider.name, **wider.options)
    counted = count_multiply_adds(network, (3, 96, 96))
    assert counted == pytest.approx(GOLDEN["se_resnet_tiny"].multiply_adds[1], rel=0.01)


def test_a_twin_keeps_the_form_of_its_se_network_and_follows_its_attention():
    options = {"reduction": 4, "stem_pool": "ceil"}
    found = find_equal_cost("se_resnet_tiny", options, "parameters", "wider")
    assert found.options["stem_pool"] == "ceil"
    assert "reduction" not in found.options
    less = find_equal_cost("se_resnet_tiny", {"reduction": 8}, "parameters", "wider")
    assert sum(found.options["widths"]) > sum(less.options["widths"])


@pytest.mark.parametrize(
    ("name", "way", "told"),
    [
        ("se_vgg16_bn", None, "se_vgg16_bn: no plain network of equal cost .* se_resnet50"),
        ("timm:seresnet50", None, "no plain network of equal cost"),
        ("resnet50", None, "plain itself; name its SE network, se_resnet50"),
        ("se_inception_resnet_v2", "wider", "no widths to choose; it can be made deeper"),
        (
            "se_wrn_16_8",
            "deeper",
            r"within 1 %; the nearest, wrn_16_8 layers=\[3,2,2\], is at 101.8",
        ),
        ("se_resnet50", "longer", "by='longer': choose from wider, deeper"),
    ],
)
def test_what_has_no_twin_of_equal_cost_is_refused_by_name(name, way, told):
    with pytest.raises(ValueError, match=told):
        find_equal_cost(name, {}, "parameters", way)


def test_every_width_of_a_grouped_network_gives_whole_groups():
    for widths in ([65, 67, 71, 73], [5, 9, 17, 33]):
        for name in ("resnext50_32x4d", "senet154_plain"):
            with torch.device("meta"):
                build_network(name, layers=[1, 1, 1, 1], widths=widths)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (
            "resnet50",
            {"layers": [3, 4, 6]},
            "layers has a whole number from 1 to 400 for each of 4",
        ),
        ("resnet50", {"widths": [64, 128, 256, 10**9]}, "widths has a whole number from 1 to 4096"),
        ("resnet20", {"widths": [True, 2, 3]}, "for each of 3 stages"),
        ("resnet20", {"widths": [12, 32, 64]}, "zero channels"),
        ("resnet50", {"width_factor": 2}, "unknown option 'width_factor'"),
    ],
)
def test_sizes_that_no_network_has_are_refused_by_name(name, options, told):
    with pytest.raises(ValueError, match=f"{name}: .*{told}"):
        build_network(name, **options)


def test_a_widened_network_is_trained_recorded_and_evaluated_like_any_other(sebench, tmp_path):
    MAKERS["cifar10"](tmp_path / "data" / "cifar10", train_per_class=16, test_per_class=2)
    asked = [
        "-r", "cifar-short", "-b", "resnet20", "--data", "cifar10", "--data-root",
        tmp_path / "data" / "cifar10", "backbone.options.widths=[17,20,24]",
        "backbone.options.layers=[1,1,1]", "train.epochs=1", "data.workers=0",
        "train.schedule.warmup=1",
    ]  # fmt: skip
    code, _, told = sebench("train", "classification", *asked, "-o", tmp_path / "run")
    assert code == 0, told
    record = read_record(tmp_path / "run" / "record.json")
    assert record.backbone.options == {"widths": [17, 20, 24], "layers": [1, 1, 1]}
    with torch.device("meta"):
        network = build_network("resnet20", 10, **record.backbone.options)
    assert record.cost.parameters == count_parameters(network)
    weights = tmp_path / "run" / "weights.safetensors"
    again = [
        "--weights",
        weights,
        "--data-root",
        tmp_path / "data" / "cifar10",
        "-o",
        tmp_path / "e",
    ]
    code, _, told = sebench("evaluate", "classification", "-r", "cifar-short", *again)
    assert code == 0, told
    evaluated = read_record(tmp_path / "e" / "record.json")
    assert evaluated.backbone == record.backbone
    assert evaluated.metrics == record.metrics


def test_a_detector_stands_on_a_widened_network_and_its_weights(tmp_path):
    backbone = BackboneSettings("resnet_tiny", {"widths": [25, 49, 97, 129]})
    network = build_network(backbone.name, 5, **backbone.options)
    path = tmp_path / "weights.safetensors"
    save_weights(network, path, backbone=backbone, num_classes=5, input_format=InputFormat())
    stages = build_detectron2_backbone(
        backbone.name, options=backbone.options, weights=str(path), norm="BN", freeze_at=0
    )
    assert [stages.output_shape()[name].channels for name in ("res2", "res5")] == [25, 129]


def study_of(tmp_path, **changes):
    path = tmp_path / "study.yaml"
    entry = {
        "task": "classification", "recipe": "cifar-short",
        "backbones": ["resnet56", "se_resnet20", {"name": "se_resnet20", "options": {"reduction": 2}}],
    }  # fmt: skip
    path.write_text(json.dumps({"experiments": [entry], **changes}))
    return [
        (cell.experiment.config.backbone.name, cell.experiment.config.backbone.options)
        for cell in plan(load_study(path), tmp_path / "out")
    ]


def test_a_study_asks_for_twins_of_equal_depth_and_of_equal_cost(tmp_path):
    se = find_equal_cost("se_resnet20", {"reduction": 2}, "parameters")
    assert se.way == "wider"
    assert study_of(tmp_path, twins=["equal_depth", "parameters"]) == [
        ("resnet56", {}),
        ("resnet20", {}),  # has SE-ResNet-20's parameters within 1 % as it is: it runs once
        ("se_resnet20", {}),
        ("resnet20", se.options),
        ("se_resnet20", {"reduction": 2}),
    ]
    assert ("resnet20", {}) not in study_of(tmp_path, twins=[])


@pytest.mark.parametrize(
    ("twins", "told"),
    [
        (["latency"], "sebench twin NAME --match latency"),
        (["equal_dept"], "unknown twin 'equal_dept'; did you mean equal_depth"),
        ([3], "twins"),
    ],
)
def test_twins_that_a_study_cannot_have_are_refused(tmp_path, twins, told):
    with pytest.raises(ValueError, match=told):
        study_of(tmp_path, twins=twins)


def test_a_network_is_spelled_as_the_command_line_reads_it():
    assert spell("resnet20", {"widths": [17, 34, 68]}) == "resnet20 widths=[17,34,68]"
