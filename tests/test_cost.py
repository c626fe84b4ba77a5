"""Parameters and multiply-adds: goldens against counts, counts against hand work and fvcore."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from backbones import cost
from backbones.build import build_network
from backbones.registry import describe_backbone, list_backbones
from backbones.squeeze_excite import SEBlock

PLAIN = [info.name for info in list_backbones() if not info.is_se]
SE = [info.name for info in list_backbones() if info.is_se]


def on_meta(name, num_classes=1000, **options):
    with torch.device("meta"):
        return build_network(name, num_classes, **options)


@pytest.mark.parametrize("name", PLAIN)
def test_the_table_of_networks_holds_what_is_counted(name):
    info = describe_backbone(name)
    network = on_meta(name, info.classes)
    assert cost.count_parameters(network) == info.parameters
    size = (3, info.input_size, info.input_size)
    assert cost.count_multiply_adds(network, size) == info.multiply_adds
    counted = cost.count_multiply_adds(network, size, with_gating=True)
    assert counted == info.multiply_adds_with_gating


@pytest.mark.parametrize("name", SE)
def test_se_adds_as_many_multiply_adds_as_it_has_weights(name):
    info = describe_backbone(name)
    network = on_meta(name, info.classes)
    assert cost.count_parameters(network) == info.parameters
    added = info.multiply_adds - describe_backbone(info.twin).multiply_adds
    assert added == se_weights(network) > 0


@pytest.mark.parametrize("name", ["se_resnet50", "se_vgg16_bn", "se_mobilenet", "se_shufflenet"])
def test_the_second_rule_adds_what_se_pools_and_scales(name):
    """By hand: each block pools the elements of its map once and scales them once."""
    info = describe_backbone(name)
    network = on_meta(name, info.classes)
    elements = []
    for module in network.modules():
        if isinstance(module, SEBlock):
            module.register_forward_hook(lambda _, inputs, out: elements.append(out.numel()))
    with torch.device("meta"):
        features = network.backbone(torch.empty(1, 3, info.input_size, info.input_size))
        network.head(features)
    last = list(features.values())[-1].numel()
    pooled = last if "vgg" not in name else 0  # VGG has no global pooling of its own
    assert info.multiply_adds_with_gating - info.multiply_adds == 2 * sum(elements) + pooled


def se_weights(network):
    """Count W1 and W2, which act once a picture: as many multiply-adds, unless nothing squeezes."""
    blocks = [m for m in network.modules() if isinstance(m, SEBlock)]
    return sum(block.fc1.weight.numel() + block.fc2.weight.numel() for block in blocks)


# Published counts: torchvision, timm, pytorchcv and Eq. 5 of the paper.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
        ("se_resnet50", 28_088_024),
        ("se_resnet101", 49_326_872),
        ("se_resnet152", 66_821_848),
        ("se_resnext50_32x4d", 27_559_896),
        ("se_resnext101_32x4d", 48_955_416),
        ("senet154", 115_088_984),
        ("vgg16_bn", 138_365_992),
        ("inception_v3", 23_834_568),
        ("inception_resnet_v2", 55_843_464),
        ("mobilenet", 4_231_976),
        ("wrn_16_8", 10_961_370),
        ("resnet164", 1_703_258),
        ("resnet20", 269_722),
    ],
)
def test_parameters_equal_published_counts(name, parameters):
    assert describe_backbone(name).parameters == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("se_resnet50", 28_071_976),
        ("se_resnet101", 49_292_328),
        ("se_resnet152", 66_770_984),
        ("se_resnext50_32x4d", 27_543_848),
        ("se_resnext101_32x4d", 48_920_872),
    ],
)
def test_se_without_biases_adds_what_equation_5_says(name, parameters):
    assert cost.count_parameters(on_meta(name, se_bias=False)) == parameters


@pytest.mark.parametrize("reduction", [2, 4, 8, 16, 32])
def test_se_resnet50_adds_equation_5_at_every_reduction(reduction):
    # Eq. 5: 2 / r * sum over stages of blocks * channels^2
    stages = {256: 3, 512: 4, 1024: 6, 2048: 3}
    added = sum(2 * blocks * c * c // reduction for c, blocks in stages.items())
    network = on_meta("se_resnet50", reduction=reduction, se_bias=False)
    assert cost.count_parameters(network) == 25_557_032 + added


def test_bn_inception_has_the_published_count_less_the_biases_before_norms():
    network = on_meta("bn_inception")
    biases = sum(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    assert cost.count_parameters(network) + biases == 11_295_240  # pytorchcv's, with biases


@pytest.mark.parametrize(("name", "million"), [("resnet50", 3858.0), ("resnext50_32x4d", 4230.5)])
def test_convolutions_and_fc_give_the_figures_without_residual_additions(name, million):
    additions = 5_519_360  # 56*56*256*3 + 28*28*512*4 + 14*14*1024*6 + 7*7*2048*3
    count = describe_backbone(name).multiply_adds - additions
    assert count / 1e6 == pytest.approx(million, abs=0.05)


@pytest.mark.parametrize(
    ("name", "million"),
    [
        ("resnet50", 3877.95),
        ("se_resnet50", 3883.25),
        ("senet154", 20745.78),
    ],
)
def test_pytorchcv_which_counts_small_operations_too_is_above_by_less_than_a_percent(name, million):
    ratio = million * 1e6 / describe_backbone(name).multiply_adds
    assert 1 < ratio < 1.01


def test_stride_in_the_first_1x1_is_what_the_paper_counts():
    assert round(cost.count_multiply_adds(on_meta("resnet50")) / 1e9, 2) == 3.86
    late = on_meta("resnet50", stride_in_1x1=False)
    assert round(cost.count_multiply_adds(late) / 1e9, 2) == 4.09
    # ResNeXt the other way round: its printed 4.24 G strides in the 3x3.
    early = on_meta("resnext50_32x4d", stride_in_1x1=True)
    assert round(cost.count_multiply_adds(early) / 1e9, 2) == 3.77


@pytest.mark.parametrize("name", ["se_resnet18", "se_mobilenet", "se_shufflenet", "se_resnet20"])
def test_convolutions_and_fc_equal_fvcore(name):
    info = describe_backbone(name)
    size = info.input_size
    network = build_network(name, info.classes).eval()
    analysis = FlopCountAnalysis(network, torch.zeros(1, 3, size, size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    matrix_products = sum(by_operator[op] for op in ("conv", "linear", "addmm", "matmul"))
    additions = _residual_additions(network, size)
    assert info.multiply_adds == matrix_products + additions


def _residual_additions(network, size):
    """Count the elements that blocks with a shortcut put out."""
    elements = []

    def hook(module, _, output):
        strided_shuffle = getattr(module, "stride", 1) == 2 and hasattr(module, "expand")
        if not strided_shuffle:
            elements.append(output.numel())

    names = ("ResidualBlock", "PreActivationBlock", "ShuffleUnit")
    for module in network.modules():
        if type(module).__name__ in names:
            module.register_forward_hook(hook)
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return sum(elements)


def test_the_rule_counts_a_worked_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 10)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)) + x)
            return self.fc(x.mean(dim=(2, 3)) + 1)

    block = Block()
    # 4 * 2 * 9 a pixel, one a residual element, 40 for the fully connected layer
    assert cost.count_multiply_adds(block, (4, 5, 6)) == 30 * 4 * 2 * 9 + 30 * 4 + 40
    assert cost.count_parameters(block) == 4 * 2 * 9 + 4 + 8 + 50
    assert next(block.parameters()).device.type == "cpu"  # counted on a copy
    assert block.training


def test_latency_is_measured_in_evaluation_mode_and_leaves_the_network_as_it_was():
    network = build_network("resnet20", 10).train()
    before = network.backbone.res4.norm.running_mean.clone()
    latency = cost.measure_latency([network], (3, 32, 32), repeats=3)
    assert 0 < latency.fastest_ms <= latency.median_ms <= latency.slowest_ms
    assert latency.repeats == 3
    assert network.training
    assert torch.equal(network.backbone.res4.norm.running_mean, before)
