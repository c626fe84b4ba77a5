"""Networks of timm and torchvision behind the promise of a backbone: `timm:NAME`, `torchvision:NAME`.

A library's network is run once on shapes alone, and seen to be a chain: the output of each part is
the input of the next. Cut where the stride of the maps doubles, the chain gives the stages; what
comes after the last stage is the head. Nothing of the network is reimplemented, so features and
logits are the library's to the bit.
"""

import functools
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backbones.config import BackboneInfo
from backbones.cost import count_everything
from backbones.features import Backbone, FeatureSpec, Network
from backbones.libraries import build_model, input_format_of, twin

_PROBE = 1024  # pixels: large, so that what unpadded convolutions cut off does not blur a stride
# Modules that are SE, in either library.
_SE_MODULES = {"SEModule", "SqueezeExcite", "SqueezeExcitation", "EffectiveSEModule"}


@dataclass(frozen=True)
class Plan:
    """How a library's network is cut."""

    units: tuple[tuple[str, str], ...]  # (stage, dotted name of a module), in the order they run
    specs: dict[str, FeatureSpec]
    detection: str | None


class ExternalBackbone(Backbone):
    """The stages of a library's network; `build_head` gives the rest of it.

    Raises:
        ValueError: an unknown name (with near matches) or option, or a network that is not a chain
            of convolutional stages.
    """

    def __init__(self, name: str, /, **options: Any) -> None:
        super().__init__()
        self.name, self.options = name, options
        plan = _plan(name, tuple(sorted(options.items())))
        model = build_model(name, options)
        self.feature_specs = dict(plan.specs)
        self.units = plan.units
        for stage in plan.specs:
            units = [unit for place, unit in plan.units if place == stage]
            modules = OrderedDict((_key(unit), model.get_submodule(unit)) for unit in units)
            self.add_module(stage, nn.Sequential(modules))

    def build_head(self, num_classes: int, dropout: float = 0.0) -> nn.Module:
        """Build what the library's network does after its last stage: features -> logits."""
        return ExternalHead(self, num_classes, dropout)

    def rename(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring tensors under the library's names to this backbone's and its head's."""
        return _replace_prefixes(tensors, self._places())

    def library_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undo `rename`."""
        return _replace_prefixes(tensors, {ours: theirs for theirs, ours in self._places().items()})

    def _places(self) -> dict[str, str]:
        """How names begin in the library -> how they begin here."""
        units = {f"{unit}.": f"backbone.{stage}.{_key(unit)}." for stage, unit in self.units}
        return {**units, "": "head.model."}


def _replace_prefixes(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        renamed[prefixes[prefix] + name[len(prefix) :]] = tensor
    return renamed


class ExternalHead(nn.Module):
    """What a library's network does after its last stage.

    It is the network with stage modules replaced by identities.
    """

    def __init__(self, backbone: ExternalBackbone, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.stage = list(backbone.feature_specs)[-1]
        self.model = build_model(backbone.name, backbone.options, num_classes)
        for _, unit in backbone.units:
            self.model.set_submodule(unit, nn.Identity())
        drops = [module for module in self.model.modules() if isinstance(module, nn.Dropout)]
        if hasattr(self.model, "drop_rate"):  # timm's, where it is not a module
            setattr(self.model, "drop_rate", dropout)  # noqa: B010 - a plain number, not a module
        elif dropout and not drops:
            raise ValueError(f"{backbone.name} has no dropout before its classifier; set it to 0")
        for drop in drops:
            drop.p = dropout

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map features to logits (N, num_classes)."""
        return self.model(features[self.stage])


@functools.cache
def describe(name: str) -> BackboneInfo:
    """Describe a library's network with its 1000 classes. Raises ValueError as `ExternalBackbone`."""
    with torch.device("meta"):
        network = Network(ExternalBackbone(name), num_classes=1000)
    side = input_format_of(name).size or 224
    is_se = any(type(module).__name__ in _SE_MODULES for module in network.modules())
    family, detection = name.partition(":")[0], _plan(name, ()).detection
    counted = count_everything(network, side)
    return BackboneInfo(name, family, twin(name), is_se, **counted, detection=detection)


# How a network is cut -----------------------------------------------------------------------------


@functools.cache
def _plan(name: str, options: tuple[tuple[str, Any], ...]) -> Plan:
    """Run the network on shapes alone and cut its chain of modules at the strides 4, 8, 16, 32."""
    with torch.device("meta"):
        model = build_model(name, dict(options)).eval()
        image = torch.empty(2, 3, _PROBE, _PROBE)
    chain = _chain(model, image, name)
    strides = [2 ** round(math.log2(_PROBE / out.shape[-1])) for _, out in chain]
    last = len(chain)  # units of the backbone
    info = getattr(model, "feature_info", None)
    if info:  # timm says where its last stage ends; a 1x1 convolution may follow, of the head
        stage = (info if isinstance(info, list) else info.info)[-1]["module"]
        inside = [i for i, (unit, _) in enumerate(chain) if f"{unit}.".startswith(f"{stage}.")]
        last = inside[-1] + 1 if inside else last
    last = min(last, _classifier_start(model, name, dict(options), chain))
    kept = [i for i in range(last) if strides[i] <= 32]
    ends = {strides[i]: i for i in kept if strides[i] >= 4}
    if not ends:
        raise ValueError(f"{name} has no maps at stride 4 or above: not a network of stages")
    stem_end = max((i for i in kept if strides[i] < min(ends)), default=0)
    while stem_end + 1 < ends[min(ends)] and _is_weightless(model, chain[stem_end + 1][0]):
        stem_end += 1  # the max pool
    specs = {"stem": FeatureSpec(chain[stem_end][1].shape[1], strides[stem_end])}
    stages = ["stem"] * (stem_end + 1)
    for stride, end in sorted(ends.items()):
        stage = f"res{int(math.log2(stride))}"
        stages += [stage] * (end + 1 - len(stages))
        specs[stage] = FeatureSpec(chain[end][1].shape[1], stride)
    detection = None
    found = [specs[stage].stride for stage in specs if stage != "stem"]
    sizes = [chain[end][1].shape[-1] for _, end in sorted(ends.items())]
    if found != [4, 8, 16, 32]:
        detection = f"its stages have strides {found}, a detector needs 4, 8, 16, 32"
    elif sizes != [_PROBE // stride for stride in found]:
        detection = "its unpadded convolutions make maps smaller than a feature pyramid adds up"
    units = tuple((stage, unit) for stage, (unit, _) in zip(stages, chain, strict=False))
    return Plan(units, specs, detection)


def _chain(model: nn.Module, image: Tensor, name: str) -> list[tuple[str, Tensor]]:
    """Return the modules that run one after the other while there are maps, with their outputs.

    Children of the network, and children of its `nn.Sequential`s.
    """
    runs: list[tuple[str, Any, int, Any, int]] = []  # unit, input and output with their versions
    hooks, before = [], {}

    def entering(unit: str) -> Any:
        def hook(module: nn.Module, inputs: tuple) -> None:
            before[unit] = (inputs[0], _version(inputs[0])) if inputs else (None, 0)

        return hook

    def leaving(unit: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            runs.append((unit, *before[unit], output, _version(output)))

        return hook

    for unit in _units(model):
        module = model.get_submodule(unit)
        hooks += [
            module.register_forward_pre_hook(entering(unit)),
            module.register_forward_hook(leaving(unit)),
        ]
    with torch.no_grad():
        try:
            model(image)
        except Exception as error:
            raise ValueError(
                f"{name} cannot serve as a backbone here: it takes no {_PROBE}-pixel images as a"
                f" convolutional network does ({error})"
            ) from error
    for hook in hooks:
        hook.remove()
    chain: list[tuple[str, Tensor]] = []
    x, version = image, _version(image)
    for unit, given, given_version, out, out_version in runs:
        is_map = isinstance(out, Tensor) and out.ndim == 4 and out.shape[-1] > 1
        if not is_map or given is not x or (chain and given_version != version):
            break
        chain.append((unit, out))
        x, version = out, out_version
    if not chain or chain[-1][1].shape[-1] > _PROBE // 8:
        raise ValueError(
            f"{name} is not a chain of convolutional stages (after"
            f" {chain[-1][0] if chain else 'its input'}); it cannot serve as a backbone here"
        )
    return chain


def _classifier_start(
    model: nn.Module, name: str, options: dict[str, Any], chain: list[tuple[str, Tensor]]
) -> int:
    """Return the first unit of the part whose tensors depend on the number of classes."""
    with torch.device("meta"):
        other = build_model(name, options, num_classes=7)
    for unit, _ in chain:
        shapes = [
            [tensor.shape for tensor in network.get_submodule(unit).state_dict().values()]
            for network in (model, other)
        ]
        if shapes[0] != shapes[1]:
            part = unit.partition(".")[0]
            return next(i for i, (u, _) in enumerate(chain) if u.partition(".")[0] == part)
    return len(chain)


def _units(model: nn.Module) -> list[str]:
    """Name the children of a network, and in place of a Sequential those of it."""
    units = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential) and len(child):
            units += [f"{name}.{inner}" for inner, _ in child.named_children()]
        else:
            units.append(name)
    return units


def _version(value: Any) -> int:
    """Count how often a tensor was written in place, as autograd does.

    Torch has no public way to ask. Without it a network that changes a map in place, after it was
    used, would pass for a chain; `test_external.py` compares logits with the library's.
    """
    return value._version if isinstance(value, Tensor) else 0


def _is_weightless(model: nn.Module, unit: str) -> bool:
    module = model.get_submodule(unit)
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def _key(unit: str) -> str:
    return unit.replace(".", "_")
