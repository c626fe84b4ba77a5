"""Files of tensors, whoever wrote them: names and tensors in, names and tensors out.

What kind of file it is shows in its first bytes, never in its name. Nothing in a file is executed.
"""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backbones.weights.pickles import UnsafePickle, load_pickle, read_pickle

# What we add to a file lies under this name, as JSON: in the metadata of safetensors, beside the
# model in a Detectron2 pickle, and in the `_metadata` that every state dict of torch carries.
_OURS = "sebench"
# Where training scripts keep the state dict; averaged weights first, as timm prefers them too.
_CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state",
    "blobs",
    "params",
)
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file under their own names, and what it says about itself."""

    path: str
    kind: str  # "safetensors", "torch", "numpy", "pickle"
    sha256: str
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)  # ours, if we wrote it
    author: str | None = None  # `__author__` of Detectron2's pickles


def read_tensors(path: str | Path) -> TensorFile:
    """Read a file of tensors: safetensors, torch.save of any age, .npz, .npy or a plain pickle.

    The state dict is found in what training scripts wrap around it, prefixes such as `module.` are
    dropped, and lists of arrays (Caffe's blobs) become `NAME/0`, `NAME/1`, ...

    Raises:
        ValueError: no such file, not a whole one, or nothing like a state dict in it.
        UnsafePickle: (a ValueError) the file asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: no such file")
    kind = _sniff(path)
    metadata, author = {}, None
    if kind == "safetensors":
        content, metadata = read_state(path)
    elif kind == "numpy":
        content = _read_numpy(path)
    else:
        content = read_pickle(path)
    if isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
        content = content.item()  # np.save of a dictionary
    if isinstance(content, Mapping):
        author = content.get("__author__")
        if _OURS in content:
            metadata = _parse(content[_OURS], path)
    content = _state_dict(content, path)
    told = getattr(content, "_metadata", None)
    if isinstance(told, Mapping) and _OURS in told:
        metadata = _parse(told[_OURS], path)
    tensors = _flatten(content)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors; a state dict or a dictionary of arrays is wanted"
        )
    return TensorFile(str(path), kind, file_sha256(path), tensors, metadata, author)


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote. The metadata of another writer's file are {}.

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
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return tensors, _parse(metadata.get(_OURS, "{}"), path)


def save_state(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able metadata to a safetensors file, whole or not at all.

    Returns:
        The SHA-256 of the file.
    """
    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {_OURS: json.dumps(dict(metadata)), "format": "pt"}
    return _write_whole(path, lambda part: safetensors.torch.save_file(tensors, part, told))


def save_torch(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write a plain state dict, which `load_state_dict` of any library takes as it is."""
    state = OrderedDict((name, tensor.detach().cpu()) for name, tensor in tensors.items())
    state._metadata = {_OURS: json.dumps(dict(metadata))}
    return _write_whole(path, lambda part: torch.save(state, part))


def save_detectron2(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    by_last_words: bool,
) -> str:
    """Write a pickle of arrays for Detectron2's checkpointer.

    Args:
        by_last_words: let it match `res2.0.conv1.weight` to `backbone.bottom_up.res2.0.conv1.weight`;
            what it cannot match it skips, with no more than a line in the log.
    """
    content = {
        "model": {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
        "__author__": "sebench",
        "matching_heuristics": by_last_words,
        _OURS: json.dumps(dict(metadata)),
    }
    return _write_whole(path, lambda part: part.write_bytes(pickle.dumps(content, protocol=4)))


def file_sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_whole(path: str | Path, write: Callable[[Path], Any]) -> str:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return file_sha256(path)


def _sniff(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the weights; fetch it with `git lfs pull`"
        )
    if head.lstrip().startswith((b"<!DOCTYPE", b"<html", b"<!doctype", b"<HTML")):
        raise ValueError(f"{path} is a web page, not weights: the download went wrong")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                npz = all(name.endswith(".npy") for name in archive.namelist())
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is cut short or damaged: {error}") from error
        return "numpy" if npz else "torch"
    return "pickle"


def _read_numpy(path: Path) -> Any:
    """Read .npy and .npz; arrays of objects, which are pickles, by the restricted reader."""
    content = path.read_bytes()
    try:
        if content.startswith(b"\x93NUMPY"):
            return _read_npy(content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in names}
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as arrays of numpy: {error}") from error


def _read_npy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(file)
    if dtype.hasobject:
        return load_pickle(file)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    """Find the state dict in what was wrapped around it."""
    while isinstance(content, Mapping):
        inner = next(
            (content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            return content
        content = inner
    raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")


def _flatten(content: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in content.items():
        parts = {str(name): value}
        if isinstance(value, (list, tuple)) or (
            isinstance(value, np.ndarray) and value.dtype == object
        ):
            parts = {f"{name}/{index}": part for index, part in enumerate(value)}
        for key, part in parts.items():
            if isinstance(part, np.ndarray) and part.dtype.kind in "fiub":
                tensors[key] = torch.from_numpy(np.array(part, order="C"))
            elif isinstance(part, Tensor):
                tensors[key] = part.detach()
    return tensors


def _parse(text: Any, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its metadata are damaged: {error}") from error
    return metadata if isinstance(metadata, dict) else {}
