"""Weights between libraries: inspect a file, convert it, and prove that both networks agree."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.build import build_backbone
from backbones.config import BackboneSettings
from backbones.external import ExternalBackbone
from backbones.features import Network
from backbones.libraries import build_model, split_name
from backbones.registry import EXTERNAL, describe_backbone
from backbones.weights.files import save_detectron2, save_state, save_torch
from backbones.weights.formats import FORMATS, WeightFormat, backbone_shapes, from_ours
from backbones.weights.load import Weights, load_weights, metadata_of, read_weights
from backbones.weights.metadata import Metadata, NamedBackbone
from backbones.zoo import PAIRS

TARGETS = ("safetensors", "timm", "torchvision", "detectron2")

_COUNTER = "num_batches_tracked"
# The only SE that libraries have.
_PUBLISHED_GATE = {"placement": "standard", "squeeze": "avg", "excitation": "sigmoid"}


def inspect_weights(path: str | Path) -> dict[str, Any]:
    """Say what a file of weights is: format, network, tasks, input, and what does not fit.

    Returns:
        Plain values; `missing` and `extra` are against `network`, or `nearest` where none fits.
    """
    weights = read_weights(path)
    fit = weights.backbone
    shapes = backbone_shapes(fit.name, **fit.options) if fit else None
    nearest = None if fit or weights.unfit else _nearest(weights)
    wanted = set(shapes or (backbone_shapes(nearest) if nearest else None) or ())
    given = {n for n in weights.tensors if not n.startswith("head.")} if wanted else set()
    return {
        "path": weights.path,
        "format": weights.format,
        "title": weights.title,
        "sha256": weights.sha256,
        "tensors": len(weights.own_tensors),
        "network": fit.name if fit else None,
        "options": dict(fit.options) if fit else {},
        "nearest": nearest,
        "num_classes": weights.num_classes,
        "class_names": weights.classes is not None,
        "input_format": asdict(weights.input_format) if weights.input_format else None,
        "tasks": _tasks(weights) if shapes else [],
        "missing": sorted(wanted - given),
        "extra": sorted(given - wanted),
        "notes": list(_notes(weights, nearest, shapes is not None)),
    }


def _tasks(weights: Weights) -> list[str]:
    """Name the tasks that weights of a known network can serve."""
    assert weights.backbone is not None
    tasks = []
    if weights.num_classes:
        tasks = ["scene"] if weights.num_classes == 365 else ["classification", "scene"]
    if describe_backbone(weights.backbone.name).detection is None:
        tasks.append("detection")
    return tasks


def _notes(weights: Weights, nearest: str | None, is_known: bool) -> Iterator[str]:
    """Say what a user of the weights should know."""
    fit = weights.backbone
    if fit is not None and not is_known:
        yield (
            f"{fit.name} with these options is no network of `sebench list backbones`; a network of"
            " your own is registered by a file given with --import"
        )
    elif fit is not None:
        reason = describe_backbone(fit.name).detection
        if reason is not None:
            yield f"not for detection: {reason}"
    elif weights.unfit:
        yield weights.unfit
    elif nearest is None:
        yield (
            "no network of `sebench list backbones` is near; one of timm or torchvision takes its"
            " own weights: name it as backbone.name=timm:NAME"
        )
    if weights.found_in:
        yield f"its state dict was found under {weights.found_in}"
    if weights.input_format is None and weights.format == "detectron2":
        yield "the names do not tell stride, channel order, mean and std"
    if weights.format == "torchvision":
        yield "timm's plain ResNets have the same names, but crop and interpolate otherwise"


def convert_weights(path: str | Path, to: str, out: str | Path) -> dict[str, Any]:
    """Write weights under the names of another library, so that they load there strictly.

    Args:
        to: "safetensors" (this suite's names and metadata), "timm", "torchvision" or "detectron2".
        out: `.safetensors`, or else a state dict of torch; a pickle of arrays for Detectron2. What
            the names do not tell (input, classes, options) goes along in the file, so that it comes
            back unchanged.

    Returns:
        What was written, and how to load it.

    Raises:
        ValueError: the target has no such network, e.g. where its stride or its pool is another.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: choose from {', '.join(TARGETS)}")
    weights = read_weights(path)
    if weights.num_classes is None:  # what a detector has beside the backbone stays behind
        kept = {n: t for n, t in weights.tensors.items() if n.startswith("backbone.")}
        weights = replace(weights, tensors=kept)
    metadata = _metadata_of(weights)
    write: Callable[..., str] = save_state
    if to == "safetensors":
        tensors, load_with = weights.tensors, f"--weights {out}"
    elif to == "detectron2":
        tensors, load_with = _for_detectron2(weights, metadata, out)
        write = save_detectron2
    else:
        tensors, theirs = _for_library(weights, metadata, to)
        write = save_state if Path(out).suffix == ".safetensors" else save_torch
        load_with = f"{to}:{theirs}"
    sha256 = write(out, tensors, asdict(metadata))
    _require_the_same(weights, read_weights(out))
    return {
        "path": str(out),
        "sha256": sha256,
        "tensors": len(tensors),
        "from": weights.format,
        "to": to,
        "network": metadata.backbone.name,
        "load_with": load_with,
        "input_format": asdict(metadata.input_format),
    }


def _metadata_of(weights: Weights) -> Metadata:
    """Return what goes along with the tensors. Raises ValueError where it is not known."""
    backbone, known = weights.backbone, weights.input_format
    if backbone is None:
        raise ValueError(
            f"{weights.path} ({weights.title}) fits no network of `sebench list backbones`"
        )
    if known is None:
        raise ValueError(
            f"{weights.path}: its channel order, mean and std are unknown and could not go along"
        )
    with torch.device("meta"):
        network = build_backbone(backbone.name, **backbone.options)
    return metadata_of(network, backbone, weights.num_classes, weights.classes, known)


@torch.no_grad()
def verify_weights(path: str | Path, against: str, size: int | None = None) -> dict[str, Any]:
    """Feed the same image to our network and to a library's, both with the weights of a file.

    Args:
        against: `timm:NAME` or `torchvision:NAME`.
        size: pixels a side; None: as the library has it.

    Returns:
        The largest absolute difference of every stage's map and of the logits (None where shapes
        differ), their largest value, and whether all agree to 1e-4 of it.
    """
    if not against.startswith(EXTERNAL):
        raise ValueError(f"--against {against}: name a network as timm:NAME or torchvision:NAME")
    weights = read_weights(path)
    backbone, num_classes = weights.backbone, weights.num_classes
    if backbone is None or not num_classes:
        raise ValueError(
            f"{path} ({weights.title}) holds no network of `sebench list backbones` with its"
            " classifier: there is nothing to compare"
        )
    external = ExternalBackbone(against)
    theirs = Network(external, num_classes)
    theirs.load_state_dict(external.rename(_as_library(weights, backbone, num_classes, against)))
    ours = Network(build_backbone(backbone.name, **backbone.options), num_classes)
    load_weights(ours, weights)
    side = size or describe_backbone(against).input_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    one, other = ours.eval().backbone(image), theirs.eval().backbone(image)
    one["logits"], other["logits"] = ours.head(one), theirs.head(other)
    differences: dict[str, float | None] = {}
    for name, mine in one.items():
        comparable = name in other and mine.shape == other[name].shape
        differences[name] = (mine - other[name]).abs().max().item() if comparable else None
    scale = max(mine.abs().max().item() for mine in one.values())
    equal = all(d is not None and d <= 1e-4 * scale for d in differences.values())
    return {
        "path": str(path),
        "format": weights.format,
        "network": backbone.name,
        "options": dict(backbone.options),
        "against": against,
        "size": side,
        "logits": differences.pop("logits"),
        "stages": differences,
        "largest_value": scale,
        "equal": equal,
    }


def _for_library(
    weights: Weights, metadata: Metadata, library: str
) -> tuple[dict[str, Tensor], str]:
    """Rename to a library's network that computes the same. Returns the tensors and its name."""
    name, structure = metadata.backbone.name, metadata.structure or {}
    if name.startswith(EXTERNAL):
        if not name.startswith(f"{library}:"):
            raise ValueError(f"{name} is not a network of {library}")
        return _library_tensors(weights, metadata.backbone), name.partition(":")[2]
    gate = {key: value for key, value in structure.items() if key in _PUBLISHED_GATE}
    if any(value != _PUBLISHED_GATE[key] for key, value in gate.items()):
        raise ValueError(f"{library} has no {name} with {_words(gate)}")
    built = {key: value for key, value in structure.items() if key not in gate}
    for weight_format in FORMATS:
        theirs = _library_name(name, weight_format)
        if not theirs or not _has(library, theirs):
            continue
        demanded = weight_format.structure(weights.tensors)
        # A network that takes the tensors, but strides or pools otherwise, is no equal.
        if any(built.get(key, value) != value for key, value in demanded.items()):
            continue
        tensors = _renamed(weights, weight_format)
        shapes = _library_shapes(f"{library}:{theirs}", weights.num_classes or 1000)
        if tensors and shapes == {key: tensor.shape for key, tensor in tensors.items()}:
            return tensors, theirs
    hint = ""
    if built.get("stride_in_1x1") and built.get("stem_pool") == "padded":
        hint = (
            ". A network that is to go there is trained with stem_pool=ceil (timm's legacy SE"
            " networks) or stride_in_1x1=false (all others)"
        )
    raise ValueError(f"{library} has no {name} built with {_words(built) or 'these shapes'}{hint}")


def _for_detectron2(
    weights: Weights, metadata: Metadata, out: str | Path
) -> tuple[dict[str, Tensor], str]:
    """Name tensors so that Detectron2's checkpointer, which goes by suffixes, finds their places.

    Our backbones, once registered there, hold theirs under `stages`. Detectron2's own ResNets,
    where they compute the same, have other names for the norms; the file holds both.

    Returns:
        The tensors, and how to load them.
    """
    name, options = metadata.backbone.name, metadata.backbone.options
    structure, known = metadata.structure or {}, metadata.input_format
    info = describe_backbone(name)
    if info.detection is not None:
        raise ValueError(f"{weights.path}: {name} cannot serve detection: {info.detection}")
    named = {n.replace("backbone.", "stages.", 1): t for n, t in weights.tensors.items()}
    ways = [
        f"MODEL.WEIGHTS={out}",
        f"INPUT.FORMAT={known.channel_order}",
        "MODEL.PIXEL_MEAN and PIXEL_STD as in input_format",
    ]
    if name.startswith(EXTERNAL):
        ways.append(f"MODEL.BACKBONE.NAME=build_sebench_fpn_backbone, MODEL.SEBENCH.NAME={name}")
    else:
        ways.append(f"MODEL.BACKBONE.NAME=build_{name}_fpn_backbone")
    if options:
        ways.append(f"MODEL.SEBENCH.OPTIONS={dict(options)}")
    if info.family == "ResNet" and not info.is_se and structure.get("stem_pool") == "padded":
        weight_format = next(f for f in FORMATS if f.name == "detectron2")
        counted = {n: t for n, t in weights.tensors.items() if not n.endswith(_COUNTER)}
        named |= from_ours(counted, weight_format)
        stride = structure.get("stride_in_1x1")
        own = "" if stride is None else f" with MODEL.RESNETS.STRIDE_IN_1X1={stride}"
        ways.append(f"or Detectron2's build_resnet_fpn_backbone{own}")
    return named, ", ".join(ways)


def _as_library(
    weights: Weights, backbone: BackboneSettings, num_classes: int, against: str
) -> dict[str, Tensor]:
    """Find the names under which a library's network takes the tensors of a file."""
    shapes = _library_shapes(against, num_classes)
    counters = {name: torch.tensor(0) for name in shapes if name.endswith(_COUNTER)}
    tried = [weights.own_tensors, *(_renamed(weights, f) for f in FORMATS)]
    if backbone.name.startswith(EXTERNAL):
        tried = [_library_tensors(weights, backbone)]
    for tensors in filter(None, tried):
        tensors = {**counters, **tensors}
        if {name: tensor.shape for name, tensor in tensors.items()} == shapes:
            return tensors
    raise ValueError(f"{weights.path} ({weights.title}) does not fit {against} under any names")


def _library_name(name: str, weight_format: WeightFormat) -> str | None:
    """Return what libraries call one of our networks in a format, or None."""
    if weight_format.network is not None:
        return name if name == weight_format.network else None
    bare = name.replace("se_resne", "seresne")
    names = {"timm-legacy": f"legacy_{bare}", "timm": bare, "timm-deep": bare, "torchvision": name}
    return names.get(weight_format.name)


def _has(library: str, name: str) -> bool:
    try:
        split_name(f"{library}:{name}")
    except ValueError:
        return False
    return True


def _library_shapes(name: str, classes: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = build_model(name, {}, classes)
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _library_tensors(
    weights: Weights, backbone: BackboneSettings | NamedBackbone
) -> dict[str, Tensor]:
    """Bring the tensors of a library's network back to the library's names."""
    with torch.device("meta"):
        network = ExternalBackbone(backbone.name, **backbone.options)
    return network.library_tensors(weights.tensors)


def _renamed(weights: Weights, weight_format: WeightFormat) -> dict[str, Tensor] | None:
    try:
        return from_ours(weights.tensors, weight_format)
    except ValueError:
        return None


def _require_the_same(before: Weights, after: Weights) -> None:
    """Make sure that what was written reads as what was meant."""
    one, other = (
        {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(_COUNTER)}
        for weights in (before, after)
    )
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert before.input_format == after.input_format


def _words(structure: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in structure.items())


def _nearest(weights: Weights) -> str | None:
    """Return the residual network that shares most tensors with a file, if it shares half."""
    given = {n: tuple(t.shape) for n, t in weights.tensors.items() if n.startswith("backbone.")}
    best, most = None, 0.5
    for pair in PAIRS if given else ():
        if pair.builder == "resnet:ResNet":
            for name in (pair.plain, pair.se):
                shapes = backbone_shapes(name) or {}
                shared = sum(given.get(key) == shape for key, shape in shapes.items())
                share = shared / max(len(shapes), len(given))
                if share > most:
                    best, most = name, share
    return best
