"""ShuffleNet 1x with 3 groups."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.blocks import conv_norm_relu
from backbones.features import Backbone, FeatureSpec, initialize_he
from backbones.slot import PLAIN, Slot

_GROUPS = 3
# (output channels, units) of stages 3, 4, 5
_STAGES = ((240, 4), (480, 8), (960, 4))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1, and a shortcut.

    At stride 1 the shortcut is added; at stride 2 it is average-pooled and concatenated.

    Attention acts on the residual branch of the units with stride 1. The paper does not say where it
    put SE; on these units alone it adds 0.57 M parameters to 1.87 M, which gives the 2.4 M of Table
    3.

    Source: Zhang et al. 2018 (arXiv 1707.01083), Fig. 2b and 2c.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, slot: Slot, stage: int
    ) -> None:
        super().__init__()
        self.stride = stride
        middle = out_channels // 4
        branch = out_channels - in_channels if stride == 2 else out_channels
        # The first unit's input has too few channels to be worth grouping (section 3.2).
        groups = 1 if in_channels == 24 else _GROUPS
        self.reduce = conv_norm_relu(in_channels, middle, 1, groups=groups)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, branch, 1, groups=_GROUPS, bias=False)
        self.expand_norm = nn.BatchNorm2d(branch)
        self.se = slot.build(branch, stage, 2**stage) if stride == 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = F.channel_shuffle(self.reduce(x), _GROUPS)
        y = self.depthwise_norm(self.depthwise(y))
        y = self.expand_norm(self.expand(y))
        if self.stride == 2:
            shortcut = F.avg_pool2d(x, 3, stride=2, padding=1)
            return F.relu(torch.cat([shortcut, y], dim=1))
        return F.relu(self.se(y) + x)


class ShuffleNet(Backbone):
    """A strided 3x3 convolution (`stem`), a max pool (`res2`), and three stages of shuffle units.

    `res2` has no weights: the units begin at stride 8, and a feature pyramid takes the pooled stem
    as its finest map. So attention has stages 3 to 5.

    Source: Zhang et al. 2018 (arXiv 1707.01083), Table 1, column g = 3; the paper's Table 3.
    """

    def __init__(self, slot: Slot = PLAIN) -> None:
        super().__init__()
        channels = 24
        self.stem = conv_norm_relu(3, channels, 3, stride=2)
        self.res2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_specs = {"stem": FeatureSpec(channels, 2), "res2": FeatureSpec(channels, 4)}
        for stage, (width, units) in enumerate(_STAGES, start=3):
            blocks = nn.Sequential()
            for index in range(units):
                stride = 2 if index == 0 else 1
                blocks.append(ShuffleUnit(channels, width, stride, slot=slot, stage=stage))
                channels = width
            self.add_module(f"res{stage}", blocks)
            self.feature_specs[f"res{stage}"] = FeatureSpec(channels, 2**stage)
        initialize_he(self)
