"""From a name and options to a network."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from backbones.config import unknown
from backbones.features import Backbone, Network
from backbones.registry import EXTERNAL, find_backbone
from backbones.slot import ATTENTIONS, attention_options, build_slot
from backbones.zoo import Pair

_SLOT_OPTIONS = ("attention", "placement", "se_stages")


def build_backbone(name: str, /, **options: Any) -> Backbone:
    """Build a backbone of the zoo, or one registered by the user, with He's initialisation.

    Args:
        name: as listed by `list_backbones()`.
        options: of the network (e.g. stride_in_1x1) and, for SE networks, of its attention
            (attention, reduction, squeeze, excitation, se_stages, placement, se_bias, ...).

    Raises:
        ValueError: an unknown name or option, with near matches, or a combination without sense.
    """
    if name.startswith(EXTERNAL):
        from backbones.external import ExternalBackbone

        return ExternalBackbone(name, **options)
    entry = find_backbone(name)
    if not isinstance(entry, Pair):
        with _as_value_errors(name):
            return entry.builder(**options)
    structure = {key: value for key, value in options.items() if key in entry.options}
    attention = {key: value for key, value in options.items() if key not in entry.options}
    _check_names(name, entry, attention)
    if attention.get("attention", "se") == "se":
        attention = {**entry.se_defaults, **attention}
    module, _, attribute = entry.builder.partition(":")
    network = getattr(importlib.import_module(f"backbones.{module}"), attribute)
    arguments = {**entry.arguments, **structure}
    with _as_value_errors(name):
        if name == entry.plain:
            return network(**arguments)
        slot = build_slot(attention, entry.input_size)
        if slot.placement not in network.placements:
            raise ValueError(
                f"placement {slot.placement!r} is for ResNet's blocks; family {entry.family} has"
                f" attention at one place, {', '.join(network.placements)}"
            )
        backbone = network(**arguments, slot=slot)
    for stage in slot.stages or ():
        if not _holds_attention(backbone, stage):
            raise ValueError(f"{name}: se_stages names {stage}, where this network has no place")
    return backbone


@contextmanager
def _as_value_errors(name: str) -> Iterator[None]:
    """Say which network an option does not suit, also where its type is another."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: {error}") from error


def _holds_attention(backbone: Backbone, stage: int) -> bool:
    modules = getattr(backbone, f"res{stage}", nn.Module()).named_modules()
    return any(name.endswith(".se") and not isinstance(m, nn.Identity) for name, m in modules)


def build_network(
    name: str, num_classes: int = 1000, dropout: float = 0.0, **options: Any
) -> Network:
    """Build a backbone with its classifier. See `build_backbone` for the options and errors."""
    return Network(build_backbone(name, **options), num_classes, dropout)


def _check_names(name: str, entry: Pair, options: dict[str, Any]) -> None:
    """Refuse options that neither the attention slot nor any attention has."""
    attention = {*_SLOT_OPTIONS, *(key for each in ATTENTIONS for key in attention_options(each))}
    for option in options:
        if name == entry.plain and option in attention:
            raise ValueError(
                f"{name} is plain and has no option {option!r}; its twin is {entry.se}"
            )
        if name == entry.plain:
            raise ValueError(f"{name}: {unknown('option', option, entry.options)}")
        if option not in attention:
            known = [*entry.options, *_SLOT_OPTIONS, *attention_options("se")]
            raise ValueError(f"{name}: {unknown('option', option, known)}")
