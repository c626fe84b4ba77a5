"""The promise of every backbone, the table of networks, the options of the attention slot."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import backbones
from backbones import build_backbone, build_network
from backbones import registry as registry_module
from backbones.blocks import ResidualBlock
from backbones.cifar_resnet import CifarResNet
from backbones.features import Backbone, FeatureSpec
from backbones.resnet import ResNet
from backbones.slot import PLACEMENTS, PLAIN, build_slot
from backbones.squeeze_excite import SEBlock

INFOS = {info.name: info for info in backbones.list_backbones()}
# Deeper networks of the same shapes are left out.
_DEEP = {"resnet101", "resnet152", "resnext101_32x4d", "resnet56", "resnet110"}
SHAPES = [name for name, info in INFOS.items() if not info.is_se and name not in _DEEP]


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


@pytest.mark.parametrize("name", SHAPES)
def test_features_have_the_promised_names_channels_and_sizes(name):
    backbone = on_meta(build_backbone, name)
    reason = INFOS[name].detection
    unpadded = "unpadded" in (reason or "")
    height, width = (299, 299) if unpadded else (64, 160)
    features = backbone(torch.empty(2, 3, height, width, device="meta"))
    stages = ["stem", "res2", "res3", "res4", "res5"]
    assert list(features) == list(backbone.feature_specs) == stages[: len(features)]
    for stage, feature in features.items():
        spec = backbone.feature_specs[stage]
        assert feature.shape[:2] == (2, spec.channels)
        if not unpadded:  # any multiple of the last stride: what a feature pyramid relies on
            assert feature.shape[2:] == (height // spec.stride, width // spec.stride)
    if reason is None:
        assert [spec.stride for spec in backbone.feature_specs.values()][1:] == [4, 8, 16, 32]


def test_networks_that_cannot_serve_detection_say_why():
    reasons = {name: info.detection for name, info in INFOS.items() if info.detection}
    assert "last stage has stride 4" in reasons["se_resnet110"]
    assert "unpadded" in reasons["inception_v3"]
    assert "resnet50" not in reasons


def test_every_se_network_declares_a_plain_twin_of_its_family():
    for info in INFOS.values():
        assert info.is_se == (info.twin is not None)
        if info.twin:
            twin = INFOS[info.twin]
            assert not twin.is_se
            assert (twin.family, twin.input_size) == (info.family, info.input_size)
            assert twin.parameters < info.parameters


@pytest.mark.parametrize(
    "name", ["se_resnet_tiny", "se_resnet20", "se_mobilenet", "se_shufflenet", "se_bn_inception"]
)
def test_an_open_gate_makes_the_plain_twin(name):
    torch.manual_seed(0)
    network = build_network(name, 5).eval()
    for module in network.modules():
        if isinstance(module, SEBlock):
            nn.init.zeros_(module.fc2.weight)
            nn.init.constant_(module.fc2.bias, 100.0)  # sigmoid(100) is 1 in float32
    twin = build_network(INFOS[name].twin, 5).eval()
    state = {key: value for key, value in network.state_dict().items() if ".se." not in key}
    twin.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), twin(x))


def test_the_classifier_reads_the_features_the_detector_reads():
    network = build_network("se_resnet_tiny", 7).eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(network(x), network.head(network.backbone(x)))
    assert network(x).shape == (2, 7)


def test_freezing_the_modules_of_a_stage_freezes_its_attention_too():
    backbone = build_backbone("se_resnet_tiny")
    for module in backbone.stage_modules("res2"):
        module.requires_grad_(False)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in backbone.named_parameters() if name.startswith("res2.")}
    assert any(".se." in name for name in frozen)
    with pytest.raises(ValueError, match="no stage 'res6'; this network has stem, res2"):
        backbone.stage_modules("res6")


def test_listing_needs_no_torch():
    code = (
        "import sys, backbones; backbones.list_backbones();"
        "backbones.twin_of('se_resnet50', {}); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_dropout_is_before_the_classifier():
    assert build_network("resnet_tiny", 5, dropout=0.2).head.dropout.p == 0.2


def test_convolutions_start_from_he_and_gates_from_their_own():
    torch.manual_seed(0)
    backbone = build_backbone("se_resnet18")
    conv = backbone.res5[1].conv2  # 512 -> 512, 3x3
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    gate = backbone.res5[1].se
    assert gate.fc1.weight.std().item() == pytest.approx((1 / 512) ** 0.5, rel=0.02)
    assert torch.count_nonzero(gate.fc1.bias) == 0


# The places of attention: with the residual branch silenced (a zero last norm) and a gate of one
# half (zero logits), the output says where the gate stood.


def bottleneck(placement):
    slot = build_slot({"placement": placement}, 224)
    block = ResidualBlock(64, 16, 1, slot=slot, stage=2, map_stride=4).double().eval()
    for parameter in block.se.parameters():
        nn.init.zeros_(parameter)
    return block


@pytest.mark.parametrize(
    ("placement", "factor"),
    [("standard", 1), ("pre", 1), ("post", 0.5), ("identity", 0.5), ("3x3", 1)],
)
def test_only_post_and_identity_gate_the_shortcut(placement, factor):
    block = bottleneck(placement)
    nn.init.zeros_(block.norm3.weight)
    x = torch.rand(2, 64, 6, 6).double()
    assert torch.equal(block(x), factor * x)


def test_each_placement_gates_what_it_is_named_after():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 6, 6).double()
    state = ResidualBlock(64, 16, 1, slot=PLAIN, stage=2, map_stride=4).double().state_dict()
    outputs = {}
    for placement in PLACEMENTS:
        block = bottleneck(placement)
        block.load_state_dict(state, strict=False)
        outputs[placement] = block(x)

    def residual(x, inner=1.0):
        y = block.relu(block.norm1(block.conv1(x)))
        y = block.relu(block.norm2(block.conv2(y)))
        return block.norm3(block.conv3(inner * y))

    expected = {
        "standard": torch.relu(residual(x) / 2 + x),
        "pre": torch.relu(residual(x / 2) + x),
        "post": torch.relu(residual(x) + x) / 2,
        "identity": torch.relu(residual(x) + x / 2),
        "3x3": torch.relu(residual(x, inner=0.5) + x),
    }
    for placement, output in outputs.items():
        torch.testing.assert_close(output, expected[placement], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"placement": "3x3"}, 25_714_216),  # on 64, 128, 256, 512 channels
        ({"placement": "identity"}, 28_071_976),
        ({"placement": "post"}, 28_071_976),
        ({"se_stages": [2]}, 25_557_032 + 24_576),
        ({"se_stages": [3]}, 25_557_032 + 131_072),
        ({"se_stages": [4]}, 25_557_032 + 786_432),
        ({"se_stages": [5]}, 25_557_032 + 1_572_864),
        ({"se_stages": [3, 5], "reduction": 8}, 25_557_032 + 2 * (131_072 + 1_572_864)),
        ({"squeeze": "max", "excitation": "tanh", "placement": "post"}, 28_071_976),
    ],
)
def test_ablations_of_se_resnet50_have_the_papers_parameters(options, parameters):
    network = on_meta(build_network, "se_resnet50", se_bias=False, **options)
    assert backbones.count_parameters(network) == parameters


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_trains_on_every_residual_network_or_says_why_not(placement):
    slot = build_slot({"placement": placement, "reduction": 4}, 32)
    networks = {
        "basic": partial(ResNet, (1, 1, 1, 1), bottleneck=False, widths=(8, 8, 16, 16)),
        "bottleneck": partial(ResNet, (1, 1, 1, 1), widths=(8, 8, 16, 16)),
        "basic, pre-activation": partial(CifarResNet, (2, 2, 2)),
        "bottleneck, pre-activation": partial(
            CifarResNet, (2, 2, 2), bottleneck=True, project=True
        ),
    }
    for name, build in networks.items():
        if placement == "3x3" and name.startswith("basic"):
            with pytest.raises(ValueError, match="placement '3x3' is for bottleneck blocks"):
                build(slot=slot)
            continue
        network = build(slot=slot)
        features = network(torch.randn(2, 3, 64, 64))
        features[list(features)[-1]].square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters()), name


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("se_resnet5", {}, "unknown backbone 'se_resnet5'; did you mean se_resnet5"),
        ("resnet50", {"reduction": 8}, "resnet50 is plain .* its twin is se_resnet50"),
        ("resnet50", {"stride_in_1x2": True}, "unknown option .* did you mean stride_in_1x1"),
        ("resnet50", {"name": "resnet18"}, "unknown option 'name'"),
        ("se_resnet50", {"reducton": 8}, "unknown option 'reducton'; did you mean reduction"),
        ("se_resnet50", {"stride_in_1x1": 1}, "stride_in_1x1 is true or false, not 1"),
        ("se_resnet50", {"stem_pool": "same"}, "stem_pool is one of padded, ceil, not 'same'"),
        ("se_resnet50", {"placement": "prior"}, "unknown placement 'prior'"),
        ("se_resnet50", {"se_stages": []}, "se_stages is a non-empty subset of 2, 3, 4, 5"),
        ("se_resnet50", {"se_stages": [6]}, "se_stages is a non-empty subset of 2, 3, 4, 5"),
        ("se_resnet20", {"se_stages": [5]}, "se_stages names 5, where this network has no place"),
        ("se_shufflenet", {"se_stages": [2, 3]}, "se_stages names 2, where"),
        ("se_vgg16_bn", {"se_stages": [5]}, "se_stages names 5, where"),
        ("se_resnet20", {"reduction": 32}, "reduction 32 leaves no hidden unit of 16 channels"),
        (
            "se_mobilenet",
            {"placement": "pre"},
            "placement 'pre' is for ResNet's blocks; family MobileNet has",
        ),
    ],
)
def test_bad_options_are_refused_with_the_name_and_the_mend(name, options, words):
    with pytest.raises(ValueError, match=words):
        build_backbone(name, **options)


def test_the_twin_drops_the_attention_and_keeps_the_structure():
    options = {"reduction": 8, "placement": "pre", "stride_in_1x1": False, "attention": "eca"}
    assert backbones.twin_of("se_resnet50", options) == ("resnet50", {"stride_in_1x1": False})
    assert backbones.twin_of("senet154", {}) == ("senet154_plain", {})
    assert backbones.twin_of("resnet50", {"stride_in_1x1": False}) is None


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", {})
    registry_module._describe_registered.cache_clear()


def test_a_network_from_a_file_of_ones_own_is_listed_and_built(tmp_path, registry):
    file = tmp_path / "my_backbones.py"
    file.write_text(
        "from torch import nn\n"
        "from backbones import Backbone, FeatureSpec, register_backbone\n"
        "class Mine(Backbone):\n"
        "    def __init__(self, width=8):\n"
        "        super().__init__()\n"
        "        self.stem = nn.Conv2d(3, width, 4, stride=4, bias=False)\n"
        "        self.feature_specs = {'stem': FeatureSpec(width, 4)}\n"
        "register_backbone('mine', Mine, family='mine', input_size=32)\n"
    )
    backbones.load_user_module(file)
    info = backbones.describe_backbone("mine")
    assert info.parameters == 8 * 48 + 8 * 1000 + 1000
    assert info.multiply_adds == 8 * 48 * 64 + 8 * 1000
    assert "strides [4]" in info.detection
    assert "mine" in [info.name for info in backbones.list_backbones()]
    assert build_network("mine", 2, width=4)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(ValueError, match="'resnet50' is already registered"):
        backbones.register_backbone("resnet50", object, family="mine")


def test_a_file_that_fails_is_named_with_its_error(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"broken\.py: ZeroDivisionError: division by zero"):
        backbones.load_user_module(file)
    with pytest.raises(ValueError, match="no such file"):
        backbones.load_user_module(tmp_path / "absent.py")


def test_an_own_backbone_needs_no_more_than_modules_and_specs():
    class Two(Backbone):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 2, stride=2)
            self.res2 = nn.Conv2d(4, 6, 2, stride=2)
            self.feature_specs = {"stem": FeatureSpec(4, 2), "res2": FeatureSpec(6, 4)}

    features = Two()(torch.zeros(1, 3, 8, 8))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "stem": (1, 4, 4, 4),
        "res2": (1, 6, 2, 2),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "two"},
        {"se_stages": 3},
        {"se_stages": [[2]]},
        {"attention": ["se"]},
        {"squeeze": ["avg"]},
        {"attention": "coordinate", "reduction": 0},
        {"stem_pool": {"a": 1}},
    ],
)
def test_options_of_other_types_are_errors_that_name_the_network(options):
    with pytest.raises(ValueError, match="se_resnet_tiny: "):
        build_backbone("se_resnet_tiny", **options)
