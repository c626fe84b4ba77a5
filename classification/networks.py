"""The networks of an experiment, with the weights they start from or are evaluated with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from backbones import (
    BackboneSettings,
    InputFormat,
    Network,
    build_backbone,
    fit_backbone,
    load_user_module,
    load_weights,
    read_weights,
)
from backbones.inference import prepare_for_inference
from backbones.registry import EXTERNAL
from backbones.result import WeightsFile
from classification.config import ClassificationConfig
from classification.evaluate import common_interpolation
from classification.splits import Split


@dataclass(frozen=True)
class Member:
    """A network with its input, alone or one of an ensemble.

    Attributes:
        backbone: its settings, completed by what its weights demand.
        weights: the file it was loaded from, where there is one.
        prepared: the network rewritten for inference, or the network itself.
    """

    backbone: BackboneSettings
    network: Network
    input_format: InputFormat
    weights: WeightsFile | None
    prepared: nn.Module

    def prepared_for(self, config: ClassificationConfig, device: torch.device) -> Member:
        """The same on `device`, ready to compute."""
        self.network.to(device, memory_format=torch.channels_last)
        prepared = prepare_for_inference(self.network, config.evaluate.inference)
        return replace(self, prepared=prepared)


def load_initial(config: ClassificationConfig, reported: Split) -> Member:
    """The network that is trained, with the weights it starts from, if any.

    Raises:
        ValueError: the weights do not fit the network.
    """
    return _load(config, config.backbone, reported, training=True)


def try_initial(config: ClassificationConfig, reported: Split) -> Member:
    """As `load_initial`, but what is returned has shapes alone: weights are tried and dropped."""
    if config.backbone.weights:
        return on_meta(config, load_initial(config, reported), reported, training=True)
    with torch.device("meta"):
        return load_initial(config, reported)


def load_ensemble(config: ClassificationConfig, reported: Split) -> list[Member]:
    """The networks that are evaluated: of `backbone.weights` and of `evaluate.ensemble`.

    A further file may hold another network, where it tells which.

    Raises:
        ValueError: there are no weights; some do not fit, or are for other classes; or the networks
            want images resized in different ways.
    """
    if not config.backbone.weights:
        raise ValueError("backbone.weights is not set: evaluation needs weights, a FILE")
    members = [_load(config, config.backbone, reported, training=False)]
    for path in config.evaluate.ensemble:
        backbone = _further(config.backbone, path)
        members.append(_load(config, backbone, reported, training=False))
    common_interpolation(member.input_format for member in members)
    return members


def on_meta(
    config: ClassificationConfig, member: Member, reported: Split, training: bool
) -> Member:
    """The same member with a network of shapes alone, on which nothing is computed."""
    with torch.device("meta"):
        network = _build(config, member.backbone, reported, training)
    return replace(member, network=network, prepared=network)


def _further(first: BackboneSettings, path: str) -> BackboneSettings:
    """Settings of a further member of an ensemble, whose network its file may name."""
    settings = replace(first, weights=path)
    if path == first.name:  # a library's network with its own weights
        return settings
    if path.startswith(EXTERNAL):
        return replace(settings, name=path, options={})
    found = read_weights(path, first.name).backbone
    if found is None or found.name == first.name:
        return settings
    return replace(settings, name=found.name, options=found.options)


def _load(
    config: ClassificationConfig, backbone: BackboneSettings, reported: Split, training: bool
) -> Member:
    """Build a network and load its weights, where it has some: the file is read once."""
    for path in backbone.imports:
        load_user_module(path)
    if not backbone.weights:
        network = _build(config, backbone, reported, training)
        return Member(backbone, network, _recipe_format(config), None, network)
    weights = read_weights(backbone.weights, backbone.name)
    backbone = fit_backbone(backbone, weights)
    network = _build(config, backbone, reported, training)
    if not training:
        _check_classes(backbone.weights, weights.classes, reported)
    loaded = load_weights(
        network, weights, replace_head=training, allow_missing=backbone.allow_missing
    )
    input_format = weights.input_format or _recipe_format(config)
    return Member(backbone, network, input_format, loaded, network)


def _build(
    config: ClassificationConfig, backbone: BackboneSettings, reported: Split, training: bool
) -> Network:
    dropout = config.train.dropout if training else 0.0
    features = build_backbone(backbone.name, **backbone.options)
    return Network(features, len(reported.class_names), dropout)


def _check_classes(path: str | None, classes: list[str] | None, reported: Split) -> None:
    """Refuse a classifier whose classes are known to be others."""
    if classes is None or classes == list(reported.class_names):
        return
    pairs = zip(classes, reported.class_names, strict=False)
    other = next((f": {a!r} for {b!r}" for a, b in pairs if a != b), "")
    raise ValueError(
        f"{path} was trained for {len(classes)} other classes than the "
        f"{len(reported.class_names)} of {reported.name}{other}"
    )


def _recipe_format(config: ClassificationConfig) -> InputFormat:
    mean, std = config.data.mean, config.data.std
    return InputFormat(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
