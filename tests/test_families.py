"""Every family against an outside implementation with the same weights, or its description."""

import itertools
import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers.squeeze_excite import SEModule
from timm.models import resnet as timm_resnet
from timm.models import senet as timm_senet
from torch import nn

from backbones import build_backbone, build_network
from backbones.features import Network
from backbones.resnet import ResNet
from backbones.slot import build_slot
from backbones.vgg import VGGHead

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
SE = build_slot({}, 224)


def on_meta(build, *args, **kwargs):
    """Build without memory; the weights are the other implementation's own tensors."""
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def shake_up(network, dtype):
    """Give every norm something to do, and keep activations in range."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.to(dtype).eval()


def copy_by_name(ours, theirs, rename):
    """Hand the tensors of `theirs` to `ours`; every name of both must find its partner."""
    state = {rename(name): tensor for name, tensor in theirs.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    state = {name: tensor.reshape(shapes[name]) for name, tensor in state.items()}
    ours.load_state_dict(state, assign=True)
    return ours


def copy_in_order(ours, theirs):
    """The same where both define their layers in the same order."""
    names = iter(ours.state_dict())
    return copy_by_name(ours, theirs, lambda _: next(names))


def rename_residual(name):
    """torchvision's, timm's and legacy timm's names of a residual network -> ours."""
    name = re.sub(r"^(layer0\.)?(conv|bn)(\d)", r"backbone.stem.\2\3", name)
    name = re.sub(r"^layer(\d)", lambda m: f"backbone.res{int(m[1]) + 1}", name)
    name = re.sub(r"^(fc|last_linear)\.", "head.fc.", name)
    name = name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.norm")
    return name.replace("se_module", "se").replace("bn", "norm")


def assert_same_outputs(ours, theirs, dtype, tolerance, size):
    x = torch.randn(1, 3, size, size, dtype=dtype)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert b.std() > 1e-3
    torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=0, atol=tolerance)


def senet154(layers):
    return Network(
        ResNet(
            layers,
            groups=64,
            group_width=4,
            stride_in_1x1=False,
            deep_stem=True,
            halve_first=True,
            projection_kernel=3,
            stem_pool="ceil",
            slot=SE,
        ),
        num_classes=10,
    )


def timm_se_resnet18():
    # timm's own seresnet18 rounds 64 / 16 units up to 8; legacy_seresnet18 has one more ReLU.
    blocks = {"attn_layer": partial(SEModule, rd_divisor=1)}
    return timm_resnet.ResNet(
        timm_resnet.BasicBlock, [2, 2, 2, 2], num_classes=10, block_args=blocks
    )


def timm_senet154(layers):
    return timm_senet.SENet(
        timm_senet.SEBottleneck,
        layers,
        groups=64,
        reduction=16,
        inplanes=128,
        input_3x3=True,
        downsample_kernel_size=3,
        downsample_padding=1,
        num_classes=10,
    )


def network(name, **options):
    return partial(build_network, name, 10, **options)


def of_timm(name):
    return partial(timm.create_model, name, num_classes=10)


LATE = {"stride_in_1x1": False}
LEGACY = {"stem_pool": "ceil"}
# Name -> (ours, theirs)
RESIDUAL = {
    "resnet18": (network("resnet18"), of_timm("resnet18")),
    "resnext50": (network("resnext50_32x4d"), of_timm("resnext50_32x4d")),
    "resnet34, torchvision": (
        network("resnet34"),
        partial(torchvision.models.resnet34, num_classes=10),
    ),
    "se_resnet18": (network("se_resnet18"), timm_se_resnet18),
    "se_resnet50, stride in 3x3": (network("se_resnet50", **LATE), of_timm("seresnet50")),
    "se_resnet50, legacy": (network("se_resnet50", **LEGACY), of_timm("legacy_seresnet50")),
    "se_resnext50, legacy": (
        network("se_resnext50_32x4d", **LEGACY),
        of_timm("legacy_seresnext50_32x4d"),
    ),
    "senet154, one block a stage": (
        partial(senet154, (1, 2, 1, 1)),
        partial(timm_senet154, (1, 2, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_equal_timm_and_torchvision(name):
    build_ours, build_theirs = RESIDUAL[name]
    for dtype, tolerance in PRECISIONS:
        theirs = shake_up(build_theirs(), dtype)
        ours = copy_by_name(on_meta(build_ours), theirs, rename_residual)
        assert_same_outputs(ours, theirs, dtype, tolerance, size=64)


def test_pools_of_the_stem_differ_by_one_pixel():
    """So weights of one do not serve the other, though every shape fits."""
    theirs = shake_up(timm.create_model("legacy_seresnet50", num_classes=10), torch.float32)
    ours = copy_by_name(on_meta(network("se_resnet50")), theirs, rename_residual)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["inception_v3", "inception_resnet_v2"])
def test_inception_networks_equal_timm(name):
    theirs = shake_up(timm.create_model(name, num_classes=10), torch.float32)
    for dtype, tolerance in PRECISIONS:
        theirs = theirs.to(dtype)
        ours = copy_in_order(on_meta(build_network, name, 10), theirs)
        assert_same_outputs(ours, theirs, dtype, tolerance, size=107)


def test_vgg16_features_and_head_equal_torchvision():
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    for dtype, tolerance in PRECISIONS:
        theirs = shake_up(layers, dtype)
        backbone = copy_in_order(on_meta(build_backbone, "vgg16_bn"), theirs)
        x = torch.randn(1, 3, 64, 64, dtype=dtype)
        with torch.no_grad():
            a, b = backbone(x)["res5"], theirs(x)
        torch.testing.assert_close(a / b.max(), b / b.max(), rtol=0, atol=tolerance)


def test_vgg16_head_equals_torchvision():
    with torch.device("meta"):
        theirs = torchvision.models.vgg.VGG(nn.Identity(), num_classes=3, init_weights=False)
    theirs = theirs.to_empty(device="cpu").eval()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, -0.01, 0.01)
    ours = copy_in_order(on_meta(VGGHead, 3, 0.5), theirs)
    x = torch.rand(2, 512, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours({"res5": x}), theirs(x), rtol=0, atol=1e-5)


# Families without an outside implementation: layers, strides and a gradient step, as described.


def convolutions(module):
    """(in, out, kernel, stride, groups) of every convolution, in order."""
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups)
        for m in module.modules()
        if isinstance(m, nn.Conv2d)
    ]


def test_shufflenet_units_are_those_of_the_original_paper():
    backbone = on_meta(build_backbone, "shufflenet")
    first, second = backbone.res3[0], backbone.res3[1]
    # The first unit's 1x1 is not grouped and leaves room for the 24 concatenated channels.
    assert convolutions(first) == [(24, 60, 1, 1, 1), (60, 60, 3, 2, 60), (60, 216, 1, 1, 3)]
    assert convolutions(second) == [(240, 60, 1, 1, 3), (60, 60, 3, 1, 60), (60, 240, 1, 1, 3)]
    assert [len(getattr(backbone, stage)) for stage in ("res3", "res4", "res5")] == [4, 8, 4]


def test_shufflenet_gates_the_units_with_stride_one_alone():
    backbone = on_meta(build_backbone, "se_shufflenet")
    for stage in ("res3", "res4", "res5"):
        first, *others = getattr(backbone, stage)
        assert isinstance(first.se, nn.Identity)
        assert all(unit.se.fc1.in_features == unit.expand.out_channels for unit in others)


def test_mobilenet_has_thirteen_depthwise_separable_blocks():
    found = convolutions(on_meta(build_backbone, "mobilenet"))
    assert found[0] == (3, 32, 3, 2, 1)
    depthwise, pointwise = found[1::2], found[2::2]
    widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert depthwise == [
        (width, width, 3, s, width) for width, s in zip(widths, strides, strict=False)
    ]
    assert pointwise == [(a, b, 1, 1, 1) for a, b in itertools.pairwise(widths)]


def test_bn_inception_modules_end_in_the_published_widths():
    backbone = on_meta(build_backbone, "se_bn_inception")
    gates = [m.fc2.out_features for m in backbone.modules() if hasattr(m, "fc2")]
    assert gates == [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]


def test_preactivation_shortcuts_have_weights_only_in_bottleneck_and_wide_networks():
    small = on_meta(build_backbone, "resnet20")
    assert [c for c in convolutions(small) if c[2] == 1] == []
    bottleneck = on_meta(build_backbone, "resnet164")
    shortcuts = [c for block in bottleneck.res3 for c in convolutions(block.shortcut)]
    assert shortcuts == [(64, 128, 1, 2, 1)]
    wide = on_meta(build_backbone, "wrn_16_8")
    assert convolutions(wide.res2[0].shortcut) == [(16, 128, 1, 1, 1)]
    assert convolutions(wide.res2[1].shortcut) == []


def test_a_preactivation_block_without_residual_keeps_its_input():
    backbone = build_backbone("resnet20").eval()
    for index, shape in ((1, (1, 16, 8, 8)), (0, (1, 16, 8, 8))):
        block = backbone.res3[index] if index else backbone.res2[0]
        nn.init.zeros_(block.conv2.weight)
        x = torch.randn(1, 32, 8, 8) if index else torch.randn(*shape)
        y = block(x)
        # The first block of the network activates before the split, later ones do not.
        expected = x if index else torch.relu(block.norm1(x))
        torch.testing.assert_close(y, expected)


def test_a_shortcut_without_weights_subsamples_and_pads_with_zero_channels():
    block = build_backbone("resnet20").eval().res3[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert torch.count_nonzero(y[:, 16:]) == 0


@pytest.mark.parametrize("name", ["shake_shake_26_2x96d", "shake_even_29_2x4x64d"])
def test_shaking_weighs_branches_per_picture_and_not_at_all_in_evaluation(name):
    block = build_backbone(name).res2[0]
    first, second = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2)
    first.requires_grad_()
    torch.manual_seed(0)
    mixed = block._mix(first, second)
    weights = mixed[:, 0, 0, 0]  # 1 - a of each picture
    assert torch.equal(mixed, weights[:, None, None, None].expand_as(mixed))
    assert 0 <= weights.min() < 0.1
    assert 0.9 < weights.max() <= 1
    mixed.sum().backward()
    backward = first.grad[:, 0, 0, 0]
    if name == "shake_even_29_2x4x64d":
        assert torch.all(backward == 0.5)
    else:
        assert 0 <= backward.min() < 0.1
        assert not torch.allclose(backward, 1 - weights)
    assert torch.all(block.eval()._mix(first, second) == 0.5)


def test_the_shifted_shortcut_sees_the_odd_pixels():
    block = build_backbone("shake_shake_26_2x96d").res3[0]
    shortcut = block.shortcut.eval()
    x = torch.zeros(1, 96, 4, 4)
    x[:, :, 1::2, 1::2] = 1
    y = shortcut(x)
    assert torch.count_nonzero(y[:, :96]) == 0  # even pixels
    assert torch.count_nonzero(y[:, 96:]) > 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("se_vgg16_bn", 32),
        ("se_bn_inception", 64),
        ("se_mobilenet", 64),
        ("se_shufflenet", 64),
        ("se_resnet20", 16),
        ("se_wrn_16_8", 8),
    ],
)
def test_a_small_step_down_the_gradient_lowers_the_loss(name, size):
    torch.manual_seed(0)
    backbone = build_backbone(name)
    stage, spec = list(backbone.feature_specs.items())[-1]
    fc = nn.Linear(spec.channels, 2)
    x, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 0, 1])

    def loss():
        return nn.functional.cross_entropy(fc(backbone(x)[stage].mean(dim=(2, 3))), labels)

    before = loss()
    before.backward()
    parameters = [*backbone.parameters(), *fc.parameters()]
    assert all(parameter.grad is not None for parameter in parameters)
    squared = sum(parameter.grad.square().sum() for parameter in parameters)
    expected = 0.01 * before.item()  # the fall that the gradient promises for this step
    with torch.no_grad():
        for parameter in parameters:
            parameter -= expected / squared * parameter.grad
        fall = before.item() - loss().item()
    assert fall == pytest.approx(expected, rel=0.5)
