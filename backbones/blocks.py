"""Residual blocks with a place for attention."""

from collections import OrderedDict

from torch import Tensor, nn

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
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        slot: Slot,
        stage: int,
        map_stride: int,
        inner_channels: int | None,
        projection_kernel: int = 1,
    ) -> None:
        """`map_stride` is the stride of the block's output from the image, `stride` its own."""
        super().__init__()
        self.placement = slot.placement
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            kernel = projection_kernel if stride != 1 else 1
            self.shortcut = projection(in_channels, out_channels, stride, kernel)
        self.se = slot.build_in_block(
            in_channels=in_channels,
            inner_channels=inner_channels,
            out_channels=out_channels,
            stage=stage,
            map_stride=map_stride,
            stride=stride,
        )
        self.relu = nn.ReLU()

    def convolve(self, x: Tensor) -> Tensor:
        """The residual branch up to its last convolution; `last_norm` follows."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last convolution."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        convolved = self.convolve(self.se(x) if self.placement == "pre" else x)
        norm, se = self.last_norm, self.se
        if (
            self.placement == "standard"
            and isinstance(se, SEBlock)
            and applies_to(convolved, norm, se)
        ):
            # Equal to what follows, for training on CPUs.
            return normed_residual_sum(convolved, norm, se, self.shortcut(x))
        residual = self.last_norm(convolved)
        if self.placement == "standard":
            residual = self.se(residual)
        shortcut = self.shortcut(x)
        if self.placement == "identity":
            shortcut = self.se(shortcut)
        y = self.relu(residual + shortcut)
        return self.se(y) if self.placement == "post" else y


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, the first with the stride."""

    def __init__(
        self, in_channels: int, width: int, stride: int, *, slot: Slot, stage: int, map_stride: int
    ) -> None:
        super().__init__(
            in_channels,
            width,
            stride,
            slot=slot,
            stage=stage,
            map_stride=map_stride,
            inner_channels=None,
        )
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def convolve(self, x: Tensor) -> Tensor:
        """Both convolutions: (N, in_channels, H, W) -> (N, width, H / stride, W / stride)."""
        return self.conv2(self.relu(self.norm1(self.conv1(x))))

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last convolution."""
        return self.norm2


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (grouped in ResNeXt), 1x1 convolutions to 4 * width channels.

    Args:
        width: a quarter of the output's channels: 64, 128, 256, 512 in all published networks.
        groups, group_width: cardinality and channels of a group at width 64, e.g. 32 and 4. At
            widths of one's own a group has the nearest whole number of channels.
        stride_in_1x1: whether the stride is in the first 1x1 or in the 3x3 convolution.
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
        groups: int = 1,
        group_width: int = 64,
        stride_in_1x1: bool = True,
        halve_first: bool = False,
        projection_kernel: int = 1,
    ) -> None:
        least = 2 * groups if halve_first else groups  # what `inner` must be a multiple of
        inner = least * max(1, round(groups * group_width * width / (64 * least)))
        first = inner // 2 if halve_first else inner
        out_channels = 4 * width
        super().__init__(
            in_channels,
            out_channels,
            stride,
            slot=slot,
            stage=stage,
            map_stride=map_stride,
            inner_channels=inner,
            projection_kernel=projection_kernel,
        )
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, first, 1, stride1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, inner, 3, stride2, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)

    def convolve(self, x: Tensor) -> Tensor:
        """The three convolutions: (N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        if self.placement == "3x3":
            x = self.se(x)
        return self.conv3(x)

    @property
    def last_norm(self) -> nn.Module:
        """The norm after the last convolution."""
        return self.norm3


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
