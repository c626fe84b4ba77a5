"""BN-Inception, Inception-v3 and Inception-ResNet-v2.

Modules are written as tables. A branch is a list of steps: `(channels, kernel)` or
`(channels, kernel, stride)` is a convolution with norm and ReLU, a word is a 3x3 pool (at stride 2
for "max/2"), and a list of branches is a split whose results are concatenated.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.blocks import conv_norm_relu
from backbones.features import MOST_BLOCKS, Backbone, FeatureSpec, check_stages, initialize_he
from backbones.slot import PLAIN, Slot

# The padding's zeros count in the means of Inception, and do not in those of Inception-ResNet.
_POOLS = {
    "avg": (nn.AvgPool2d, {}),
    "avg inside": (nn.AvgPool2d, {"count_include_pad": False}),
    "max": (nn.MaxPool2d, {}),
}


Steps = list[Any]  # of a branch


class Branches(nn.Module):
    """Apply branches to the same input and concatenate their channels."""

    def __init__(
        self, in_channels: int, branches: list[Steps], *, padded: bool, eps: float
    ) -> None:
        """`padded` says whether strided steps are padded, `eps` is the batch norms'."""
        super().__init__()
        self.branches = nn.ModuleList()
        self.out_channels = 0
        for steps in branches:
            branch, channels = nn.Sequential(), in_channels
            for step in steps:
                if isinstance(step, str) and step in _POOLS:
                    pool, options = _POOLS[step]
                    branch.append(pool(3, stride=1, padding=1, **options))
                elif step == "max/2":
                    branch.append(nn.MaxPool2d(3, stride=2, padding=int(padded)))
                elif isinstance(step, list):
                    split = Branches(channels, step, padded=padded, eps=eps)
                    branch.append(split)
                    channels = split.out_channels
                else:
                    width, kernel, stride = (*step, 1)[:3]
                    keeps_size = padded or stride == 1
                    branch.append(
                        conv_norm_relu(channels, width, kernel, stride, padded=keeps_size, eps=eps)
                    )
                    channels = width
            self.branches.append(branch)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ~H/stride, ~W/stride)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def build_v3_stem(stem: nn.Sequential, res2: nn.Sequential) -> None:
    """Fill the layers before the first module that Inception-v3 and Inception-ResNet-v2 share."""
    stem.append(conv_norm_relu(3, 32, 3, stride=2, padded=False, eps=1e-3))
    stem.append(conv_norm_relu(32, 32, 3, padded=False, eps=1e-3))
    stem.append(conv_norm_relu(32, 64, 3, eps=1e-3))
    stem.append(nn.MaxPool2d(3, stride=2))
    res2.append(conv_norm_relu(64, 80, 1, eps=1e-3))
    res2.append(conv_norm_relu(80, 192, 3, padded=False, eps=1e-3))


# Stage -> modules -> branches. Ioffe and Szegedy 2015 (arXiv 1502.03167), Fig. 5, in the widths of
# the Caffe network that the paper's authors extend (4c and 4d end in 608 channels there).
_BN_INCEPTION: dict[int, list[list[Steps]]] = {
    3: [
        [[(64, 1)], [(64, 1), (64, 3)], [(64, 1), (96, 3), (96, 3)], ["avg", (32, 1)]],
        [[(64, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)], ["avg", (64, 1)]],
    ],
    4: [
        [[(128, 1), (160, 3, 2)], [(64, 1), (96, 3), (96, 3, 2)], ["max/2"]],
        [[(224, 1)], [(64, 1), (96, 3)], [(96, 1), (128, 3), (128, 3)], ["avg", (128, 1)]],
        [[(192, 1)], [(96, 1), (128, 3)], [(96, 1), (128, 3), (128, 3)], ["avg", (128, 1)]],
        [[(160, 1)], [(128, 1), (160, 3)], [(128, 1), (160, 3), (160, 3)], ["avg", (128, 1)]],
        [[(96, 1)], [(128, 1), (192, 3)], [(160, 1), (192, 3), (192, 3)], ["avg", (128, 1)]],
    ],
    5: [
        [[(128, 1), (192, 3, 2)], [(192, 1), (256, 3), (256, 3, 2)], ["max/2"]],
        [[(352, 1)], [(192, 1), (320, 3)], [(160, 1), (224, 3), (224, 3)], ["avg", (128, 1)]],
        [[(352, 1)], [(192, 1), (320, 3)], [(192, 1), (224, 3), (224, 3)], ["max", (128, 1)]],
    ],
}


def _v3_a(pooled: int) -> list[Steps]:
    return [
        [(64, 1)],
        [(48, 1), (64, 5)],
        [(64, 1), (96, 3), (96, 3)],
        ["avg", (pooled, 1)],
    ]


def _v3_c(c: int) -> list[Steps]:
    return [
        [(192, 1)],
        [(c, 1), (c, (1, 7)), (192, (7, 1))],
        [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))],
        ["avg", (192, 1)],
    ]


def _v3_e() -> list[Steps]:
    split = [[(384, (1, 3))], [(384, (3, 1))]]
    return [[(320, 1)], [(384, 1), split], [(448, 1), (384, 3), split], ["avg", (192, 1)]]


# Szegedy et al. 2016 (arXiv 1512.00567), Table 1 and Fig. 5 to 7, as in timm's inception_v3.
_INCEPTION_V3: dict[int, list[list[Steps]]] = {
    3: [_v3_a(32), _v3_a(64), _v3_a(64)],
    4: [
        [[(384, 3, 2)], [(64, 1), (96, 3), (96, 3, 2)], ["max/2"]],
        _v3_c(128),
        _v3_c(160),
        _v3_c(160),
        _v3_c(192),
    ],
    5: [
        [
            [(192, 1), (320, 3, 2)],
            [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
            ["max/2"],
        ],
        _v3_e(),
        _v3_e(),
    ],
}


class Inception(Backbone):
    """A stem of convolutions and stages of Inception modules, attention on each module's output.

    That includes the modules that halve the size. The stem's convolutions have none.

    Args:
        version: "bn" for BN-Inception, 224x224. Its strided convolutions and pools are padded, so
            that maps have the input's size over their stride; Caffe's pools round up instead, which
            is the same at 224 up to a shift of one pixel.
            "v3" for Inception-v3, 299x299, whose strided steps have no padding.

    Source: paper, section 3.3 and Fig. 2.
    """

    def __init__(self, version: str, slot: Slot = PLAIN) -> None:
        super().__init__()
        padded = version == "bn"
        eps = 1e-5 if padded else 1e-3
        self.stem = nn.Sequential()
        self.res2 = nn.Sequential()
        if version == "bn":
            stages = _BN_INCEPTION
            self.stem.append(conv_norm_relu(3, 64, 7, stride=2))
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
            self.res2.append(conv_norm_relu(64, 64, 1))
            self.res2.append(conv_norm_relu(64, 192, 3))
        else:
            assert version == "v3", version
            stages = _INCEPTION_V3
            build_v3_stem(self.stem, self.res2)
        self.feature_specs = {"stem": FeatureSpec(64, 4), "res2": FeatureSpec(192, 4)}
        channels = 192
        for stage, modules in stages.items():
            sequence = nn.Sequential()
            if stage == 3:
                sequence.append(nn.MaxPool2d(3, stride=2, padding=int(padded)))
            for branches in modules:
                module = Branches(channels, branches, padded=padded, eps=eps)
                channels = module.out_channels
                gated = OrderedDict(branches=module, se=slot.build(channels, stage, 2**stage))
                sequence.append(nn.Sequential(gated))
            self.add_module(f"res{stage}", sequence)
            self.feature_specs[f"res{stage}"] = FeatureSpec(channels, 2**stage)
        initialize_he(self)


# Inception-ResNet ------------------------------------------------------------------------------------

# Szegedy et al. 2017 (arXiv 1602.07261), Fig. 10 to 19, in the widths of Google's released network,
# which timm's inception_resnet_v2 has too. Steps are explained in `inception`.
_MIXED_5B: list[Steps] = [
    [(96, 1)],
    [(48, 1), (64, 5)],
    [(64, 1), (96, 3), (96, 3)],
    ["avg inside", (64, 1)],
]
_MIXED_6A: list[Steps] = [[(384, 3, 2)], [(256, 1), (256, 3), (384, 3, 2)], ["max/2"]]
_MIXED_7A: list[Steps] = [
    [(256, 1), (384, 3, 2)],
    [(256, 1), (288, 3, 2)],
    [(256, 1), (288, 3), (320, 3, 2)],
    ["max/2"],
]
_BLOCK_35: list[Steps] = [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]]
_BLOCK_17: list[Steps] = [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]]
_BLOCK_8: list[Steps] = [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]]
# Stage -> the module that changes the shape, the residual block after it, and that one's scale.
_RESIDUAL_STAGES: dict[int, tuple[list[Steps], list[Steps], float]] = {
    3: (_MIXED_5B, _BLOCK_35, 0.17),
    4: (_MIXED_6A, _BLOCK_17, 0.10),
    5: (_MIXED_7A, _BLOCK_8, 0.20),
}


class InceptionResidualBlock(nn.Module):
    """y = relu(scale * residual(x) + x); attention acts on the residual branch before the scale."""

    def __init__(
        self,
        channels: int,
        branches: list[Steps],
        scale: float,
        *,
        slot: Slot,
        stage: int,
        last: bool = False,
    ) -> None:
        """`last` leaves the ReLU out."""
        super().__init__()
        self.scale = scale
        self.branches = Branches(channels, branches, padded=False, eps=1e-3)
        self.conv = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.se = slot.build(channels, stage, 2**stage)
        self.relu = nn.Identity() if last else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the scaled residual to x (N, channels, H, W); the shape stays."""
        residual = self.se(self.conv(self.branches(x)))
        return self.relu(residual * self.scale + x)


class InceptionResNet(Backbone):
    """Stem and reductions of Inception, residual blocks between them; made for 299x299.

    Attention is in the residual blocks alone (paper, section 3.3), not in the three modules that
    change the shape.

    Args:
        layers: residual blocks in each stage.

    Source: Szegedy et al. 2017 (arXiv 1602.07261).
    """

    def __init__(self, layers: Sequence[int] = (10, 20, 10), *, slot: Slot = PLAIN) -> None:
        super().__init__()
        layers = check_stages("layers", layers, 3, MOST_BLOCKS)
        self.stem = nn.Sequential()
        self.res2 = nn.Sequential()
        build_v3_stem(self.stem, self.res2)
        self.feature_specs = {"stem": FeatureSpec(64, 4), "res2": FeatureSpec(192, 4)}
        channels = 192
        for stage, (entry, block, scale) in _RESIDUAL_STAGES.items():
            sequence, depth = nn.Sequential(), layers[stage - 3]
            if stage == 3:
                sequence.append(nn.MaxPool2d(3, stride=2))
            module = Branches(channels, entry, padded=False, eps=1e-3)
            sequence.append(module)
            channels = module.out_channels
            for index in range(depth):
                last = stage == 5 and index == depth - 1
                sequence.append(
                    InceptionResidualBlock(
                        channels, block, 1.0 if last else scale, slot=slot, stage=stage, last=last
                    )
                )
            if stage == 5:
                sequence.append(conv_norm_relu(channels, 1536, 1, eps=1e-3))
                channels = 1536
            self.add_module(f"res{stage}", sequence)
            self.feature_specs[f"res{stage}"] = FeatureSpec(channels, 2**stage)
        initialize_he(self)
