"""A whole detector: built from settings by Detectron2, saved, and rebuilt from a file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from torch import nn

from backbones import BackboneSettings, InputFormat, check_finite
from backbones.config import check_choice, flatten, printable, unknown
from backbones.device import choose_device
from backbones.result import Weights as WeightsUsed
from backbones.result import WeightsFile
from backbones.weights.files import read_tensors, save_state
from backbones.weights.load import Weights

from .backbone import add_sebench_config, check_input_format, register_backbones
from .config import KEYS, Build, DetectionConfig, DetectorSettings, InputSettings

FORMAT = "sebench-detector"


class DamagedImage(ValueError):
    """An image that its check took for whole, and that breaks off where it is decoded."""

    def __init__(self, message: str) -> None:
        # torch's loader puts a worker's traceback before it.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


class ImageMapper(DatasetMapper):
    """Detectron2's mapper, which names a file that cannot be decoded."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and annotate one image of Detectron2's dataset dicts.

        Raises:
            DamagedImage: (a ValueError) its file is damaged.
        """
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError) as error:  # Pillow's, for what a file holds
            name = printable(str(dataset_dict["file_name"]))
            raise DamagedImage(
                f"{name}: {printable(str(error))}; mend the image, or take it out of the annotations"
            ) from error


def choose_input_format(settings: InputSettings, weights: Weights | None) -> InputFormat:
    """What the pixels look like: as the weights know them, or as the settings say.

    Raises:
        ValueError: settings and weights disagree; both are named.
    """
    known = weights.input_format if weights else None
    base = known or InputFormat()
    given = InputFormat(
        channel_order=settings.channel_order or base.channel_order,
        mean=_triple(settings.mean or base.mean),
        std=_triple(settings.std or base.std),
        interpolation=base.interpolation,
    )
    if weights is not None and known is not None:
        check_input_format(given, known, weights.path)
    return given


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def build_cfg(build: Build) -> CfgNode:
    """Detectron2's config node; the backbone it names is registered.

    Raises:
        ValueError: `detectron2` holds an unknown key or a value of another type; or something asks
            for operators that this Detectron2 was installed without.
    """
    register_backbones()
    cfg = get_cfg()
    add_sebench_config(cfg)
    zoo = resources.files("detectron2") / "model_zoo" / "configs"
    cfg.merge_from_file(str(zoo / build.architecture.base))
    for key, (_, value_of) in KEYS.items():
        path, _, name = key.rpartition(".")
        node = functools.reduce(getattr, path.split("."), cfg) if path else cfg
        value = value_of(build)
        node[name] = CfgNode(value, new_allowed=True) if isinstance(value, dict) else value
    known = flatten(cfg)
    for key, value in flatten(build.config.detectron2).items():
        if key not in known:
            raise ValueError(f"detectron2: {unknown('key of Detectron2', key, known)}")
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise ValueError(
                f"detectron2.{key}={value!r}: Detectron2 wants a {type(known[key]).__name__}, "
                f"as in {known[key]!r}"
            ) from error
    _check_operators(cfg)
    cfg.freeze()
    return cfg


def _check_operators(cfg: CfgNode) -> None:
    """Refuse what only a compiled Detectron2 has; NMS and ROIAlign are torchvision's."""
    asked = [
        key
        for key, value in flatten(cfg).items()
        if (isinstance(value, str) and ("Rotated" in value or value in ("RRPN", "RROIHeads")))
        or (key == "MODEL.RESNETS.DEFORM_ON_PER_STAGE" and any(value))
    ]
    if not asked:
        return
    try:
        import detectron2._C  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"detectron2.{asked[0]}: rotated boxes and deformable convolutions need Detectron2's "
            "compiled operators, which this installation lacks; build Detectron2 from source"
        ) from error


@dataclass(frozen=True)
class Detector:
    """A model with what is needed to use it: its config node, its classes, their ids in COCO."""

    model: nn.Module
    cfg: CfgNode
    class_names: list[str]
    category_ids: list[int]  # of the classes, in their order
    input_format: InputFormat


def save_detector(
    detector: Detector, path: Path, config: DetectionConfig, initial: WeightsFile | None
) -> str:
    """Write a detector and all that is needed to rebuild it, whole or not at all.

    Args:
        initial: the weights that the backbone started from, for the record.

    Returns:
        The SHA-256 of the file.

    Raises:
        ValueError: training diverged: a tensor holds values that are no numbers.
    """
    check_finite(detector.model.state_dict(), "the trained detector")
    metadata = {
        "detector": _parts_of(config),
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "input_format": detector.input_format.describe(),
        "initial": asdict(initial) if initial else None,
    }
    return save_state(path, detector.model.state_dict(), metadata)


def load_detector(
    path: str | Path, config: DetectionConfig | None = None, device: str = "auto"
) -> tuple[Detector, WeightsUsed]:
    """Rebuild a detector from its file, in evaluation mode.

    Args:
        config: settings of the evaluation (sizes, augmentation); they must describe the same
            network as the file. None: Detectron2's sizes.

    Returns:
        The detector, and its file for the record.

    Raises:
        ValueError: not a detector of this suite, another than `config` describes, or one whose
            weights are not finite.
    """
    file = read_tensors(path)
    tensors, metadata = file.tensors, file.metadata
    if "detector" not in metadata:
        raise ValueError(
            f"{path} holds no detector: evaluation needs the weights.safetensors that `sebench "
            "train detection` wrote; a classifier's weights are what training starts from"
        )
    check_finite(tensors, str(path))
    told, own = _read_metadata(metadata, path)
    config = _fit(own, config, path)
    names, ids, input_format = told.class_names, told.category_ids, told.input_format
    cfg = build_cfg(Build(config, len(names), input_format, str(choose_device(device))))
    model = build_model(cfg).eval()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the detector it describes: {error}") from error
    origin = WeightsUsed(
        str(path), file.sha256, format=FORMAT, tensors=len(tensors), initial=told.initial
    )
    return Detector(model, cfg, names, ids, input_format), origin


class _Network(msgspec.Struct):
    """The settings that say what a detector is."""

    backbone: dict[str, Any]  # name and options
    detector: dict[str, Any] = {}
    detectron2: dict[str, Any] = {}


class _Metadata(msgspec.Struct):
    """What a file of weights says beside its tensors."""

    detector: _Network
    class_names: list[str]
    category_ids: list[int]
    input_format: InputFormat
    initial: WeightsFile | None = None


def _parts_of(config: DetectionConfig) -> dict[str, Any]:
    return {
        "backbone": {"name": config.backbone.name, "options": dict(config.backbone.options)},
        "detector": asdict(config.detector),
        "detectron2": flatten(config.detectron2),
    }


def _read_metadata(metadata: dict[str, Any], path: str | Path) -> tuple[_Metadata, DetectionConfig]:
    """What the file says, and the settings of the network in it."""
    try:
        told = msgspec.convert(metadata, _Metadata)
        if len(told.class_names) != len(told.category_ids):
            raise ValueError(
                f"{len(told.class_names)} class names for {len(told.category_ids)} category ids"
            )
        _check_pixels(told.input_format)
        own = DetectionConfig(
            backbone=BackboneSettings(**told.detector.backbone),
            detector=DetectorSettings(**told.detector.detector),
            detectron2=told.detector.detectron2,
        )
    except (ValueError, TypeError) as error:  # msgspec's are ValueErrors
        raise ValueError(f"{path}: its metadata are damaged: {error}") from None
    return told, own


def _check_pixels(given: InputFormat) -> None:
    check_choice("channel_order", given.channel_order, ("RGB", "BGR"))
    if not np.isfinite([given.mean, given.std]).all() or min(given.std) <= 0:
        raise ValueError(f"mean {given.mean} and std {given.std} are none of pixels")


def _fit(own: DetectionConfig, asked: DetectionConfig | None, path: str | Path) -> DetectionConfig:
    """The settings `own` of the network in a file, with what `asked` says of its use.

    Raises:
        ValueError: they describe another network.
    """
    if asked is None:
        return own
    keys = flatten(asked.detectron2)
    wanted = {
        "backbone.name": asked.backbone.name,
        **{f"backbone.options.{key}": value for key, value in asked.backbone.options.items()},
        "detector.architecture": asked.detector.architecture,
        "detector.fpn_channels": asked.detector.fpn_channels,
        # Thresholds and numbers of proposals at test time are set at evaluation.
        **{
            f"detectron2.{key}": value
            for key, value in keys.items()
            if key.startswith("MODEL.") and not key.endswith("_TEST")
        },
    }
    parts = _parts_of(own)
    held = flatten(parts) | {f"detectron2.{k}": v for k, v in parts["detectron2"].items()}
    differ = [
        f"{key} is {held.get(key)!r} there and {value!r} in the settings"
        for key, value in wanted.items()
        if held.get(key) != value
    ]
    if differ:
        raise ValueError(f"{path} is another detector: {'; '.join(differ)}")
    return replace(
        asked,
        backbone=replace(asked.backbone, options=own.backbone.options),
        detector=own.detector,  # norm and frozen stages are set at training
        detectron2={**own.detectron2, **keys},
    )


def backbone_input_size(min_size: int) -> tuple[int, int, int]:
    """(3, H, W) of a 4:3 image at evaluation, padded to what the pyramid needs: 800 x 1088."""
    return 3, -(-min_size // 32) * 32, -(-(min_size * 4 // 3) // 32) * 32
