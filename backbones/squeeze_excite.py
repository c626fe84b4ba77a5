"""The squeeze-and-excitation block, with the paper's ablations of its parts."""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.features import initialize_he

# Section 6.3, Table 12.
EXCITATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
# Section 6.2, Table 11; "none" is NoSqueeze of section 7.1, Table 16.
SQUEEZES = ("avg", "max", "none")


class SEBlock(nn.Module):
    """Scale each channel by a gate computed from all channels.

        z = mean of x over its pixels                  squeeze,    Eq. 2
        s = sigmoid(W2 relu(W1 z))                     excitation, Eq. 3
        y = s * x                                      scale,      Eq. 4

    Args:
        channels: C of the input.
        reduction: r; W1 has C // r rows (Table 10).
        squeeze: "avg"; "max" takes the maximum over the pixels (Table 11); "none" keeps all pixels,
            so that W1 and W2 act as 1x1 convolutions at full resolution (NoSqueeze, Table 16).
        excitation: the last non-linearity: "sigmoid", "tanh" or "relu" (Table 12).
        se_bias: whether W1 and W2 have biases. The paper's ablations have none (section 6), all
            published weights have them.

    Raises:
        ValueError: an option has no such value, or C // r is 0.

    Source: sections 3.1 to 3.3.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        squeeze: str = "avg",
        excitation: str = "sigmoid",
        se_bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = hidden_units(channels, reduction)
        if not isinstance(se_bias, bool):
            raise ValueError(f"se_bias is true or false, not {se_bias!r}")
        self.squeeze = _choice("squeeze", squeeze, SQUEEZES)
        self.excitation = _choice("excitation", excitation, EXCITATIONS)
        self.fc1 = nn.Linear(channels, hidden, bias=se_bias)
        self.fc2 = nn.Linear(hidden, channels, bias=se_bias)
        initialize_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W); the shape stays."""
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of x: (N, C, 1, 1), or (N, C, H, W) without a squeeze."""
        if self.squeeze == "avg":
            z = x.mean(dim=(2, 3), keepdim=True)
        elif self.squeeze == "max":
            z = x.amax(dim=(2, 3), keepdim=True)
        else:
            z = x
        z = z.permute(0, 2, 3, 1)  # channels last, where a Linear is a 1x1 convolution
        s = EXCITATIONS[self.excitation](self.fc2(torch.relu(self.fc1(z))))
        return s.permute(0, 3, 1, 2)


def hidden_units(channels: int, reduction: int) -> int:
    """Return channels // reduction, the width between W1 and W2; at least one unit is demanded.

    It is not rounded to a multiple of 8, as some libraries do: 64 channels at r = 16 have 4 units,
    the 16 channels of a CIFAR network have one.
    """
    if not isinstance(reduction, int) or isinstance(reduction, bool) or reduction < 1:
        raise ValueError(f"reduction is an integer of at least 1, not {reduction!r}")
    if channels < reduction:
        raise ValueError(
            f"reduction {reduction} leaves no hidden unit of {channels} channels;"
            f" use {channels} or less for this network"
        )
    return channels // reduction


def _choice(option: str, value: Any, allowed: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"{option} is one of {', '.join(allowed)}, not {value!r}")
    return value
