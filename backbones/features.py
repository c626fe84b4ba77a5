"""What every backbone promises: named feature maps with known channels and strides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST_BLOCKS, WIDEST = 400, 4096  # of a stage


@dataclass(frozen=True)
class FeatureSpec:
    """The shape of a feature map."""

    channels: int
    stride: int  # input pixels per pixel of the map


class Backbone(nn.Module):
    """A network without its classifier.

    A subclass has one child module per entry of `feature_specs`, under the same name, applied one
    after the other. ImageNet networks have `stem`, `res2` .. `res5` (the latter at strides 4, 8,
    16, 32), networks for 32x32 images `stem`, `res2` .. `res4`.
    """

    feature_specs: dict[str, FeatureSpec]
    # Where this network can hold its attention (paper, Fig. 5 and Table 15).
    placements: tuple[str, ...] = ("standard",)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to feature maps {name: (N, channels, ~H/stride, ~W/stride)}."""
        features = {}
        for name in self.feature_specs:
            x = getattr(self, name)(x)
            features[name] = x
        return features

    def stage_modules(self, name: str) -> list[nn.Module]:
        """Return the modules that make the stage `name`, e.g. to freeze it."""
        if name not in self.feature_specs:
            raise ValueError(f"no stage {name!r}; this network has {', '.join(self.feature_specs)}")
        return [getattr(self, name)]

    def build_head(self, num_classes: int, dropout: float = 0.0) -> nn.Module:
        """Build the classifier this network is published with: features -> logits."""
        stage = list(self.feature_specs)[-1]
        return PooledLinearHead(stage, self.feature_specs[stage].channels, num_classes, dropout)


class PooledLinearHead(nn.Module):
    """Global average pool of one stage, dropout, and a fully connected layer."""

    def __init__(self, stage: str, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stage = stage
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map features to logits (N, num_classes)."""
        pooled = features[self.stage].mean(dim=(2, 3))  # (N, C)
        return self.fc(self.dropout(pooled))


class Network(nn.Module):
    """A backbone and its classifier: images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = backbone.build_head(num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        return self.head(self.backbone(x))


def check_stages(option: str, values: Sequence[int], stages: int, largest: int) -> tuple[int, ...]:
    """A whole number for each stage, from 1 to `largest`, that an option gives.

    Raises:
        ValueError: something else.
    """
    given = list(values) if isinstance(values, (list, tuple)) else []
    if len(given) != stages or not all(type(n) is int and 1 <= n <= largest for n in given):
        raise ValueError(
            f"{option} has a whole number from 1 to {largest} for each of {stages} stages, such as"
            f" {[min(largest, 16)] * stages}, not {values!r}"
        )
    return tuple(given)


@torch.no_grad()
def initialize_he(module: nn.Module) -> None:
    """Draw the weights of `module` from He's normal distribution; norms start as the identity.

    Attention modules (children named `se`) initialise themselves and are skipped.

    Source: paper, section 5.1, which cites He et al. 2015 (arXiv 1502.01852), Eq. 14: the standard
    deviation is sqrt(2 / fan_out) before a ReLU. Fully connected layers end in logits or in a
    gate, where He's factor of two does not apply: sqrt(1 / fan_in).
    """
    for name, child in module.named_children():
        if name != "se":
            initialize_he(child)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    else:
        return  # norms are made as the identity
    if module.bias is not None:
        nn.init.zeros_(module.bias)
