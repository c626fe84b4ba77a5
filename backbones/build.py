"""From a name and options to a network."""

import importlib
import inspect
from typing import Any

from backbones.features import Backbone, Network
from backbones.slot import ATTENTIONS, attention_options, build_slot, unknown
from backbones.zoo import EXTERNAL, Pair, find_backbone

_SLOT_OPTIONS = ("attention", "placement", "se_stages")


def build_backbone(name: str, **options: Any) -> Backbone:
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
        return entry.builder(**options)
    module, _, attribute = entry.builder.partition(":")
    network = getattr(importlib.import_module(f"backbones.{module}"), attribute)
    arguments = dict(entry.arguments)
    arguments.update((key, value) for key, value in options.items() if key in entry.options)
    for key in entry.options:  # the paper's ablations are booleans and words: a typo must not pass
        default = inspect.signature(network).parameters[key].default
        if key in options and not isinstance(options[key], type(default)):
            kind = type(default).__name__
            raise ValueError(f"{name}: option {key} is of type {kind}, not {options[key]!r}")
    rest = {key: value for key, value in options.items() if key not in entry.options}
    if name == entry.plain:
        if rest:
            raise ValueError(_unknown_option(name, entry, next(iter(rest)), is_se=False))
        return network(**arguments)

    rest = _with_defaults(entry, rest)
    known = {*_SLOT_OPTIONS, *(key for a in ATTENTIONS for key in attention_options(a))}
    for key in rest:
        if key not in known:
            raise ValueError(_unknown_option(name, entry, key, is_se=True))
    try:
        slot = build_slot(rest, entry.input_size)
        if slot.placement not in network.placements:
            raise ValueError(
                f"placement {slot.placement!r} needs residual blocks, which family"
                f" {entry.family} does not offer; allowed: {', '.join(network.placements)}"
            )
        backbone = network(**arguments, slot=slot)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    stages = [int(stage[3:]) for stage in backbone.feature_specs if stage.startswith("res")]
    if slot.stages and not set(slot.stages) <= set(stages):
        raise ValueError(f"{name}: se_stages {list(slot.stages)} are not all among {stages}")
    return backbone


def build_network(
    name: str, num_classes: int = 1000, dropout: float = 0.0, **options: Any
) -> Network:
    """Build a backbone with its classifier. See `build_backbone` for the options and errors."""
    return Network(build_backbone(name, **options), num_classes, dropout)


def _with_defaults(entry: Pair, options: dict[str, Any]) -> dict[str, Any]:
    """Add the network's own defaults (e.g. a smaller reduction) where the attention has them."""
    attention = options.get("attention", "se")
    if attention not in ATTENTIONS:
        return options
    takes = attention_options(attention)
    return {**{k: v for k, v in entry.se_defaults.items() if k in takes}, **options}


def _unknown_option(name: str, entry: Pair, option: str, is_se: bool) -> str:
    known = [*entry.options]
    if is_se:
        known += [*_SLOT_OPTIONS, *attention_options("se")]
    elif option in _SLOT_OPTIONS or option in attention_options("se"):
        return f"{name} is plain and has no option {option!r}; its SE twin is {entry.se}"
    return f"{name}: " + unknown("option", option, known)
