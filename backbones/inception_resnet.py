"""Inception-ResNet-v2."""

from typing import Any

from torch import Tensor, nn

from backbones.blocks import conv_norm_relu
from backbones.features import Backbone, FeatureSpec, initialize_he
from backbones.inception import Branches, build_v3_stem
from backbones.slot import PLAIN, Slot

# Szegedy et al. 2017 (arXiv 1602.07261), Fig. 10 to 19, in the widths of Google's released network,
# which timm's inception_resnet_v2 has too. Steps are explained in `inception`.
_MIXED_5B = [
    [(96, 1)],
    [(48, 1), (64, 5)],
    [(64, 1), (96, 3), (96, 3)],
    ["avg inside", (64, 1)],
]
_MIXED_6A = [[(384, 3, 2)], [(256, 1), (256, 3), (384, 3, 2)], ["max/2"]]
_MIXED_7A = [
    [(256, 1), (384, 3, 2)],
    [(256, 1), (288, 3, 2)],
    [(256, 1), (288, 3), (320, 3, 2)],
    ["max/2"],
]
_BLOCK_35 = [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]]
_BLOCK_17 = [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]]
_BLOCK_8 = [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]]


class InceptionResidualBlock(nn.Module):
    """y = relu(scale * residual(x) + x); attention acts on the residual branch before the scale."""

    def __init__(
        self,
        channels: int,
        branches: list[list[Any]],
        scale: float,
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
        residual = self.se(self.conv(self.branches(x)))
        return self.relu(residual * self.scale + x)


class InceptionResNet(Backbone):
    """Stem and reductions of Inception, residual blocks between them; made for 299x299.

    Attention is in the residual blocks alone (paper, section 3.3), not in the three modules that
    change the shape.

    Source: Szegedy et al. 2017 (arXiv 1602.07261).
    """

    def __init__(self, slot: Slot = PLAIN) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.res2 = nn.Sequential()
        build_v3_stem(self.stem, self.res2)
        self.feature_specs = {"stem": FeatureSpec(64, 4), "res2": FeatureSpec(192, 4)}
        channels = 192
        # (stage, module that changes the shape, block, its scale, number of blocks)
        for stage, entry, block, scale, depth in (
            (3, _MIXED_5B, _BLOCK_35, 0.17, 10),
            (4, _MIXED_6A, _BLOCK_17, 0.10, 20),
            (5, _MIXED_7A, _BLOCK_8, 0.20, 9),
        ):
            sequence = nn.Sequential()
            if stage == 3:
                sequence.append(nn.MaxPool2d(3, stride=2))
            sequence.append(Branches(channels, entry, padded=False, eps=1e-3))
            channels = sequence[-1].out_channels
            for _ in range(depth):
                sequence.append(InceptionResidualBlock(channels, block, scale, slot, stage))
            if stage == 5:
                block = InceptionResidualBlock(channels, block, 1.0, slot, stage, last=True)
                sequence.append(block)
                sequence.append(conv_norm_relu(channels, 1536, 1, eps=1e-3))
                channels = 1536
            self.add_module(f"res{stage}", sequence)
            self.feature_specs[f"res{stage}"] = FeatureSpec(channels, 2**stage)
        initialize_he(self)
