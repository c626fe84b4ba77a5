"""Rewritten networks compute what the plain ones do; the plain form is the oracle throughout."""

import copy

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from backbones import build_backbone, build_network, describe_backbone, register_attention, slot
from backbones.inference import EarlyGate, ResidualSum, prepare_for_inference
from backbones.resnet import ResNet
from backbones.slot import build_slot
from detection.backbone import build_detectron2_backbone

# One of each family, and what is built differently inside a family.
FAMILIES = (
    "se_resnet18",
    "resnet50",
    "se_resnet50",
    "se_resnext50_32x4d",
    "se_vgg16_bn",
    "se_bn_inception",
    "se_inception_v3",
    "se_inception_resnet_v2",
    "se_mobilenet",
    "se_shufflenet",
    "se_resnet20",
    "se_resnet164",
    "se_wrn_16_8",
    "se_shake_shake_26_2x96d",
    "se_shake_even_29_2x4x64d",
)
ABLATIONS = (
    {"squeeze": "max"},
    {"squeeze": "none"},
    {"excitation": "tanh"},
    {"excitation": "relu"},
    {"se_bias": False},
    {"se_stages": [3, 5]},
    {"placement": "pre"},
    {"placement": "post"},
    {"placement": "identity"},
    {"placement": "3x3"},
    *({"attention": name} for name in slot.ATTENTIONS),
)


def with_statistics(network: nn.Module) -> nn.Module:
    """Norms as after training: nothing about them is the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if hasattr(module, "running_var"):
            size = module.running_var.shape
            module.running_mean.copy_(torch.rand(size, generator=generator) - 0.5)
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.2 + 0.6 * torch.rand(size, generator=generator))
                module.bias.copy_(torch.rand(size, generator=generator) - 0.5)
    return network.eval()


def largest_difference(ours: dict, reference: dict) -> float:
    """Over all maps, as a share of the largest value of each."""
    assert list(ours) == list(reference)
    return max(
        float((ours[name] - reference[name]).abs().max() / reference[name].abs().max())
        for name in reference
    )


def difference_after_rewriting(network: nn.Module, x: torch.Tensor) -> float:
    fast = prepare_for_inference(network)
    with torch.inference_mode():
        return largest_difference(fast(x), network(x))


def bottlenecks(**options) -> ResNet:
    """A bottleneck network with one block a stage."""
    torch.manual_seed(0)
    widths = (16, 24, 32, 40)
    attention = build_slot({"reduction": 4, **options}, 64) if "attention" not in options else None
    attention = attention or build_slot(options, 64)
    return ResNet((1, 1, 1, 1), widths=widths, stem_width=16, slot=attention)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_equal_after_rewriting(name):
    torch.manual_seed(0)
    network = with_statistics(build_backbone(name)).double()
    side = {32: 8, 224: 48, 299: 80}[describe_backbone(name).input_size]
    assert difference_after_rewriting(network, torch.randn(2, 3, side, side).double()) < 1e-10


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_every_ablation_and_attention_is_equal_after_rewriting(options):
    network = with_statistics(bottlenecks(**options))
    x = torch.randn(2, 3, 64, 64)
    assert difference_after_rewriting(network, x) < 1e-5
    assert difference_after_rewriting(network.double(), x.double()) < 1e-10


def test_senet154s_stem_and_blocks_are_equal_after_rewriting():
    torch.manual_seed(0)
    widths, groups = (16, 32, 64, 128), {"groups": 4, "group_width": 16, "halve_first": True}
    extras = {"deep_stem": True, "projection_kernel": 3, "stride_in_1x1": False}
    attention = build_slot({"reduction": 4}, 64)
    network = ResNet(
        (2, 1, 1, 1), bottleneck=True, widths=widths, **groups, **extras, slot=attention
    )
    x = torch.randn(2, 3, 64, 64)
    assert difference_after_rewriting(with_statistics(network).double(), x.double()) < 1e-10


def test_a_whole_network_in_float32_is_equal_after_rewriting():
    torch.manual_seed(0)
    network = with_statistics(build_network("se_resnet50", 10))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        ours, reference = prepare_for_inference(network)(x), network(x)
    assert (ours - reference).abs().max() < 1e-5 * reference.abs().max()


def test_the_gate_is_squeezed_before_the_last_convolution_and_no_norm_is_left():
    fast = prepare_for_inference(with_statistics(build_network("se_resnet50", 10)))
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(EarlyGate) == kinds.count(ResidualSum) == 16
    assert nn.BatchNorm2d not in kinds
    assert all(relu.inplace for relu in fast.modules() if isinstance(relu, nn.ReLU))


def test_basic_blocks_keep_their_squeeze_after_the_3x3_convolution():
    fast = prepare_for_inference(with_statistics(build_backbone("se_resnet_tiny")))
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(ResidualSum) == 4
    assert EarlyGate not in kinds


def test_relus_whose_input_is_needed_again_do_not_work_in_place():
    """Shake-Shake's branches begin with a ReLU on what the shortcut takes too."""
    fast = prepare_for_inference(build_backbone("se_shake_shake_26_2x96d"))
    assert not fast.res2[0].branch1[0].inplace
    assert fast.res2[0].branch1[3].inplace


def test_the_network_itself_stays_as_it_is():
    network = with_statistics(build_network("se_resnet_tiny", 10)).train()
    before = copy.deepcopy(network.state_dict())
    prepare_for_inference(network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_trunk_with_frozen_norms_is_equal_inside_its_detector():
    torch.manual_seed(0)
    detector = nn.ModuleDict(
        {"trunk": with_statistics(build_detectron2_backbone("se_resnet50"))}
    ).double()
    fast = prepare_for_inference(detector)
    x = torch.randn(1, 3, 64, 96).double()
    with torch.inference_mode():
        assert largest_difference(fast["trunk"](x), detector["trunk"](x)) < 1e-10
    assert "FrozenBatchNorm2d" not in {type(module).__name__ for module in fast.modules()}


def test_group_norms_and_attentions_of_ones_own_keep_their_blocks():
    class Halve(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x):
            return x * 0.5 if x.sum() > -1e9 else x  # cannot be traced

    register_attention("halve", Halve)
    try:
        network = with_statistics(bottlenecks(attention="halve"))
    finally:
        del slot.ATTENTIONS["halve"]
    assert difference_after_rewriting(network.double(), torch.randn(2, 3, 64, 64).double()) < 1e-10
    grouped = build_detectron2_backbone("se_resnet50", freeze_at=0, norm="GN").eval().double()
    assert difference_after_rewriting(grouped, torch.randn(1, 3, 64, 64).double()) < 1e-10


def test_plain_is_a_copy_in_evaluation_mode():
    network = build_network("se_resnet_tiny", 10)
    plain = prepare_for_inference(network, "plain")
    x = torch.randn(1, 3, 32, 32)
    network.eval()
    with torch.inference_mode():
        assert torch.equal(plain(x), network(x))
    assert plain is not network


def test_an_unknown_mode_is_refused_with_near_matches():
    with pytest.raises(ValueError, match=r"unknown mode 'compile'; did you mean compiled\?"):
        prepare_for_inference(build_network("se_resnet_tiny", 10), "compile")


def test_a_compiled_network_is_equal():
    torch.manual_seed(0)
    network = with_statistics(
        ResNet((1,) * 4, widths=(16,) * 4, stem_width=16, slot=build_slot({}, 64))
    )
    x = torch.randn(1, 3, 32, 32)
    fast = prepare_for_inference(network, "compiled")
    with torch.inference_mode():
        _, (code, *_) = run_and_get_code(fast, x)
        assert largest_difference(fast(x), network(x)) < 1e-5
    assert "_frozen_param" in code
    assert not torch._inductor.config.freezing  # for others
