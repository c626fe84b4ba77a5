"""Pre-activation residual networks for 32x32 pictures."""

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.features import Backbone, FeatureSpec, initialize_he
from backbones.slot import PLAIN, Slot


class PreActivationBlock(nn.Module):
    """y = residual(relu(norm(x))) + shortcut, of two 3x3 or of 1x1, 3x3, 1x1 convolutions.

    The shortcut carries x itself, with two exceptions. Where the shape changes, a bottleneck
    projects the activated x by a 1x1 convolution, and a basic block subsamples x and pads it with
    zero channels. And the first block of a network activates before the split
    (`activate_shortcut`).

    Attention has the places of `blocks.ResidualBlock`, as far as there is a norm or ReLU to be
    after: `post` follows the sum, `3x3` the bare convolution. For CIFAR the paper says only that SE
    acts on the residual branch before the addition (section 3.3).

    Source: He et al. 2016, Identity mappings (arXiv 1603.05027), Fig. 1b and appendix.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        slot: Slot,
        stage: int,
        map_stride: int,
        bottleneck: bool,
        activate_shortcut: bool,
    ) -> None:
        super().__init__()
        self.placement = slot.placement
        self.stride = stride
        self.bottleneck = bottleneck
        self.activate_shortcut = activate_shortcut
        out_channels = 4 * width if bottleneck else width
        self.padding = out_channels - in_channels  # zero channels of a basic block's shortcut
        # (kernel, out channels, stride) of each convolution
        if bottleneck:
            plan = [(1, width, stride), (3, width, 1), (1, out_channels, 1)]
        else:
            plan = [(3, width, stride), (3, out_channels, 1)]
        channels = in_channels
        for index, (kernel, out, conv_stride) in enumerate(plan, start=1):
            norm = nn.BatchNorm2d(channels)
            conv = nn.Conv2d(channels, out, kernel, conv_stride, padding=kernel // 2, bias=False)
            self.add_module(f"norm{index}", norm)
            self.add_module(f"conv{index}", conv)
            channels = out
        self.shortcut = nn.Identity()
        if bottleneck and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        if slot.placement == "pre":
            self.se = slot.build(in_channels, stage, map_stride // stride)
        elif slot.placement == "3x3":
            if not bottleneck:
                raise ValueError(
                    "placement '3x3' is for bottleneck blocks, after their one 3x3 convolution;"
                    " this network has basic blocks with two"
                )
            self.se = slot.build(width, stage, map_stride)
        else:
            self.se = slot.build(out_channels, stage, map_stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        projects = not isinstance(self.shortcut, nn.Identity)
        shortcut = self._shortcut(activated if projects or self.activate_shortcut else x)
        residual = self._residual(self.se(activated) if self.placement == "pre" else activated)
        if self.placement == "standard":
            residual = self.se(residual)
        if self.placement == "identity":
            shortcut = self.se(shortcut)
        y = residual + shortcut
        return self.se(y) if self.placement == "post" else y

    def _residual(self, activated: Tensor) -> Tensor:
        x = self.conv1(activated)
        x = self.conv2(F.relu(self.norm2(x)))
        if self.placement == "3x3":
            x = self.se(x)
        if self.bottleneck:
            x = self.conv3(F.relu(self.norm3(x)))
        return x

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.bottleneck or (self.stride == 1 and self.padding == 0):
            return self.shortcut(x)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.padding))


class CifarResNet(Backbone):
    """Stem at stride 1 and three stages at strides 1, 2, 4.

    Args:
        depth: 6n + 2 with basic blocks (20, 56, 110) or 9n + 2 with bottlenecks (164).
        bottleneck: which of the two.

    Source: He et al. 2016 (arXiv 1603.05027), section 5. That the paper's ResNet-110 and -164 are
    the pre-activation ones follows from its "original" errors, 6.37 and 5.46 (Table 4).
    """

    placements = ("standard", "pre", "post", "identity", "3x3")

    def __init__(self, depth: int, bottleneck: bool, slot: Slot = PLAIN) -> None:
        super().__init__()
        convolutions = 9 if bottleneck else 6
        assert (depth - 2) % convolutions == 0, depth
        channels = 16
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", nn.Conv2d(3, channels, 3, padding=1, bias=False))
        self.feature_specs = {"stem": FeatureSpec(channels, 1)}
        for stage, width in enumerate((16, 32, 64), start=2):
            map_stride = 2 ** (stage - 2)
            blocks = nn.Sequential()
            for index in range((depth - 2) // convolutions):
                stride = 2 if index == 0 and stage > 2 else 1
                first = index == 0 and stage == 2
                place = (channels, width, stride, slot, stage, map_stride)
                blocks.append(PreActivationBlock(*place, bottleneck, activate_shortcut=first))
                channels = 4 * width if bottleneck else width
            self.add_module(f"res{stage}", blocks)
            self.feature_specs[f"res{stage}"] = FeatureSpec(channels, map_stride)
        # The activation after the last addition.
        self.res4.add_module("norm", nn.BatchNorm2d(channels))
        self.res4.add_module("relu", nn.ReLU())
        initialize_he(self)
