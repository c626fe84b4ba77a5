"""The attentions that followed SE, against timm with the same weights or against their equations."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from timm.layers.eca import EcaModule
from timm.layers.global_context import GlobalContext as TimmGlobalContext
from timm.layers.squeeze_excite import EffectiveSEModule
from torch import nn

import backbones
from backbones import attentions
from backbones.slot import ATTENTIONS

CHANNELS = 64

# Ours -> the same module of timm; parameters stand in the same order in both.
TWINS = {
    "eca": (attentions.EfficientChannelAttention, partial(EcaModule, CHANNELS)),
    "cbam": (
        partial(attentions.CBAM, se_bias=False),
        partial(CbamModule, CHANNELS, rd_channels=4),
    ),
    "coordinate": (
        attentions.CoordinateAttention,
        partial(CoordAttn, CHANNELS, rd_channels=8, bias=True),
    ),
    "gc": (
        attentions.GlobalContext,
        partial(TimmGlobalContext, CHANNELS, fuse_add=True, fuse_scale=False, rd_channels=4),
    ),
    "effective_se": (attentions.EffectiveSE, partial(EffectiveSEModule, CHANNELS)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", TWINS)
def test_equals_timm_with_the_same_weights(name, dtype, tolerance):
    torch.manual_seed(1)
    build_ours, build_theirs = TWINS[name]
    ours, theirs = build_ours(CHANNELS).to(dtype), build_theirs().to(dtype)
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.normal_(std=0.3)
            a.copy_(b.reshape(a.shape))
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # torch's and the authors'; timm's LayerNorm2d takes 1e-6
    ours.eval()
    theirs.eval()
    x = torch.randn(2, CHANNELS, 7, 5, dtype=dtype)
    expected = theirs(x)
    assert (expected - x).abs().max() > 0.1  # the weights matter
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("extent", [0, 2, 4, 8])
def test_ge_theta_gathers_by_depthwise_convolutions(extent):
    # timm's GatherExcite with parameters cannot be built in 1.0.31 (it unpacks a dict's keys).
    size = (8, 8)
    module = attentions.GatherExcite(4, size, extent=extent).double().eval()
    x = torch.randn(2, 4, *size).double()
    gathered = x
    convolutions = [m for m in module.gather if isinstance(m, nn.Conv2d)]
    for index, conv in enumerate(convolutions):
        step = {"stride": 2, "padding": 1} if extent else {}
        gathered = F.conv2d(gathered, conv.weight, groups=4, **step) / (1 + 1e-5) ** 0.5
        if index + 1 < len(convolutions):
            gathered = F.relu(gathered)
    scale = 8 // gathered.shape[2]
    assert scale == (extent or 8)
    gate = torch.sigmoid(gathered).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    torch.testing.assert_close(module(x), x * gate, rtol=0, atol=1e-12)


def test_ge_theta_adds_a_kernel_of_the_maps_size_and_a_norm_to_each_channel():
    with torch.device("meta"):
        network = backbones.build_network("se_resnet50", attention="ge_theta")
    added = 3 * 256 * (56**2 + 2) + 4 * 512 * (28**2 + 2) + 6 * 1024 * (14**2 + 2)
    added += 3 * 2048 * (7**2 + 2)
    assert backbones.count_parameters(network) == 25_557_032 + added == 31_106_600


def test_ge_theta_refuses_maps_of_another_size():
    module = attentions.GatherExcite(4, (8, 8))
    with pytest.raises(ValueError, match=r"built for maps of \(8, 8\), not \(9, 8\); set extent"):
        module(torch.randn(1, 4, 9, 8))


def test_simam_gates_by_the_inverse_energy():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]).double()  # mean 3, deviations 4 1 0 9
    variance = 14 / 3
    energy = torch.tensor([4.0, 1.0, 0.0, 9.0]).double() / (4 * (variance + 1e-4)) + 0.5
    expected = x.flatten() * torch.sigmoid(energy)
    ours = attentions.SimAM(1)(x).flatten()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert backbones.count_parameters(attentions.SimAM(1)) == 0


def test_cbam_adds_a_7x7_convolution_and_a_norm_to_each_se_block():
    with torch.device("meta"):
        network = backbones.build_network("se_resnet50", attention="cbam")
    assert backbones.count_parameters(network) == 28_088_024 + 16 * (98 + 2) == 28_089_624


def test_global_context_starts_as_the_identity():
    backbone = backbones.build_backbone("se_resnet_tiny", attention="gc")
    gc = backbone.res2[0].se
    x = torch.randn(2, 24, 4, 4)
    assert torch.equal(gc(x), x)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_trains_in_every_kind_of_slot(attention):
    torch.manual_seed(0)
    for name, size in (("se_resnet_tiny", 96), ("se_resnet20", 32)):
        network = backbones.build_network(name, num_classes=3, attention=attention)
        logits = network(torch.randn(2, 3, size, size))
        logits.square().sum().backward()
        missing = [n for n, p in network.named_parameters() if p.grad is None]
        assert missing == []


def test_an_option_the_attention_does_not_have_is_refused():
    words = "attention 'eca' has no option 'reduction'; it has none"
    with pytest.raises(ValueError, match=words):
        backbones.build_backbone("se_resnet_tiny", attention="eca", reduction=4)
    with pytest.raises(ValueError, match="unknown attention 'ecaa'; did you mean eca"):
        backbones.build_backbone("se_resnet_tiny", attention="ecaa")
    with pytest.raises(ValueError, match="extent is 2, 4 or 8, or 0 for the whole map, not 3"):
        backbones.build_backbone("se_resnet_tiny", attention="ge_theta", extent=3)


def test_an_attention_from_a_file_of_ones_own_fills_the_slot(tmp_path, request):
    request.addfinalizer(lambda: ATTENTIONS.pop("shift", None))
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from backbones import register_attention\n"
        "class Shift(nn.Module):\n"
        "    def __init__(self, channels, start=0.0):\n"
        "        super().__init__()\n"
        "        self.shift = nn.Parameter(torch.full((channels, 1, 1), start))\n"
        "    def forward(self, x):\n"
        "        return x + self.shift\n"
        "register_attention('shift', Shift)\n"
    )
    backbones.load_user_module(file)
    backbones.load_user_module(file)  # as every task of a suite does: the file runs once
    backbone = backbones.build_backbone("se_vgg16_bn", attention="shift", start=0.25)
    assert torch.all(backbone.res4[1].se.shift == 0.25)  # and no initialisation undid it
    with pytest.raises(ValueError, match="'se' is already registered; choose another name"):
        backbones.register_attention("se", nn.Identity)
