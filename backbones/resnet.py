"""ResNet, ResNeXt and SENet-154 for ImageNet-like images."""

import functools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from backbones.blocks import ResidualBlock, add_stages
from backbones.features import (
    MOST_BLOCKS,
    WIDEST,
    Backbone,
    FeatureSpec,
    check_stages,
    initialize_he,
)
from backbones.slot import PLACEMENTS, PLAIN, Slot

POOLS = ("padded", "ceil")


class ResNet(Backbone):
    """Stem at stride 4 and four stages at strides 4, 8, 16, 32.

    Args:
        layers: blocks in each stage, e.g. (3, 4, 6, 3).
        bottleneck: bottleneck blocks (ResNet-50 and deeper) or basic ones.
        widths: width of the 3x3 convolutions of each stage before ResNeXt widens them.
        groups, group_width, halve_first, projection_kernel: see `blocks.ResidualBlock`.
        stride_in_1x1: the stride of a bottleneck is in its first 1x1 convolution. The paper's
            3.86, 7.58 and 11.30 G multiply-adds of ResNet-50, -101 and -152 and the released
            SE-ResNet weights have it there; torchvision and timm have it in the 3x3, and so has
            ResNeXt: its printed 4.24 G is 4.236 G that way and would be 3.774 G the other. The
            same weights fit both, with other outputs: what is loaded must match.
        deep_stem: three 3x3 convolutions in place of the 7x7 (SENet-154, appendix (b)).
        stem_pool: "padded" as torchvision and Detectron2 pool (padding 1), "ceil" as Caffe and
            the networks ported from it (no padding, the last window may be cut). Both give 56x56
            at 224; their windows are one pixel apart, so weights demand the one they know.

    Source: Table 1; He et al. 2016 (ResNet); Xie et al. 2017 (ResNeXt).
    """

    placements = PLACEMENTS

    def __init__(
        self,
        layers: Sequence[int],
        *,
        bottleneck: bool = True,
        widths: Sequence[int] = (64, 128, 256, 512),
        groups: int = 1,
        group_width: int = 64,
        stride_in_1x1: bool = True,
        halve_first: bool = False,
        projection_kernel: int = 1,
        stem_width: int = 64,
        deep_stem: bool = False,
        stem_pool: str = "padded",
        slot: Slot = PLAIN,
    ) -> None:
        super().__init__()
        if not isinstance(stride_in_1x1, bool):
            raise ValueError(f"stride_in_1x1 is true or false, not {stride_in_1x1!r}")
        layers = check_stages("layers", layers, 4, MOST_BLOCKS)
        widths = check_stages("widths", widths, 4, WIDEST)
        self.stem, channels = _build_stem(stem_width, deep_stem, stem_pool)
        self.feature_specs = {"stem": FeatureSpec(channels, 4)}
        build_block = functools.partial(
            ResidualBlock,
            slot=slot,
            bottleneck=bottleneck,
            groups=groups,
            group_width=group_width,
            stride_in_1x1=stride_in_1x1,
            halve_first=halve_first,
            projection_kernel=projection_kernel,
        )
        add_stages(self, channels, 4, layers, widths, build_block)
        initialize_he(self)


def _build_stem(width: int, deep: bool, pool: str) -> tuple[nn.Sequential, int]:
    """Return the stem, (N, 3, H, W) -> (N, channels, H/4, W/4), and its channels."""
    if pool not in POOLS:
        raise ValueError(f"stem_pool is one of {', '.join(POOLS)}, not {pool!r}")
    # (in, out, kernel, stride) of each convolution
    plan = [(3, width, 7, 2)]
    if deep:
        plan = [(3, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (in_channels, channels, kernel, stride) in enumerate(plan, start=1):
        modules[f"conv{index}"] = nn.Conv2d(
            in_channels, channels, kernel, stride, padding=kernel // 2, bias=False
        )
        modules[f"norm{index}"] = nn.BatchNorm2d(channels)
        modules[f"relu{index}"] = nn.ReLU()
    padding = 1 if pool == "padded" else 0
    modules["pool"] = nn.MaxPool2d(3, stride=2, padding=padding, ceil_mode=pool == "ceil")
    return nn.Sequential(modules), channels
