"""Formats of published weights: how each names its tensors, and what network and input it is for.

The names in a file tell who wrote it. They do not tell where its network strides or how it pools:
two networks may take the same tensors and differ in every output. So each format declares, beside
its names, the structure and the input that its weights were trained with.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.config import BackboneSettings, InputFormat
from backbones.weights.layer_names import (
    CAFFE,
    CAFFE_DEEP,
    DETECTRON2,
    MMPRETRAIN,
    MOSKOMULE,
    MSRA,
    TIMM_DEEP,
    TIMM_LEGACY,
    TORCHVISION,
    expand,
)
from backbones.zoo import PAIRS, Pair

Tensors = Mapping[str, Tensor]

_OF_DETECTORS = ("proposal_generator.", "roi_heads.", "backbone.fpn_", "head.cls_", "pixel_mean")
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class WeightFormat:
    """How a format names tensors, and what its weights were trained in."""

    name: str
    title: str
    marker: str  # a pattern that some name has in this format, and none in the formats after it
    # A table of `layer_names`; or one of our networks and, for `build_model`, a library's, whose
    # layers have the same order.
    names: Mapping[str, str] | tuple[str, str]
    input_format: InputFormat
    # Options that the network must have, or what tells them from tensors in our names.
    options: Mapping[str, Any] | Callable[[Tensors], dict[str, Any]]
    # Makes the file's tensors into `LAYER.weight`, `LAYER.running_mean`, ... where they are not.
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    convolutional_gate: bool = True  # the matrices of SE are kept as 1x1 convolutions

    @property
    def network(self) -> str | None:
        """The one network of ours that it is for; None: residual ones."""
        return self.names[0] if isinstance(self.names, tuple) else None

    @functools.cached_property
    def theirs(self) -> dict[str, str]:
        """Our name of every layer -> theirs."""
        if not isinstance(self.names, tuple):
            return dict(expand(self.names))
        from backbones.build import build_network
        from backbones.libraries import build_model

        with torch.device("meta"):
            networks = build_network(self.names[0]), build_model(self.names[1], {})
        ours, theirs = (list(_layers(network).items()) for network in networks)
        assert [shapes for _, shapes in ours] == [shapes for _, shapes in theirs], self.name
        return {one: other for (one, _), (other, _) in zip(ours, theirs, strict=True)}

    def structure(self, tensors: Tensors) -> dict[str, Any]:
        """Options that the network must have.

        Raises:
            ValueError: it is none that the suite has.
        """
        return self.options(tensors) if callable(self.options) else dict(self.options)


def recognize(tensors: Tensors) -> WeightFormat | None:
    """Return the format that names its tensors so, or None."""
    for weight_format in FORMATS:
        if any(re.search(weight_format.marker, name) for name in tensors):
            return weight_format
    return None


def to_ours(tensors: Tensors, weight_format: WeightFormat) -> dict[str, Tensor]:
    """Rename tensors to `backbone.*` and `head.*`, matrices as matrices.

    Names that are not the format's stay, so that strict loading reports them. The batch counter of
    a norm, which old and frozen ones lack and no output depends on, is added as zero.
    """
    ours_of = {theirs: ours for ours, theirs in weight_format.theirs.items()}
    renamed = {}
    for name, tensor in weight_format.prepare(tensors).items():
        layer, _, leaf = name.rpartition(".")
        ours = f"{ours_of[layer]}.{leaf}" if layer in ours_of and leaf in _LEAVES else name
        if re.search(r"(\.se\.fc\d|^head\.fc)\.weight$", ours) and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        renamed[ours] = tensor
    return with_counters(renamed)


def with_counters(tensors: Tensors) -> dict[str, Tensor]:
    """Add the batch counter of every norm that lacks it, as zero."""
    added = dict(tensors)
    for name in tensors:
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            added.setdefault(counter, torch.tensor(0))
    return added


def from_ours(tensors: Tensors, weight_format: WeightFormat) -> dict[str, Tensor]:
    """Rename our tensors of a residual network to those of a format that `to_ours` reads.

    Raises:
        ValueError: a tensor has no name there, e.g. SE's in plain ResNets.
    """
    theirs_of = weight_format.theirs
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in theirs_of:
            raise ValueError(f"{weight_format.title} have no name for {name}")
        if re.search(r"\.se\.fc\d\.weight$", name) and weight_format.convolutional_gate:
            tensor = tensor[:, :, None, None]
        renamed[f"{theirs_of[layer]}.{leaf}"] = tensor
    return renamed


def fitting_network(
    tensors: Tensors, weight_format: WeightFormat, structure: Mapping[str, Any]
) -> BackboneSettings | None:
    """Find the network of the table that takes these tensors (in our names), and its options.

    Args:
        structure: options that are known to be demanded; those a network cannot change are left out.
    """
    depths = _depths(tensors)
    has_gates = any(".se." in name for name in tensors)
    given = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("backbone.")}
    for pair in PAIRS:
        if weight_format.network not in (None, pair.plain):
            continue
        if weight_format.network is None and pair.arguments.get("layers") != depths:
            continue
        name = pair.se if has_gates else pair.plain
        options = {key: value for key, value in structure.items() if key in pair.options}
        if has_gates:
            options |= _gate_options(tensors, pair)
        if backbone_shapes(name, **options) == given:
            return BackboneSettings(name, options)
    return None


def backbone_shapes(name: str, **options: Any) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a backbone's tensors by name, or None where the options do not fit."""
    hashable = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return _shapes(name, tuple(sorted(hashable.items())))


@functools.lru_cache(maxsize=64)
def _shapes(name: str, options: tuple[tuple[str, Any], ...]) -> dict[str, tuple[int, ...]] | None:
    from backbones.build import build_backbone

    try:
        with torch.device("meta"):
            backbone = build_backbone(name, **dict(options))
    except ValueError:
        return None
    return {f"backbone.{n}": tuple(t.shape) for n, t in backbone.state_dict().items()}


def _layers(module: torch.nn.Module) -> dict[str, list[torch.Size]]:
    """Return every layer that has tensors, in order, with their shapes."""
    layers: dict[str, list[torch.Size]] = {}
    for name, tensor in module.state_dict().items():
        layers.setdefault(name.rpartition(".")[0], []).append(tensor.shape)
    return layers


def _depths(tensors: Tensors) -> tuple[int, ...]:
    """Return the number of blocks of each residual stage, e.g. (3, 4, 6, 3); () without stages."""
    depths: dict[int, int] = {}
    for name in tensors:
        if match := re.match(r"backbone\.res(\d)\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    return tuple(depths[stage] for stage in sorted(depths))


def _gate_options(tensors: Tensors, pair: Pair) -> dict[str, Any]:
    """Read reduction, bias and stages of SE off its matrices, where they are not the defaults."""
    options: dict[str, Any] = {}
    gates = {n: t for n, t in tensors.items() if n.endswith(".se.fc1.weight") and t.ndim == 2}
    if not gates:
        return options
    hidden, channels = next(iter(gates.values())).shape
    if channels // hidden != pair.se_defaults.get("reduction", 16):
        options["reduction"] = channels // hidden
    if not any(name.endswith(".se.fc1.bias") for name in tensors):
        options["se_bias"] = False
    stages = sorted({int(match[1]) for n in gates if (match := re.match(r"backbone\.res(\d)", n))})
    if len(stages) != len(_depths(tensors)):
        options["se_stages"] = tuple(stages)
    return options


def _strided_as_senet(tensors: Tensors) -> dict[str, Any]:
    """SE-ResNet strides in its first 1x1; SE-ResNeXt and SENet-154, both grouped, in the 3x3."""
    first, second = (tensors.get(f"backbone.res2.0.conv{i}.weight") for i in (1, 2))
    grouped = first is not None and second is not None and second.shape[1] != first.shape[0]
    if "backbone.res2.0.conv3.weight" not in tensors:
        raise ValueError(
            "these are timm's legacy_seresnet18 or 34, whose basic blocks have a ReLU before SE; the"
            " paper's, and ours, have not. Use them as timm:legacy_seresnet18 or 34"
        )
    return {"stride_in_1x1": not grouped, "stem_pool": "ceil"}


@functools.cache
def caffe_labels() -> tuple[int, ...]:
    """Return the 1-based label of each class in the original Caffe models of SENet.

    Source: the file says.
    """
    lines = Path(__file__).with_name("caffe_labels.txt").read_text(encoding="utf-8").splitlines()
    return tuple(int(label) for line in lines if line[:1] != "#" for label in line.split())


def _from_caffe(tensors: Tensors) -> Tensors:
    """Turn Caffe's blobs `LAYER/0`, `LAYER/1`, ... into named tensors, classes in the usual order.

    A BatchNorm layer holds sums and the number to divide them by; the Scale layer after it holds
    weight and bias.
    """
    result = {}
    for name, tensor in tensors.items():
        layer, index = name[:-2], name[-1]
        if not re.search(r"[/.][012]$", name):
            result[name] = tensor
        elif layer.endswith("/bn") and index in "01":
            factor = tensors[f"{name[:-1]}2"].reshape(())
            values = tensor / factor if factor else torch.zeros_like(tensor)
            result[layer + (".running_mean" if index == "0" else ".running_var")] = values.flatten()
        elif not layer.endswith("/bn"):
            if layer == "classifier":
                tensor = tensor.reshape(-1, tensor.shape[-1]) if index == "0" else tensor.flatten()
                if len(tensor) == len(caffe_labels()):
                    tensor = tensor[torch.tensor(caffe_labels()) - 1]
            elif index == "1":
                tensor = tensor.flatten()
            leaf = ".weight" if index == "0" else ".bias"
            result[layer.removesuffix("/scale") + leaf] = tensor
    return result


def _from_msra(tensors: Tensors) -> Tensors:
    """Turn Caffe2's `LAYER_w`, `LAYER_bn_s` into named tensors.

    MSRA's norms are folded to scale and bias. They get the statistics that Detectron2 gives them,
    mean 0 and variance 1, which with the epsilon of a norm scale by 1 - 5e-6.
    """
    leaves = {"w": "weight", "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
    leaves |= {"rm": "running_mean", "riv": "running_var"}
    result = {}
    for name, tensor in tensors.items():
        if name.endswith("_momentum"):
            continue
        layer, _, leaf = name.rpartition("_")
        if leaf not in leaves:
            result[name] = tensor
            continue
        layer = {"pred": "fc1000", "conv1_bn": "res_conv1_bn"}.get(layer, layer)
        result[f"{layer}.{leaves[leaf]}"] = tensor
        if leaf == "s" and f"{name[:-1]}rm" not in tensors:
            result[f"{layer}.running_mean"] = torch.zeros_like(tensor)
            result[f"{layer}.running_var"] = torch.ones_like(tensor)
    return result


def _without_auxiliary(tensors: Tensors) -> Tensors:
    """Drop the second classifier that torchvision's Inception-v3 trains with."""
    return {name: t for name, t in tensors.items() if not name.startswith("AuxLogits.")}


def _from_detectron2(tensors: Tensors) -> Tensors:
    """Drop the path to the backbone inside a detector; a classifier has one of two names.

    A detector with a C4 head keeps res5 there. What else a detector has counts as a head.
    """
    is_detector = any(name.startswith(_OF_DETECTORS) for name in tensors)
    result = {}
    for name, tensor in tensors.items():
        bare = re.sub(
            r"^(backbone\.bottom_up\.|backbone\.|roi_heads\.)(?=stem\.|res\d\.)", "", name
        )
        if is_detector and not re.match(r"(stem|res\d)\.", bare):
            bare = f"head.{name}"
        result[re.sub(r"^stem\.fc\.", "linear.", bare)] = tensor
    return result


_RGB = InputFormat(size=224, crop=0.875)
_RGB_BICUBIC = InputFormat(size=224, crop=0.875, interpolation="bicubic")
_INCEPTION = InputFormat(
    mean=(127.5,) * 3, std=(127.5,) * 3, interpolation="bicubic", size=299, crop=0.8975
)
# Of the TensorFlow and torchvision weights; Gluon's had ImageNet's mean, which names do not tell.
_INCEPTION_V3 = replace(_INCEPTION, crop=0.875)
_CAFFE_INPUT = InputFormat("BGR", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), size=224, crop=0.875)
_MSRA_INPUT = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), size=224, crop=0.875)

_IN_3X3 = {"stride_in_1x1": False, "stem_pool": "padded"}
_IN_1X1 = {"stride_in_1x1": True, "stem_pool": "padded"}

# fmt: off
FORMATS: tuple[WeightFormat, ...] = (
    WeightFormat(
        "caffe-senet154", "SENet-154's Caffe blobs", r"^conv1_1/3x3_s2[/.]0$",
        CAFFE_DEEP, _CAFFE_INPUT, _strided_as_senet, _from_caffe),
    WeightFormat(
        "caffe", "SENet's Caffe blobs", r"^conv2_1_1x1_reduce[/.]0$",
        CAFFE, _CAFFE_INPUT, _strided_as_senet, _from_caffe),
    WeightFormat(
        "msra", "MSRA's ResNets for Detectron", r"^res2_0_branch2a_w$",
        MSRA, _MSRA_INPUT, _IN_1X1, _from_msra),
    WeightFormat(
        "mmpretrain", "MMPretrain's ResNets", r"^backbone\.layer1\.0\.conv1\.weight$",
        MMPRETRAIN, _RGB, _IN_3X3),
    WeightFormat(
        "timm-legacy", "timm's legacy SE networks, the same as Cadene's", r"^layer0\.conv1\.weight$",
        TIMM_LEGACY, _RGB, _strided_as_senet),
    WeightFormat(
        "detectron2", "Detectron2's ResNets", r"(^|\.)res2\.0\.conv1\.norm\.weight$",
        DETECTRON2, _RGB, _IN_3X3, _from_detectron2, convolutional_gate=False),
    WeightFormat(
        "timm-deep", "timm's ResNets with a deep stem", r"^conv1\.6\.weight$",
        TIMM_DEEP, _RGB_BICUBIC, _IN_3X3),
    WeightFormat(
        "timm", "timm's ResNets with SE", r"^layer1\.0\.se\.fc1\.weight$",
        TORCHVISION, _RGB_BICUBIC, _IN_3X3),
    WeightFormat(
        "moskomule", "moskomule's SE-ResNets", r"^layer1\.0\.se\.fc\.0\.weight$",
        MOSKOMULE, _RGB, _IN_3X3,
        convolutional_gate=False),
    WeightFormat(
        "torchvision", "torchvision's ResNets; timm's plain ones and Places365's have the same names",
        r"^layer1\.0\.conv1\.weight$",
        TORCHVISION, _RGB, _IN_3X3),
    WeightFormat(
        "torchvision-vgg16-bn", "torchvision's vgg16_bn", r"^features\.40\.weight$",
        ("vgg16_bn", "torchvision:vgg16_bn"), _RGB, {}),
    WeightFormat(
        "timm-inception-resnet-v2", "timm's inception_resnet_v2", r"^conv2d_1a\.conv\.weight$",
        ("inception_resnet_v2", "timm:inception_resnet_v2"), _INCEPTION, {}),
    WeightFormat(
        "inception-v3", "timm's and torchvision's inception_v3", r"^Mixed_5b\.branch1x1\.conv\.weight$",
        ("inception_v3", "timm:inception_v3"), _INCEPTION_V3, {},
        _without_auxiliary),
)
# fmt: on
