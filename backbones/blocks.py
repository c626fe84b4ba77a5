"""Residual blocks with a place for attention."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from backbones.features import Backbone, FeatureSpec
from backbones.residual_sum import applies_to, normed_residual_sum
from backbones.slot import Slot
from backbones.squeeze_excite import SEBlock


class ResidualBlock(nn.Module):
    """y = relu(residual(x) + shortcut(x)), with the attention `se` at one of five places.

    | placement | where `se` acts | Source |
    |---|---|---|
    | standard | on the residual branch, before the sum | Fig. 3, Fig. 5b |
    | pre | on the input of the residual branch; the shortcut takes x as it is | Fig. 5c |
    | post | on the output, after the ReLU | Fig. 5d |
    | identity | on the shortcut, after its projection if there is one | Fig. 5e |
    | 3x3 | inside a bottleneck, after the 3x3 convolution with its norm and ReLU | Table 15 |

    That `identity` follows the projection and that `3x3` follows norm and ReLU are choices: the
    paper does not say.

    Its convolutions are two of 3x3, the first with the stride, or, as a bottleneck, of 1x1, 3x3 and
    1x1 to 4 * width channels.

    Args:
        map_stride: of the block's output from the image; `stride` is the block's own.
        width: of the 3x3 convolutions, before groups: 64, 128, 256, 512 in all published networks.
        bottleneck: whether it is one.
        groups, group_width: of a bottleneck's 3x3: cardinality and channels of a group at width 64,
            e.g. 32 and 4 in ResNeXt. At widths of one's own a group has the nearest whole number.
        stride_in_1x1: whether a bottleneck's stride is in its first 1x1 or in its 3x3 convolution.
        halve_first: halve the output of the first 1x1 convolution (SENet-154, appendix (a)).
        projection_kernel: 3 for a strided 3x3 projection (SENet-154, appendix (c)).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        slot: Slot,
        stage: int,
        map_stride: int,
        bottleneck: bool = True,
        groups: int = 1,
        group_width: int = 64,
        stride_in_1x1: bool = True,
        halve_first: bool = False,
        projection_kernel: int = 1,
    ) -> None:
        super().__init__()
        least = 2 * groups if halve_first else groups  # what `inner` must be a multiple of
        inner = least * max(1, round(groups * group_width * width / (64 * least)))
        # (channels, kernel, stride, groups) of each convolution
        plan = [(width, 3, stride, 1), (width, 3, 1, 1)]
        if bottleneck:
            strides = (stride, 1) if stride_in_1x1 else (1, stride)
            plan = [
                (inner // 2 if halve_first else inner, 1, strides[0], 1),
                (inner, 3, strides[1], groups),
                (4 * width, 1, 1, 1),
            ]
        self.depth = len(plan)
        self.out_channels = plan[-1][0]
        self.placement = slot.placement
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != self.out_channels:
            kernel = projection_kernel if stride != 1 else 1
            self.shortcut = projection(in_channels, self.out_channels, stride, kernel)
        of_map = in_channels, inner if bottleneck else None, self.out_channels
        self.se = slot.build_in_block(of_map, stage, map_stride, stride)
        self.relu = nn.ReLU()
        channels = in_channels
        for index, (out, kernel, step, split) in enumerate(plan, start=1):
            conv = nn.Conv2d(channels, out, kernel, step, kernel // 2, groups=split, bias=False)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"norm{index}", nn.BatchNorm2d(out))
            channels = out

    @property
    def layers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each convolution and the norm after it."""
        numbers = range(1, self.depth + 1)
        return [(getattr(self, f"conv{i}"), getattr(self, f"norm{i}")) for i in numbers]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        se, placement = self.se, self.placement
        *layers, (last, last_norm) = self.layers
        y = se(x) if placement == "pre" else x
        for conv, norm in layers:
            y = self.relu(norm(conv(y)))
        y = last(se(y) if placement == "3x3" else y)
        if placement == "standard" and isinstance(se, SEBlock) and applies_to(y, last_norm, se):
            # Equal to what follows, for training on CPUs.
            return normed_residual_sum(y, last_norm, se, self.shortcut(x))
        residual = last_norm(y)
        if placement == "standard":
            residual = se(residual)
        shortcut = self.shortcut(x)
        if placement == "identity":
            shortcut = se(shortcut)
        y = self.relu(residual + shortcut)
        return se(y) if placement == "post" else y


def add_stages(
    backbone: Backbone,
    channels: int,
    map_stride: int,
    layers: Sequence[int],
    widths: Sequence[int],
    build_block: Callable[..., Any],
) -> int:
    """Add the stages `res2`, `res3`, ... of residual blocks; each but the first halves the maps.

    Args:
        channels, map_stride: of the stem.
        layers, widths: number of blocks in each stage, and their width.
        build_block: of (in channels, width, stride, stage=..., map_stride=...), a module that tells
            its `out_channels`.

    Returns:
        The channels of the last stage.
    """
    for stage, (depth, width) in enumerate(zip(layers, widths, strict=True), start=2):
        blocks = nn.Sequential()
        for index in range(depth):
            stride = 2 if index == 0 and stage > 2 else 1
            map_stride *= stride
            block = build_block(channels, width, stride, stage=stage, map_stride=map_stride)
            blocks.append(block)
            channels = block.out_channels
        backbone.add_module(f"res{stage}", blocks)
        backbone.feature_specs[f"res{stage}"] = FeatureSpec(channels, map_stride)
    return channels


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    padded: bool = True,
    groups: int = 1,
    bias: bool = False,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Build a convolution, its batch norm and a ReLU; padded to keep the size at stride 1, or not."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if padded else 0
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias
            ),
            norm=nn.BatchNorm2d(out_channels, eps=eps),
            relu=nn.ReLU(),
        )
    )


def projection(in_channels: int, out_channels: int, stride: int, kernel: int = 1) -> nn.Sequential:
    """Build a shortcut that changes shape: a convolution and its norm."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
            ),
            norm=nn.BatchNorm2d(out_channels),
        )
    )
