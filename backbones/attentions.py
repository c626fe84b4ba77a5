"""What followed squeeze-and-excitation, for the same slot: modules that keep the shape (N, C, H, W).

Option names are SE's where the meaning is SE's. Each module starts from its own initialisation.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.features import initialize_he
from backbones.squeeze_excite import hidden_units


class EfficientChannelAttention(nn.Module):
    """ECA: gate each channel by a convolution over its neighbours in channel order.

    The kernel grows with the channels: t = (log2 C + 1) / 2 cut to a whole number, plus one if
    even, as in the authors' code and timm's (5, 5, 5, 7 for ResNet-50's stages); the paper's Eq. 12
    takes the nearest odd number.

    Source: Wang et al. 2020 (arXiv 1910.03151), Eq. 9 and 12.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int((math.log2(channels) + 1) / 2)
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        z = x.mean(dim=(2, 3)).unsqueeze(1)  # (N, 1, C)
        gate = torch.sigmoid(self.conv(z)).transpose(1, 2).unsqueeze(3)  # (N, C, 1, 1)
        return x * gate


class CBAM(nn.Module):
    """Convolutional block attention module: SE with average and maximum, then a gate per pixel.

    Source: Woo et al. 2018 (arXiv 1807.06521), Eq. 1 to 3: reduction 16, a 7x7 convolution. The batch
    norm after it is in the authors' code and not in the paper.
    """

    def __init__(self, channels: int, reduction: int = 16, se_bias: bool = True) -> None:
        super().__init__()
        hidden = hidden_units(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden, bias=se_bias)
        self.fc2 = nn.Linear(hidden, channels, bias=se_bias)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        average, maximum = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        gate = torch.sigmoid(self._excite(average) + self._excite(maximum))  # (N, C)
        x = x * gate[:, :, None, None]
        pixels = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.norm(self.conv(pixels)))

    def _excite(self, z: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(z)))


class GatherExcite(nn.Module):
    """GE-theta: gather by depthwise convolutions, excite by the sigmoid of what was gathered.

    Args:
        extent: pixels a side that are gathered into one: 2, 4 or 8, by as many strided 3x3
            convolutions as it takes; 0 gathers the whole map by a kernel of its size, the GE-theta
            of the paper's tables, which ties the network to one input size.

    Source: Hu et al. 2018 (arXiv 1810.12348), section 3.2; [84] of the SE paper.
    """

    def __init__(self, channels: int, feature_size: tuple[int, int], extent: int = 0) -> None:
        super().__init__()
        if extent not in (0, 2, 4, 8):
            raise ValueError(f"extent is 2, 4 or 8, or 0 for the whole map, not {extent!r}")
        self.feature_size = feature_size
        self.extent = extent
        self.gather = nn.Sequential()
        steps = int(math.log2(extent)) if extent else 1
        for index in range(1, steps + 1):
            shape: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
            if not extent:
                shape = {"kernel_size": feature_size}
            conv = nn.Conv2d(channels, channels, **shape, groups=channels, bias=False)
            self.gather.add_module(f"conv{index}", conv)
            self.gather.add_module(f"norm{index}", nn.BatchNorm2d(channels))
            if index < steps:
                self.gather.add_module(f"relu{index}", nn.ReLU())
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        size = tuple(x.shape[2:])
        if not self.extent and size != self.feature_size:
            raise ValueError(
                f"GE-theta with global extent was built for maps of {self.feature_size}, not {size};"
                " set extent to 2, 4 or 8 for inputs of any size"
            )
        return x * torch.sigmoid(F.interpolate(self.gather(x), size=size, mode="nearest"))


class CoordinateAttention(nn.Module):
    """Gate each pixel by what its row and its column hold.

    Source: Hou et al. 2021 (arXiv 2103.02907), Eq. 4 to 9, and the authors' code: reduction 32 with at
    least 8 hidden channels, biases before the batch norm.
    """

    def __init__(self, channels: int, reduction: int = 32, se_bias: bool = True) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=se_bias)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv_rows = nn.Conv2d(hidden, channels, 1, bias=se_bias)
        self.conv_columns = nn.Conv2d(hidden, channels, 1, bias=se_bias)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        height, width = x.shape[2:]
        rows = x.mean(dim=3, keepdim=True)  # (N, C, H, 1)
        columns = x.mean(dim=2, keepdim=True).transpose(2, 3)  # (N, C, W, 1)
        y = F.hardswish(self.norm1(self.conv1(torch.cat([rows, columns], dim=2))))
        rows, columns = y.split([height, width], dim=2)
        gate_rows = torch.sigmoid(self.conv_rows(rows))
        gate_columns = torch.sigmoid(self.conv_columns(columns.transpose(2, 3)))
        return x * gate_rows * gate_columns


class GlobalContext(nn.Module):
    """GC: pool the map by learned attention over its pixels and add what a bottleneck makes of it.

    Source: Cao et al. 2019 (arXiv 1904.11492), Eq. 5 and Fig. 4d: reduction 16, layer norm in the
    bottleneck, its last layer starting at zero.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = hidden_units(channels, reduction)
        self.attend = nn.Conv2d(channels, 1, 1)
        self.fc1 = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, channels)
        initialize_he(self)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the context of x (N, C, H, W) to it; the shape stays."""
        weights = self.attend(x).flatten(2).softmax(dim=2)  # (N, 1, HW)
        context = (x.flatten(2) @ weights.transpose(1, 2)).squeeze(2)  # (N, C)
        update = self.fc2(torch.relu(self.norm(self.fc1(context))))
        return x + update[:, :, None, None]


class SimAM(nn.Module):
    """Gate each value by how far it stands out of its channel; nothing is learned.

    Source: Yang et al. 2021 (ICML, "SimAM: a simple, parameter-free attention module"), Eq. 5 and the
    code in its appendix; lambda = 1e-4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        deviation = (x - x.mean(dim=(2, 3), keepdim=True)) ** 2
        others = x.shape[2] * x.shape[3] - 1
        variance = deviation.sum(dim=(2, 3), keepdim=True) / others
        return x * torch.sigmoid(deviation / (4 * (variance + 1e-4)) + 0.5)


class EffectiveSE(nn.Module):
    """eSE: SE without the bottleneck: one fully connected layer and a hard sigmoid.

    Source: Lee and Park 2020 (arXiv 1911.06667), Eq. 4 and 5 (VoVNetV2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        gate = F.hardsigmoid(self.fc(x.mean(dim=(2, 3))))
        return x * gate[:, :, None, None]
