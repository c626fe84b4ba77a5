"""Pre-activation residual networks for 32x32 images: ResNet-110, -164, Wide ResNet."""

import functools
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.blocks import add_stages
from backbones.features import (
    MOST_BLOCKS,
    WIDEST,
    Backbone,
    FeatureSpec,
    check_stages,
    initialize_he,
)
from backbones.slot import PLACEMENTS, PLAIN, Slot


class PreActivationBlock(nn.Module):
    """y = residual(relu(norm(x))) + shortcut, of two 3x3 or of 1x1, 3x3, 1x1 convolutions.

    The shortcut carries x itself, with two exceptions. Where the shape changes, it projects the
    activated x by a 1x1 convolution, or, without `project`, subsamples x and pads it with zero
    channels. And the first block of a network activates before the split (`activate_shortcut`).

    Attention has the places of `blocks.ResidualBlock`, as far as there is a norm or ReLU to be
    after: `post` follows the sum, `3x3` the bare convolution. For CIFAR the paper says only that SE
    acts on the residual branch before the addition (section 3.3).

    Source: He et al. 2016, Identity mappings (arXiv 1603.05027), Fig. 1b and appendix.
    """

    norm1: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        slot: Slot,
        stage: int,
        map_stride: int,
        bottleneck: bool,
        project: bool,
    ) -> None:
        super().__init__()
        self.placement = slot.placement
        self.stride = stride
        out_channels = 4 * width if bottleneck else width
        self.out_channels = out_channels
        changes = stride != 1 or in_channels != out_channels
        self.activate_shortcut = changes and project
        self.pad_channels = out_channels - in_channels if changes and not project else 0
        # (kernel, out channels, stride) of each convolution
        if bottleneck:
            plan = [(1, width, stride), (3, width, 1), (1, out_channels, 1)]
        else:
            plan = [(3, width, stride), (3, out_channels, 1)]
        self.depth = len(plan)
        channels = in_channels
        for index, (kernel, out, conv_stride) in enumerate(plan, start=1):
            norm = nn.BatchNorm2d(channels)
            conv = nn.Conv2d(channels, out, kernel, conv_stride, padding=kernel // 2, bias=False)
            self.add_module(f"norm{index}", norm)
            self.add_module(f"conv{index}", conv)
            channels = out
        self.shortcut: nn.Module = nn.Identity()
        if changes and project:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        of_map = in_channels, width if bottleneck else None, out_channels
        self.se = slot.build_in_block(of_map, stage, map_stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out channels, H / stride, W / stride)."""
        activated = F.relu(self.norm1(x))
        shortcut = self._shortcut(activated if self.activate_shortcut else x)
        residual = self.se(activated) if self.placement == "pre" else activated
        for index in range(1, self.depth + 1):
            if index > 1:
                residual = F.relu(getattr(self, f"norm{index}")(residual))
            residual = getattr(self, f"conv{index}")(residual)
            if index == 2 and self.placement == "3x3":
                residual = self.se(residual)
        if self.placement == "standard":
            residual = self.se(residual)
        if self.placement == "identity":
            shortcut = self.se(shortcut)
        y = residual + shortcut
        return self.se(y) if self.placement == "post" else y

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.pad_channels:
            return self.shortcut(x)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.pad_channels))


class CifarResNet(Backbone):
    """Stem at stride 1 and three stages at strides 1, 2, 4.

    Args:
        layers: blocks in each stage, (n, n, n). A ResNet has 6n + 2 layers (20, 56, 110), with
            bottlenecks 9n + 2 (164), a Wide ResNet 6n + 4.
        bottleneck: 1x1, 3x3, 1x1 convolutions to four times the width in place of two 3x3.
        project: change shapes by convolutions; else by zero channels. Nothing else has weights on
            the shortcuts.

    Source: He et al. 2016 (arXiv 1603.05027), section 5. That the paper's ResNet-110 and -164 are
    the pre-activation ones follows from its "original" errors, 6.37 and 5.46 (Table 4).
    Zagoruyko and Komodakis 2016 (arXiv 1605.07146), Table 1, for WRN-16-8.
    """

    placements = PLACEMENTS
    res2: nn.Sequential
    res4: nn.Sequential

    def __init__(
        self,
        layers: Sequence[int],
        *,
        bottleneck: bool = False,
        widths: Sequence[int] = (16, 32, 64),
        project: bool = False,
        slot: Slot = PLAIN,
    ) -> None:
        super().__init__()
        layers = check_stages("layers", layers, 3, MOST_BLOCKS)
        widths = check_stages("widths", widths, 3, WIDEST)
        if not project and [16, *widths] != sorted([16, *widths]):
            raise ValueError(
                f"widths {list(widths)}: shapes change by zero channels here, which add and do not"
                " take away; give widths from 16 on that do not fall"
            )
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", nn.Conv2d(3, 16, 3, padding=1, bias=False))
        self.feature_specs = {"stem": FeatureSpec(16, 1)}
        build_block = functools.partial(
            PreActivationBlock, slot=slot, bottleneck=bottleneck, project=project
        )
        channels = add_stages(self, 16, 1, layers, widths, build_block)
        first: Any = self.res2[0]
        first.activate_shortcut = True
        # The activation after the last addition.
        self.res4.add_module("norm", nn.BatchNorm2d(channels))
        self.res4.add_module("relu", nn.ReLU())
        initialize_he(self)
