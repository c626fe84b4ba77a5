"""The attention slot inserts SE, or another attention module, into any network.

A network asks its slot for a module wherever the paper puts an SE block; the slot answers with
the attention chosen by the options, or with the identity for plain networks and for stages
left out.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from backbones import attentions
from backbones.config import unknown
from backbones.squeeze_excite import SEBlock

# Option `attention` -> what builds it for a number of channels. Its further parameters are options
# of every network that holds it. `feature_size` is special: the slot passes (H, W) of the map.
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "se": SEBlock,
    "eca": attentions.EfficientChannelAttention,
    "cbam": attentions.CBAM,
    "ge_theta": attentions.GatherExcite,
    "coordinate": attentions.CoordinateAttention,
    "gc": attentions.GlobalContext,
    "simam": attentions.SimAM,
    "effective_se": attentions.EffectiveSE,
}
# Paper, Fig. 5 and Table 15; see `blocks.ResidualBlock` for what each means.
PLACEMENTS = ("standard", "pre", "post", "identity", "3x3")


@dataclass(frozen=True)
class Slot:
    """Which attention a network holds, and where."""

    attention: str | None = None  # a name of ATTENTIONS; None: plain
    placement: str = "standard"
    stages: tuple[int, ...] | None = None  # Table 13: those of 2..5 that hold it; None: all
    options: Mapping[str, Any] = field(default_factory=dict)  # of the attention itself
    input_size: int = 224  # pixels, for attentions whose weights depend on the map's size

    def build(self, channels: int, stage: int, stride: int) -> nn.Module:
        """Build the module for a map of `channels` and `stride` in `stage` (2 to 5)."""
        if self.attention is None or (self.stages is not None and stage not in self.stages):
            return nn.Identity()
        builder = ATTENTIONS[self.attention]
        arguments = dict(self.options)
        if "feature_size" in inspect.signature(builder).parameters:
            side = -(-self.input_size // stride)
            arguments["feature_size"] = (side, side)
        return builder(channels, **arguments)

    def build_in_block(
        self, channels: tuple[int, int | None, int], stage: int, map_stride: int, stride: int
    ) -> nn.Module:
        """Build the module for a residual block, where `placement` has it.

        Args:
            channels: of the block's input, of the one 3x3 convolution of a bottleneck (None for a
                basic block), of the output.
            map_stride: of the block's output from the image; `stride` is the block's own.

        Raises:
            ValueError: placement '3x3' in a basic block.
        """
        first, inner, last = channels
        if self.placement == "pre":
            return self.build(first, stage, map_stride // stride)
        if self.placement != "3x3":
            return self.build(last, stage, map_stride)
        if inner is None:
            raise ValueError(
                "placement '3x3' is for bottleneck blocks, after their one 3x3 convolution;"
                " this network has basic blocks with two"
            )
        return self.build(inner, stage, map_stride)


PLAIN = Slot()


def build_slot(options: dict[str, Any], input_size: int) -> Slot:
    """Make a slot of a network's attention options.

    Raises:
        ValueError: an unknown attention, placement or option, or one the attention does not have.
    """
    options = dict(options)
    attention = options.pop("attention", "se")
    if attention not in ATTENTIONS:
        raise ValueError(unknown("attention", attention, ATTENTIONS))
    placement = options.pop("placement", "standard")
    if placement not in PLACEMENTS:
        raise ValueError(unknown("placement", placement, PLACEMENTS))
    stages = options.pop("se_stages", None)
    if stages is not None:
        stages = tuple(stages)
        if not stages or not set(stages) <= {2, 3, 4, 5}:
            raise ValueError(f"se_stages is a non-empty subset of 2, 3, 4, 5, not {list(stages)}")
    for option in options:
        if option not in attention_options(attention):
            raise ValueError(
                f"attention {attention!r} has no option {option!r}; it has"
                f" {', '.join(attention_options(attention)) or 'none'}"
            )
    return Slot(attention, placement, stages, options, input_size)


def attention_options(attention: str) -> list[str]:
    """Return the names of an attention's own options."""
    names = list(inspect.signature(ATTENTIONS[attention]).parameters)[1:]
    return [name for name in names if name != "feature_size"]


def register_attention(name: str, builder: Callable[..., nn.Module]) -> None:
    """Add an attention of one's own, e.g. from a file named by `--import`.

    Args:
        name: the value of the option `attention` that selects it.
        builder: `builder(channels, **options)` returns a module that keeps the shape (N, C, H, W).
            Its keyword parameters become options of the network.

    Raises:
        ValueError: the name is taken.
    """
    if name in ATTENTIONS:
        raise ValueError(f"attention {name!r} is already registered; choose another name")
    ATTENTIONS[name] = builder
