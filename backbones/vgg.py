"""VGG-16 with batch normalisation."""

from torch import Tensor, nn

from backbones.blocks import conv_norm_relu
from backbones.features import Backbone, FeatureSpec, initialize_he
from backbones.slot import PLAIN, Slot

# Output channels of each 3x3 convolution, and the 2x2 max pools (configuration D of VGG).
_STAGES: dict[str, tuple[int | str, ...]] = {
    "stem": (64, 64, "pool", 128, 128, "pool"),
    "res2": (256, 256, 256),
    "res3": ("pool", 512, 512, 512),
    "res4": ("pool", 512, 512, 512),
    "res5": ("pool",),
}


class VGG16(Backbone):
    """Thirteen 3x3 convolutions in five groups, cut so that stages have strides 4, 4, 8, 16, 32.

    `res5` is the last pool alone. Attention stands after the non-linearity of each convolution
    (paper, section 3.3); that of the stem belongs to stage 2.

    Source: Simonyan and Zisserman 2015; batch norm and biases as in torchvision's vgg16_bn.
    """

    def __init__(self, slot: Slot = PLAIN) -> None:
        super().__init__()
        self.feature_specs = {}
        channels, stride = 3, 1
        for name, plan in _STAGES.items():
            sequence = nn.Sequential()
            for step in plan:
                if isinstance(step, str):
                    sequence.append(nn.MaxPool2d(2))
                    stride *= 2
                    continue
                unit = conv_norm_relu(channels, step, 3, bias=True)
                unit.add_module(
                    "se", slot.build(step, 2 if name == "stem" else int(name[3:]), stride)
                )
                sequence.append(unit)
                channels = step
            self.add_module(name, sequence)
            self.feature_specs[name] = FeatureSpec(channels, stride)
        initialize_he(self)

    def build_head(self, num_classes: int, dropout: float = 0.0) -> nn.Module:
        """Build the three fully connected layers; VGG was published with a dropout of 0.5."""
        return VGGHead(num_classes, dropout)


class VGGHead(nn.Module):
    """A 7x7 average pool and three fully connected layers, on `res5`."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(dropout)
        self.relu = nn.ReLU()
        initialize_he(self)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map features to logits (N, num_classes)."""
        x = self.pool(features["res5"]).flatten(1)
        x = self.dropout(self.relu(self.fc6(x)))
        x = self.dropout(self.relu(self.fc7(x)))
        return self.fc(x)
