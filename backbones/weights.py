"""Weights on disk: written whole, recognised by content, loaded strictly."""

import difflib
import fnmatch
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from backbones.features import Backbone, Network
from backbones.zoo import BackboneSettings, InputFormat

_METADATA_KEY = "sebench"  # safetensors metadata are strings; ours is one JSON object under this


@dataclass(frozen=True)
class Weights:
    """A file of weights in this suite's names: `backbone.*` and `head.*`."""

    path: str
    format: str
    sha256: str  # of the file
    tensors: dict[str, Tensor] = field(repr=False)
    backbone: BackboneSettings | None = None  # network and options they fit; None: not told
    num_classes: int | None = None
    classes: list[str] | None = None
    input_format: InputFormat | None = None


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did, for the record."""

    path: str
    format: str
    sha256: str
    tensors: int  # loaded
    input_format: InputFormat | None
    missing: list[str]  # left as they were: the replaced head and what `allow_missing` names
    unexpected: list[str]  # in the file and not used: the head that was replaced or dropped


def save_state(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able metadata to a safetensors file, whole or not at all.

    Returns:
        The SHA-256 of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(tensors, partial, {_METADATA_KEY: json.dumps(dict(metadata))})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return file_sha256(path)


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote. Metadata of another writer's file are {}.

    Raises:
        ValueError: no such file, or not a whole safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: no such file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata.get(_METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


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
    metadata = {
        "backbone": {"name": backbone.name, "options": dict(backbone.options)},
        "num_classes": num_classes,
        "classes": None if classes is None else list(classes),
        "input_format": asdict(input_format),
    }
    return save_state(path, network.state_dict(), metadata)


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights and say what network and input it is for; nothing is built.

    Raises:
        ValueError: no such file, not a whole one, or its format is not known.
    """
    tensors, metadata = read_state(path)
    if "backbone" not in metadata:
        raise ValueError(f"{path}: unknown format of weights")
    return Weights(
        path=str(path),
        format="sebench",
        sha256=file_sha256(path),
        tensors=tensors,
        backbone=BackboneSettings(**metadata["backbone"]),
        num_classes=metadata["num_classes"],
        classes=metadata["classes"],
        input_format=_input_format(metadata["input_format"]),
    )


def load_weights(
    module: Network | Backbone,
    path: str | Path,
    *,
    replace_head: bool = False,
    allow_missing: Sequence[str] = (),
) -> LoadedWeights:
    """Load a file into a network, or its backbone part into a backbone: everything, or an error.

    Args:
        replace_head: keep the network's own classifier; the file's is not used.
        allow_missing: patterns (`backbone.res5.*`) of tensors that the file may lack.

    Raises:
        ValueError: with a table of what is missing, unexpected and misshapen. The module is unchanged.
    """
    weights = read_weights(path)
    prefix = "" if isinstance(module, Network) else "backbone."
    given = {name: tensor for name, tensor in weights.tensors.items()}
    dropped = []
    if replace_head or prefix:
        dropped = [name for name in given if name.startswith("head.")]
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    kept = [name for name in wanted if replace_head and name.startswith("head.")]
    for name in dropped:
        del given[name]
    for name in kept:
        del wanted[name]
    missing = [name for name in wanted if name not in given]
    allowed = [n for n in missing if any(fnmatch.fnmatchcase(n, p) for p in allow_missing)]
    kept += allowed
    missing = [name for name in missing if name not in allowed]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [n for n in wanted if n in given and wanted[n].shape != given[n].shape]
    if missing or unexpected or misshapen:
        table = _mismatch_table(wanted, given, missing, unexpected, misshapen)
        raise ValueError(f"{path} ({weights.format}) does not fit the network:\n{table}")
    state = {name.removeprefix(prefix): given[name] for name in wanted if name in given}
    module.load_state_dict(state, strict=False)
    return LoadedWeights(
        path=str(path),
        format=weights.format,
        sha256=weights.sha256,
        tensors=len(state),
        input_format=weights.input_format,
        missing=kept,
        unexpected=dropped,
    )


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _input_format(values: Mapping[str, Any]) -> InputFormat:
    return InputFormat(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _mismatch_table(
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[str],
    rows: int = 8,
) -> str:
    """Word what does not fit, at most `rows` lines of each kind."""
    lines = []

    def add(kind: str, names: Sequence[str], describe: Any) -> None:
        for name in names[:rows]:
            lines.append(f"  {kind:<11}{describe(name)}")
        if len(names) > rows:
            lines.append(f"  {kind:<11}... and {len(names) - rows} more")

    def near(name: str, others: Sequence[str]) -> str:
        match = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        return f"{name}  (nearest: {match[0]})" if match else name

    def shapes(name: str) -> str:
        return f"{name}  {tuple(given[name].shape)} in the file, {tuple(wanted[name].shape)} wanted"

    add("missing", missing, lambda name: near(name, unexpected))
    add("unexpected", unexpected, lambda name: near(name, missing))
    add("misshapen", misshapen, shapes)
    return "\n".join(lines)
