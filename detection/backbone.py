"""The suite's backbones in Detectron2, from a CfgNode or a LazyConfig.

    from detection import register_backbones
    register_backbones()
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet50_fpn_backbone"

A backbone obeys the keys Detectron2 has for its own ResNets: MODEL.BACKBONE.FREEZE_AT,
MODEL.RESNETS.NORM, .OUT_FEATURES and .STRIDE_IN_1X1 (where it is False), MODEL.FPN.*. What
Detectron2 has no key for is in MODEL.SEBENCH, which `add_sebench_config` adds: OPTIONS of the
network, WEIGHTS it starts from, loaded strictly, and NAME for networks without a builder of their
own (`build_sebench_fpn_backbone` builds what NAME says, e.g. timm:resnet50). By LazyConfig:

    model.backbone.bottom_up = L(build_detectron2_backbone)(
        name="se_resnet50", norm="FrozenBN", freeze_at=2, out_features=["res2", ..., "res5"])

Source: Detectron2's modeling/backbone/{backbone,build,fpn,resnet}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling import Backbone as DetectorBackbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from backbones import (
    Backbone,
    BackboneSettings,
    InputFormat,
    build_backbone,
    list_backbones,
    load_weights,
    read_weights,
)
from backbones.result import WeightsFile
from backbones.weights.load import Weights, fit_backbone

from .config import NORMS

STAGES = ("res2", "res3", "res4", "res5")
GROUPS = 32  # of GroupNorm, as in Detectron2


class Detectron2Backbone(DetectorBackbone):
    """A backbone of this suite behind Detectron2's interface.

    The network itself is `stages`, the same module a classifier has: same input, same weights,
    same features to the bit. Detectron2Backbone after the last one asked for are dropped, so that every
    parameter gets a gradient.
    """

    def __init__(
        self,
        stages: Backbone,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 2,
        norm: str = "FrozenBN",
    ) -> None:
        """Take over a network of this suite; see `build_detectron2_backbone`."""
        super().__init__()
        names = list(stages.feature_specs)
        unknown = [name for name in out_features if name not in names]
        if unknown or not out_features:
            raise ValueError(f"out_features {list(out_features)}: choose from {', '.join(names)}")
        if not 0 <= freeze_at <= len(names):
            raise ValueError(f"freeze_at {freeze_at}: choose 0 (none) to {len(names)} (all)")
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r}: choose from {', '.join(NORMS)}")
        last = max(names.index(name) for name in out_features)
        _drop(stages, names[last + 1 :])
        self.stages = stages
        self._out_features = list(out_features)
        specs = stages.feature_specs
        self._out_feature_channels = {name: specs[name].channels for name in out_features}
        self._out_feature_strides = {name: specs[name].stride for name in out_features}
        for index, name in enumerate(specs):
            modules = stages.stage_modules(name)
            frozen = index < freeze_at
            _convert_norms(stages, modules, "FrozenBN" if frozen else norm)
            if frozen:
                for module in modules:
                    module.requires_grad_(False)
        self.loaded: WeightsFile | None = None  # what it started from
        self._started = False
        self.register_load_state_dict_pre_hook(_require_every_tensor)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to {name: (N, channels, H / stride, W / stride)}."""
        if self.training and not self._started:
            _refuse_untrained_frozen_norms(self.stages)
            self._started = True
        features = self.stages(x)
        return {name: features[name] for name in self._out_features}


def build_detectron2_backbone(
    name: str,
    options: Mapping[str, Any] | None = None,
    out_features: Sequence[str] = STAGES,
    freeze_at: int = 2,
    norm: str = "FrozenBN",
    weights: str | Weights | None = None,
    allow_missing: Sequence[str] = (),
) -> Detectron2Backbone:
    """Build a backbone of this suite for a detector; the form for a LazyConfig.

    Args:
        name: as `sebench list backbones` has it.
        options: of the network, e.g. {"reduction": 8, "stride_in_1x1": False}.
        out_features: stages that are returned.
        freeze_at: stages, from the stem on, whose parameters (those of SE too) and statistics stay
            as they are: 0 none, 1 the stem, 2 the stem and res2. Their norms become FrozenBN.
        norm: of the other stages: FrozenBN, BN, SyncBN, or GN (32 groups, drawn anew).
        weights: a file in any format the suite knows, or what `read_weights` returned, loaded
            strictly; its classifier is dropped, and its demands on the options (stride, pool) are
            met.
        allow_missing: patterns of tensors (`backbone.res5.*`) that the file may lack.

    Raises:
        ValueError: an unknown name, option or stage; weights that do not fit.
    """
    opened = read_weights(weights, name) if isinstance(weights, str) else weights
    settings = BackboneSettings(
        name,
        options=dict(options or {}),
        weights=opened.path if opened else None,
        allow_missing=list(allow_missing),
    )
    stages = build_backbone(name, **fit_backbone(settings, opened).options)
    strides = [spec.stride for spec in stages.feature_specs.values()]
    if strides[-4:] != [4, 8, 16, 32]:
        raise ValueError(f"backbone {name}: a detector needs strides 4, 8, 16, 32, not {strides}")
    if opened and norm == "GN":
        raise ValueError(
            f"weights {opened.path} hold batch norms, norm GN would drop them; choose FrozenBN, BN "
            "or SyncBN, or train from scratch"
        )
    loaded = load_weights(stages, opened, allow_missing=allow_missing) if opened else None
    backbone = Detectron2Backbone(stages, out_features, freeze_at, norm)
    backbone.loaded = loaded
    return backbone


def register_backbones() -> None:
    """Put every backbone with strides 4 to 32 into Detectron2's BACKBONE_REGISTRY.

    For `se_resnet50`, say: `build_se_resnet50_backbone` gives its stages,
    `build_se_resnet50_fpn_backbone` p2 .. p6 and `build_retinanet_se_resnet50_fpn_backbone`
    p3 .. p7, as Detectron2 names its own. Safe to call twice, and adds what was registered with
    `backbones.register_backbone` since.
    """
    builders = {
        "build_{}_backbone": _build_bare,
        "build_{}_fpn_backbone": _build_fpn,
        "build_retinanet_{}_fpn_backbone": _build_retinanet_fpn,
    }
    names = {info.name: info.name for info in list_backbones() if info.detection is None}
    for word, name in {**names, "sebench": None}.items():
        for pattern, build in builders.items():
            if pattern.format(word) not in BACKBONE_REGISTRY:
                BACKBONE_REGISTRY.register(_named(pattern.format(word), build, name))


def add_sebench_config(cfg: CfgNode) -> None:
    """Add MODEL.SEBENCH: NAME, OPTIONS, WEIGHTS and ALLOW_MISSING, as `build_detectron2_backbone` has them."""
    cfg.MODEL.SEBENCH = CfgNode()
    cfg.MODEL.SEBENCH.NAME = ""
    cfg.MODEL.SEBENCH.ALLOW_MISSING = []
    cfg.MODEL.SEBENCH.OPTIONS = CfgNode(new_allowed=True)
    cfg.MODEL.SEBENCH.WEIGHTS = ""


def use_weights(cfg: CfgNode, path: str) -> None:
    """Let the backbone start from `path`, and the pixels be as those weights know them."""
    weights = read_weights(path)
    if "SEBENCH" not in cfg.MODEL:
        add_sebench_config(cfg)
    cfg.MODEL.SEBENCH.WEIGHTS = str(path)
    # Not only the file given: a MODEL.WEIGHTS left from a base config would be loaded over it.
    cfg.MODEL.WEIGHTS = ""
    if weights.input_format is not None:
        cfg.INPUT.FORMAT = weights.input_format.channel_order
        cfg.MODEL.PIXEL_MEAN = list(weights.input_format.mean)
        cfg.MODEL.PIXEL_STD = list(weights.input_format.std)


@contextmanager
def opened_weights(path: str | None, weights: Weights | None) -> Iterator[None]:
    """Let what Detectron2 builds from a config inside take weights that were read already."""
    token = _OPENED.set((path, weights))
    try:
        yield
    finally:
        _OPENED.reset(token)


_OPENED: ContextVar[tuple[str | None, Weights | None]] = ContextVar("opened", default=(None, None))


def check_input_format(given: InputFormat, weights: InputFormat, path: str) -> None:
    """Refuse pixels in another order or scale than the weights know."""
    for what in ("channel_order", "mean", "std"):
        one, other = getattr(given, what), getattr(weights, what)
        if one != other and (isinstance(one, str) or not _close(one, other)):
            raise ValueError(
                f"the detector feeds {_words(given)}, but {path} was trained on {_words(weights)}: "
                "it would load and score too low; let the input follow the weights"
            )


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) < 0.01 for a, b in zip(one, other, strict=True))


def _words(format: InputFormat) -> str:
    return f"{format.channel_order} with mean {list(format.mean)} and std {list(format.std)}"


# What the registry calls ---------------------------------------------------------------------------


def _named(
    name: str, build: Callable[..., DetectorBackbone], backbone: str | None
) -> Callable[..., Any]:
    """A function of that name, as the registry goes by; None leaves the network to the config."""

    def registered(cfg: CfgNode, input_shape: ShapeSpec) -> DetectorBackbone:
        chosen = backbone or (cfg.MODEL.get("SEBENCH") or {}).get("NAME")
        if not chosen:
            raise ValueError(f"{name}: MODEL.SEBENCH.NAME says which backbone, and is empty")
        return build(chosen, cfg, input_shape)

    registered.__name__ = registered.__qualname__ = name
    return registered


def _build_bare(name: str, cfg: CfgNode, input_shape: ShapeSpec) -> Detectron2Backbone:
    if input_shape.channels != 3:
        raise ValueError(f"backbone {name}: made for 3 channels, not {input_shape.channels}")
    resnets = cfg.MODEL.RESNETS
    if resnets.RES5_DILATION != 1 or any(resnets.DEFORM_ON_PER_STAGE):
        raise ValueError(
            f"backbone {name}: has no dilated or deformable convolutions; leave "
            "MODEL.RESNETS.RES5_DILATION at 1 and DEFORM_ON_PER_STAGE all False"
        )
    if cfg.MODEL.WEIGHTS.endswith(".safetensors"):
        raise ValueError(
            f"MODEL.WEIGHTS={cfg.MODEL.WEIGHTS}: Detectron2 reads no safetensors; a network of this "
            "suite goes there by detection.use_weights(cfg, FILE), a whole detector is loaded by "
            "detection.load_detector(FILE)"
        )
    node = cfg.MODEL.get("SEBENCH") or {}
    options = dict(node.get("OPTIONS") or {})
    if not resnets.STRIDE_IN_1X1:  # True is the default and says nothing
        options.setdefault("stride_in_1x1", False)
    path = node.get("WEIGHTS") or None
    opened, weights = _OPENED.get()
    if path != opened:
        weights = read_weights(path, name) if path else None
    if weights is not None and weights.input_format is not None:
        mean, std = tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)
        given = InputFormat(cfg.INPUT.FORMAT, mean, std)
        check_input_format(given, weights.input_format, weights.path)
    freeze_at, allow_missing = cfg.MODEL.BACKBONE.FREEZE_AT, node.get("ALLOW_MISSING") or ()
    return build_detectron2_backbone(
        name, options, resnets.OUT_FEATURES, freeze_at, resnets.NORM, weights, allow_missing
    )


def _build_fpn(name: str, cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    return _with_fpn(_build_bare(name, cfg, input_shape), cfg, LastLevelMaxPool())


def _build_retinanet_fpn(name: str, cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    stages = _build_bare(name, cfg, input_shape)
    channels = stages.output_shape()["res5"].channels
    return _with_fpn(stages, cfg, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _with_fpn(stages: Detectron2Backbone, cfg: CfgNode, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(stages, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)


# Detectron2Backbone --------------------------------------------------------------------------------------------


def _drop(stages: Backbone, names: Sequence[str]) -> None:
    """Take the last stages `names` off, or see to it that they want no gradient."""
    one_after_the_other = type(stages).forward is Backbone.forward
    for name in names:
        for module in stages.stage_modules(name):
            module.requires_grad_(False)
        if one_after_the_other:
            delattr(stages, name)
            stages.feature_specs = {k: v for k, v in stages.feature_specs.items() if k != name}


# Norms ---------------------------------------------------------------------------------------------


def _convert_norms(root: nn.Module, within: Sequence[nn.Module], norm: str) -> None:
    """Exchange the batch norms inside the modules `within` of `root`."""
    inside = {id(module) for top in within for module in top.modules()}
    for prefix, parent in list(root.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and id(child) in inside:
                setattr(parent, name, _converted(child, norm, f"{prefix}.{name}"))


def _converted(batch_norm: nn.BatchNorm2d, norm: str, name: str) -> nn.Module:
    if hasattr(batch_norm, "act"):  # timm's norms have drop and activation inside
        plain = nn.BatchNorm2d(batch_norm.num_features, batch_norm.eps, batch_norm.momentum)
        plain.load_state_dict(batch_norm.state_dict())
        inside = [batch_norm.get_submodule(part) for part in ("drop", "act")]
        return nn.Sequential(_converted(plain, norm, name), *inside)
    if norm == "FrozenBN":
        return FrozenBatchNorm2d.convert_frozen_batchnorm(batch_norm)
    if norm == "SyncBN":
        return nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm)
    if norm == "GN":
        channels = batch_norm.num_features
        if channels % GROUPS:
            raise ValueError(
                f"norm GN needs channels in multiples of {GROUPS}; {name} has {channels}"
            )
        return nn.GroupNorm(GROUPS, channels)
    return batch_norm


def _require_every_tensor(
    backbone: Detectron2Backbone, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Refuse a state dict that holds the backbone in part or under other names.

    Detectron2's checkpointer loads what it can match of MODEL.WEIGHTS and warns of the rest: the
    detector would train from random weights, or from some layers of a network without its norms.
    """
    wanted = [prefix + name for name in backbone.state_dict() if not name.endswith(_COUNTER)]
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ValueError(
            f"these weights hold {len(wanted) - len(missing)} of the {len(wanted)} tensors of the "
            f"backbone under the detector's names (not {missing[0]}, ...): let the backbone start "
            "from them by detection.use_weights(cfg, FILE), which sets MODEL.SEBENCH.WEIGHTS, and "
            "leave MODEL.WEIGHTS empty"
        )


_COUNTER = "num_batches_tracked"  # of norms; Detectron2's files leave it out


def _refuse_untrained_frozen_norms(stages: Backbone) -> None:
    """A frozen norm that never saw statistics is the identity, and the network diverges."""
    frozen = [
        (name, module)
        for name, module in stages.named_modules()
        if isinstance(module, FrozenBatchNorm2d)
    ]
    if frozen and all(_is_untrained(module) for _, module in frozen):
        raise ValueError(
            f"the backbone has no trained weights, but frozen norms ({frozen[0][0]} and "
            f"{len(frozen) - 1} more): without statistics they do nothing and training diverges; "
            "load weights, or train from scratch with norm BN, SyncBN or GN and freeze_at 0 "
            "(MODEL.RESNETS.NORM, MODEL.BACKBONE.FREEZE_AT)"
        )


def _is_untrained(norm: FrozenBatchNorm2d) -> bool:
    return bool(
        (norm.running_mean == 0).all()
        and torch.allclose(norm.running_var, torch.ones_like(norm.running_var), atol=1e-4)
        and (norm.bias == 0).all()
    )
