"""Weights for a network: written whole, recognised by content, loaded strictly."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbones.config import BackboneSettings, InputFormat
from backbones.features import Backbone, Network
from backbones.registry import EXTERNAL, find_backbone
from backbones.result import WeightsFile
from backbones.squeeze_excite import SEBlock
from backbones.weights.files import TensorFile, read_tensors, save_state
from backbones.weights.formats import (
    FORMATS,
    fitting_network,
    recognize,
    to_ours,
    with_counters,
)
from backbones.weights.metadata import Metadata, NamedBackbone, read_metadata

PLACES365 = 365
_ROWS = 8  # of each kind of mismatch that are shown
_OWN_FORMATS = ("sebench", "sebench-detector")  # under our own names
_OURS = r"(backbone|head)\."  # how names of this suite begin; MMPretrain's begin so too
# Our stages as the backbone of a detector: of this suite's own, or converted for Detectron2.
_STAGES = r"(?:backbone\.)?(?:bottom_up\.)?stages\.(.*)"


@dataclass(frozen=True)
class Weights:
    """A file of weights in this suite's names: `backbone.*` and `head.*`."""

    path: str
    format: str  # a name of `formats.FORMATS`, "sebench", "places365" or "unknown"
    title: str  # the same in words
    sha256: str  # of the file
    tensors: dict[str, Tensor] = field(repr=False)
    own_tensors: dict[str, Tensor] = field(repr=False)  # under the names in the file
    backbone: BackboneSettings | None = None  # the network they fit; None: none of the table
    structure: dict[str, Any] = field(default_factory=dict)  # what tensors alone do not tell
    num_classes: int | None = None
    classes: list[str] | None = None
    input_format: InputFormat | None = None
    found_in: str = ""  # keys that led to the state dict in a checkpoint, e.g. "model_ema"
    unfit: str | None = None  # why no network of the table may take them, though tensors fit


def save_weights(
    network: Network,
    path: str | Path,
    *,
    backbone: BackboneSettings,
    num_classes: int,
    input_format: InputFormat,
    classes: Sequence[str] | None = None,
) -> str:
    """Write a network with all that is needed to use it elsewhere. Returns the file's SHA-256."""
    metadata = metadata_of(network.backbone, backbone, num_classes, classes, input_format)
    return save_state(path, network.state_dict(), asdict(metadata))


def metadata_of(
    backbone: nn.Module,
    settings: BackboneSettings,
    num_classes: int | None,
    classes: Sequence[str] | None,
    input_format: InputFormat,
) -> Metadata:
    """Return what goes along with the tensors of a network that `settings` describe."""
    return Metadata(
        backbone=NamedBackbone(settings.name, dict(settings.options)),
        input_format=input_format,
        structure=structure_of(backbone),
        num_classes=num_classes,
        classes=None if classes is None else list(classes),
    )


def read_weights(path: str | Path, network: str = "") -> Weights:
    """Read weights and say what network and what input they are for.

    Args:
        path: a file in any format of `formats`, recognised by what it holds; or `timm:NAME`,
            `torchvision:NAME`, which the library downloads, unless it did so before.
        network: the name of the network they are meant for. One of timm's or torchvision's takes
            weights under its own names, and the library knows their input.

    Raises:
        ValueError: no such file, not a whole one, or the download failed.
        UnsafePickle: (a ValueError) the file asks for code to be run.
    """
    if str(path).startswith(EXTERNAL):
        from backbones.libraries import download

        file, input_format = download(str(path))
        return replace(_interpret(file), input_format=input_format)
    weights = _interpret(read_tensors(path))
    if network.startswith(EXTERNAL) and weights.format not in _OWN_FORMATS:
        from backbones.libraries import input_format_of

        library = network.partition(":")[0]
        known = input_format_of(network)
        return replace(weights, format=library, title=library, structure={}, input_format=known)
    return weights


def fit_backbone(settings: BackboneSettings, weights: Weights | None = None) -> BackboneSettings:
    """Complete a network's options by what its weights demand: stride, pool, bias, reduction.

    Args:
        weights: what `settings.weights` holds, where it has been read already.

    Raises:
        ValueError: the weights are of another network, or an option that was set contradicts them;
            both are named.
    """
    if not settings.weights or settings.name.startswith(EXTERNAL):
        return settings
    weights = weights or read_weights(settings.weights)
    if weights.unfit:
        raise ValueError(f"{weights.path}: {weights.unfit}")
    choices = getattr(find_backbone(settings.name), "options", ())
    fit = weights.backbone
    if fit is not None and fit.name != settings.name and not settings.allow_missing:
        raise ValueError(
            f"{weights.path} ({weights.title}) holds a {fit.name}; the settings ask for"
            f" {settings.name}. Set backbone.name={fit.name}, or give other weights"
        )
    if fit is not None and fit.name == settings.name:
        demanded = fit.options
    else:
        demanded = {key: value for key, value in weights.structure.items() if key in choices}
    for option, value in demanded.items():
        asked = settings.options.get(option, value)
        if _plain(asked) != _plain(value):
            raise ValueError(_conflict(weights, option, value, asked))
    options = {**settings.options, **demanded}
    if weights.format == "detectron2" and "stride_in_1x1" in set(choices) - set(options):
        raise ValueError(
            f"{weights.path}: names of Detectron2 do not tell where its network strides. Set"
            " backbone.options.stride_in_1x1=true for MSRA's and Detectron's weights, false for"
            " torchvision's"
        )
    return replace(settings, options=options)


def load_weights(
    module: Network | Backbone,
    weights: str | Path | Weights,
    *,
    replace_head: bool = False,
    allow_missing: Sequence[str] = (),
) -> WeightsFile:
    """Load weights into a network, or their backbone part into a backbone: all, or an error.

    Args:
        weights: as `read_weights` takes them, or what it returned.
        replace_head: keep the network's own classifier; the file's is not used.
        allow_missing: patterns (`backbone.res5.*`) of tensors that the file may lack.

    Returns:
        What was left as it was (`missing`), and the head that was not used (`unexpected`).

    Raises:
        ValueError: the network's structure is not the one they were trained in, though the tensors
            may fit; or the tensors do not fit: a table says what is missing, unexpected (with the
            nearest names) and misshapen; or one holds values that are not finite. The module is
            unchanged then.
    """
    backbone = module.backbone if isinstance(module, Network) else module
    if not isinstance(weights, Weights):
        weights = read_weights(weights, getattr(backbone, "name", ""))
    prefix = "" if isinstance(module, Network) else "backbone."
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    named = _named_for(backbone, weights)
    _check_structure(backbone, weights)
    loses_head = replace_head or bool(prefix)
    given = {n: t for n, t in named.items() if not (loses_head and n.startswith("head."))}
    kept = [name for name in wanted if loses_head and name.startswith("head.")]
    kept += [
        name
        for name in wanted
        if name not in {*given, *kept} and any(fnmatch.fnmatchcase(name, p) for p in allow_missing)
    ]
    _check_shapes(weights, given, {n: t for n, t in wanted.items() if n not in kept})
    state = {name.removeprefix(prefix): given[name] for name in wanted if name in given}
    check_finite(state, weights.path)
    module.load_state_dict(state, strict=False)
    return WeightsFile(
        path=weights.path,
        sha256=weights.sha256,
        format=weights.format,
        tensors=len(state),
        missing=kept,
        unexpected=[name for name in named if name not in given],
    )


def _check_structure(backbone: Backbone, weights: Weights) -> None:
    """Raise ValueError where the network computes otherwise than the one that was trained."""
    built = structure_of(backbone)
    for option, value in weights.structure.items():
        if option in built and _plain(built[option]) != _plain(value):
            raise ValueError(_conflict(weights, option, value, built[option]))


def _check_shapes(
    weights: Weights, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Raise ValueError, with a table, unless both have the same names and shapes."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [n for n in wanted if n in given and wanted[n].shape != given[n].shape]
    if not (missing or unexpected or misshapen):
        return

    def rows(kind: str, names: Sequence[str], describe: Callable[[str], str]) -> list[str]:
        shown = [describe(name) for name in names[:_ROWS]]
        if len(names) > _ROWS:
            shown.append(f"... and {len(names) - _ROWS} more")
        return [f"  {kind:<11}{text}" for text in shown]

    def near(name: str) -> str:
        others = unexpected if name in wanted else missing
        match = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        return f"{name}  (nearest: {match[0]})" if match else name

    def shapes(name: str) -> str:
        return f"{name}  {tuple(given[name].shape)} in the file, {tuple(wanted[name].shape)} wanted"

    table = [
        *rows("missing", missing, near),
        *rows("unexpected", unexpected, near),
        *rows("misshapen", misshapen, shapes),
    ]
    fit = len(wanted) - len(missing) - len(misshapen)
    raise ValueError(
        f"{weights.path} ({weights.title}) does not fit the network, {fit} of whose {len(wanted)} tensors"
        " it has:\n" + "\n".join(table)
    )


def check_finite(tensors: Mapping[str, Tensor], source: str = "") -> None:
    """Refuse weights and running statistics that are no numbers.

    Raises:
        ValueError: a tensor holds infinite or undefined values; it is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{source}{': ' if source else ''}{name} holds {bad} of {tensor.numel()} values that "
                "are infinite or not a number: these weights are damaged, or their training diverged"
            )


def structure_of(backbone: nn.Module) -> dict[str, Any]:
    """Read off a network what weights depend on and their shapes do not show.

    Keys are options of `build_backbone`: stride_in_1x1, stem_pool, placement, squeeze, excitation.
    Those that a network does not have are left out.
    """
    structure: dict[str, Any] = {}
    pool = getattr(getattr(backbone, "stem", None), "pool", None)
    if isinstance(pool, nn.MaxPool2d):
        structure["stem_pool"] = "ceil" if pool.ceil_mode else "padded"
    for module in backbone.modules():
        found = [getattr(module, f"conv{i}", None) for i in (1, 2, 3)]
        convolutions = [c for c in found if isinstance(c, nn.Conv2d)]
        if len(convolutions) == 3 and "stride_in_1x1" not in structure:
            kernels = [c.kernel_size for c in convolutions]
            strides = [c.stride for c in convolutions]
            if kernels == [(1, 1), (3, 3), (1, 1)] and strides != [(1, 1)] * 3:
                structure["stride_in_1x1"] = strides[0] != (1, 1)
        if isinstance(module, SEBlock):
            structure.setdefault("squeeze", module.squeeze)
            structure.setdefault("excitation", module.excitation)
        if hasattr(module, "placement") and isinstance(getattr(module, "se", None), SEBlock):
            structure.setdefault("placement", module.placement)
    return structure


def _interpret(file: TensorFile) -> Weights:
    """Say what network a file's tensors are of: by our own metadata, else by their names."""
    weights = Weights(
        path=file.path,
        format="unknown",
        title="a format not known",
        sha256=file.sha256,
        tensors=file.tensors,
        own_tensors=file.tensors,
        found_in=file.found_in,
    )
    known = read_metadata(file)
    if any(re.fullmatch(_STAGES, name) for name in file.tensors):
        return _of_detector(weights, known)
    ours = all(re.match(_OURS, name) for name in file.tensors)
    weight_format = None if ours and known else recognize(file.tensors)
    if ours and weight_format is None:
        return _with_metadata(replace(weights, format="sebench", title="this suite's own"), known)
    if weight_format is None:
        return weights
    tensors = to_ours(file.tensors, weight_format)
    structure, unfit = {}, None
    try:
        structure = weight_format.structure(tensors)
    except ValueError as error:
        unfit = str(error)
    head = tensors.get("head.fc.weight")
    weights = replace(
        weights,
        format=weight_format.name,
        title=weight_format.title,
        tensors=tensors,
        structure=structure,
        unfit=unfit,
        num_classes=None if head is None else len(head),
        input_format=weight_format.input_format,
    )
    if weights.format == "torchvision" and weights.num_classes == PLACES365:
        weights = replace(weights, format="places365", title="a ResNet trained on Places365")
    if weights.format == "detectron2" and file.author != "torchvision":
        # Detectron2's converter signs torchvision's weights; the rest may be MSRA's: BGR, 1x1.
        weights = replace(weights, structure={}, input_format=None)
    if known:
        return _with_metadata(weights, known)
    if unfit:
        return weights
    return replace(weights, backbone=fitting_network(tensors, weight_format, weights.structure))


def _of_detector(weights: Weights, known: Metadata | None) -> Weights:
    """Take our backbone out of a detector; the rest of it counts as a head, which is dropped."""
    tensors = {}
    for name, tensor in weights.own_tensors.items():
        match = re.fullmatch(_STAGES, name)
        if match:
            tensors[f"backbone.{match[1]}"] = tensor
        elif name.startswith("head."):  # the classifier beside converted stages
            tensors[name] = tensor
        elif known is None or known.structure is None:
            tensors[f"head.{name}"] = tensor
    of_detector = replace(
        weights,
        format="sebench-detector",
        title="a detector of this suite",
        tensors=with_counters(tensors),
    )
    return _with_metadata(of_detector, known)


def _with_metadata(weights: Weights, known: Metadata | None) -> Weights:
    """Take from our own metadata what the tensors do not tell."""
    if known is None:
        return weights
    return replace(
        weights,
        backbone=BackboneSettings(known.backbone.name, known.backbone.options),
        structure=known.structure or {},
        num_classes=known.num_classes,
        classes=known.classes,
        input_format=known.input_format,
    )


def _named_for(backbone: Backbone, weights: Weights) -> dict[str, Tensor]:
    """Return the tensors under the names of the network that takes them."""
    rename = getattr(backbone, "rename", None)
    if weights.format not in _OWN_FORMATS and callable(rename):  # a library's, its own names
        return rename(weights.own_tensors)
    if weights.unfit:
        raise ValueError(f"{weights.path}: {weights.unfit}")
    if weights.format == "unknown":
        known = ", ".join(weight_format.name for weight_format in FORMATS)
        some = ", ".join(list(weights.own_tensors)[:3])
        raise ValueError(
            f"{weights.path}: the format is not known by its names ({some}, ...). Known: sebench,"
            f" {known}. A network of timm or torchvision takes its own weights: timm:NAME"
        )
    return weights.tensors


def _conflict(weights: Weights, option: str, demanded: Any, asked: Any) -> str:
    return (
        f"{weights.path} ({weights.title}) was trained with {option}={_word(demanded)}, the network has"
        f" {option}={_word(asked)}: the tensors would fit and every output be wrong. Set"
        f" backbone.options.{option}={_word(demanded)}, or leave it out"
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
