"""Shake-Shake networks for 32x32 images."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.blocks import add_stages, projection
from backbones.features import MOST_BLOCKS, Backbone, FeatureSpec, check_stages, initialize_he
from backbones.slot import PLAIN, Slot


class ShakeBlock(nn.Module):
    """Two residual branches mixed by a random weight per image, plus a shortcut.

    In training the forward pass weighs the branches with a and 1 - a, a drawn uniformly from [0, 1]
    for each image. The gradient takes another such weight ("shake_shake") or one half
    ("shake_even"). In evaluation both weights are one half.

    Attention acts on the mixed branches, before the sum with the shortcut; the paper does not say.

    Args:
        cardinality: 0 for the basic form, relu - 3x3 - norm - relu - 3x3 - norm and no ReLU after the
            sum; else the groups of the ResNeXt form, 1x1 - 3x3 - 1x1 to 4 * width channels
            with a ReLU after the sum.

    Source: Gastaldi 2017 (arXiv 1705.07485), sections 2 and 3 and Eq. 2: "S-S-I" and "S-E-I".
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        mode: str,
        cardinality: int,
        slot: Slot,
        stage: int,
        map_stride: int,
    ) -> None:
        super().__init__()
        self.even = mode == "shake_even"
        self.branch1 = _branch(in_channels, width, stride, cardinality)
        self.branch2 = _branch(in_channels, width, stride, cardinality)
        self.out_channels = out_channels = 4 * width if cardinality else width
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if cardinality:
                self.shortcut = projection(in_channels, out_channels, stride)
            else:
                self.shortcut = ShiftedShortcut(in_channels, out_channels, stride)
        self.se = slot.build(out_channels, stage, map_stride)
        self.relu = nn.ReLU() if cardinality else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out channels, H / stride, W / stride)."""
        residual = self._mix(self.branch1(x), self.branch2(x))
        return self.relu(self.se(residual) + self.shortcut(x))

    def _mix(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.training:
            return (first + second) / 2
        forward = torch.rand_like(first[:, :1, :1, :1])
        backward = torch.full_like(forward, 0.5) if self.even else torch.rand_like(forward)
        # The second term changes the value and, being detached, not the gradient.
        mixed = backward * first + (1 - backward) * second
        return mixed + ((forward - backward) * (first - second)).detach()


class ShiftedShortcut(nn.Module):
    """Subsample twice, the second time shifted by one pixel, project each to half the channels.

    Source: Gastaldi 2017, section 3.1 and the author's code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        x = torch.relu(x)
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        step = self.stride
        straight, shifted = x[:, :, ::step, ::step], shifted[:, :, ::step, ::step]
        return self.norm(torch.cat([self.conv1(straight), self.conv2(shifted)], dim=1))


class ShakeShake(Backbone):
    """Stem at stride 1 and three stages at strides 1, 2, 4.

    Args:
        layers: blocks in each stage.
        width: of the first stage's branches; it doubles from stage to stage.
        mode, cardinality: see `ShakeBlock`.

    Source: Gastaldi 2017: 26 2x96d is 4 blocks of width 96 in the basic form; 29 2x4x64d is 3 blocks
    of width 64 and cardinality 4.
    """

    res4: nn.Sequential

    def __init__(
        self,
        layers: Sequence[int],
        width: int,
        *,
        mode: str,
        cardinality: int = 0,
        slot: Slot = PLAIN,
    ) -> None:
        super().__init__()
        layers = check_stages("layers", layers, 3, MOST_BLOCKS)
        channels = 64 if cardinality else 16
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", nn.Conv2d(3, channels, 3, padding=1, bias=False))
        self.stem.add_module("norm1", nn.BatchNorm2d(channels))
        if cardinality:
            self.stem.add_module("relu1", nn.ReLU())
        self.feature_specs = {"stem": FeatureSpec(channels, 1)}
        build_block = functools.partial(ShakeBlock, mode=mode, cardinality=cardinality, slot=slot)
        add_stages(self, channels, 1, layers, [width, 2 * width, 4 * width], build_block)
        if not cardinality:
            self.res4.add_module("relu", nn.ReLU())
        initialize_he(self)


def _branch(in_channels: int, width: int, stride: int, cardinality: int) -> nn.Sequential:
    # (channels, kernel, stride, groups) of each convolution
    plan = [(width, 3, stride, 1), (width, 3, 1, 1)]
    if cardinality:
        inner = width * cardinality
        plan = [(inner, 1, 1, 1), (inner, 3, stride, cardinality), (4 * width, 1, 1, 1)]
    branch, channels = nn.Sequential(), in_channels
    for index, (out, kernel, step, groups) in enumerate(plan):
        if index or not cardinality:
            branch.append(nn.ReLU())
        conv = nn.Conv2d(channels, out, kernel, step, kernel // 2, groups=groups, bias=False)
        branch.extend([conv, nn.BatchNorm2d(out)])
        channels = out
    return branch
