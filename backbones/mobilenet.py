"""MobileNet 1.0."""

from torch import nn

from backbones.blocks import conv_norm_relu
from backbones.features import Backbone, FeatureSpec, initialize_he
from backbones.slot import PLAIN, Slot

# Output channels of the depthwise-separable blocks of stages 1 to 5; each stage halves the size.
_STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class MobileNet(Backbone):
    """A strided 3x3 convolution and 13 depthwise-separable blocks.

    The stem holds the first convolution and the first block, at stride 2. Attention stands at the
    end of each block, after its last non-linearity; that of the stem belongs to stage 2.

    Source: Howard et al. 2017 (arXiv 1704.04861), Table 1; the paper's Table 3.
    """

    def __init__(self, slot: Slot = PLAIN) -> None:
        super().__init__()
        self.feature_specs = {}
        channels = 32
        for stage, widths in enumerate(_STAGES, start=1):
            blocks = nn.Sequential()
            if stage == 1:
                blocks.add_module("conv1", conv_norm_relu(3, channels, 3, stride=2))
            for index, width in enumerate(widths, start=1):
                stride = 2 if stage > 1 and index == 1 else 1
                block = nn.Sequential()
                block.add_module(
                    "depthwise", conv_norm_relu(channels, channels, 3, stride, groups=channels)
                )
                block.add_module("pointwise", conv_norm_relu(channels, width, 1))
                block.add_module("se", slot.build(width, max(2, stage), 2**stage))
                blocks.add_module(f"block{index}", block)
                channels = width
            name = "stem" if stage == 1 else f"res{stage}"
            self.add_module(name, blocks)
            self.feature_specs[name] = FeatureSpec(channels, 2**stage)
        initialize_he(self)
