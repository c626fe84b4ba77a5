"""Files of tensors, whoever wrote them: names and tensors in, names and tensors out.

What kind of file it is shows in its first bytes, never in its name. Nothing in a file is executed.
"""

import hashlib
import json
import logging
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from backbones.files import RECORD, WEIGHTS, sha256, write_whole
from backbones.weights.archives import open_zip, read_npy, read_npz, read_pickled, read_torch_zip
from backbones.weights.pickled_objects import UnsafePickle, get_metadata, set_metadata
from backbones.weights.state_dicts import find_state_dict, tensors_of

logger = logging.getLogger(__name__)

# What we add to a file lies under this name, as JSON: in the metadata of safetensors, beside the
# model in a Detectron2 pickle, and in the `_metadata` that every state dict of torch carries.
_OURS = "sebench"

# What a folder of weights keeps them in, the first that is there.
_IN_FOLDERS = (
    WEIGHTS,
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# First bytes -> what the file is and how to get weights from it.
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights; fetch it with `git lfs pull`",
    b"\x89HDF\r\n": "HDF5 (Keras, h5py); save its arrays by name with numpy.savez",
    b"GGUF": "GGUF, for language models",
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"BZh": "packed with bzip2; unpack it first",
    b"\xfd7zXZ": "packed with xz; unpack it first",
    b"MATLAB 5.0": "a MATLAB file; save its arrays by name with numpy.savez",
}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file under their own names, and what it says about itself."""

    path: str
    sha256: str
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)  # ours, if we wrote it
    author: str | None = None  # `__author__` of Detectron2's pickles
    found_in: str = ""  # the keys that led to the state dict, e.g. "model_ema"


def read_tensors(path: str | Path) -> TensorFile:
    """Read a file of tensors: safetensors, torch.save of any age, .npz, .npy or a plain pickle.

    A folder that a library saved is read by its index, or its one file of weights; the SHA-256 of
    several files is that of the index and theirs. The state dict is found in what training scripts
    wrap around it, prefixes such as `module.` are dropped, and lists of arrays (Caffe's blobs)
    become `NAME/0`, `NAME/1`, ... The file is opened once.

    Raises:
        ValueError: no such file, not a whole one, or nothing like a state dict in it.
        UnsafePickle: (a ValueError) the file asks for code to be run.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in_folder(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: no such file")
    content = path.read_bytes()
    try:
        if path.name.endswith(".index.json"):
            return _read_sharded(path, content)
        return _interpret(path, content)
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        message = (
            reason if reason.startswith(str(path.parent)) else f"{path} cannot be read: {reason}"
        )
        raise ValueError(message) from error


def sha256_of_weights(path: str | Path) -> str:
    """Return the SHA-256 that `read_tensors` gives, reading tensors only where several files hold them.

    Raises:
        ValueError: no weights there.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in_folder(path)
    return read_tensors(path).sha256 if path.name.endswith(".index.json") else sha256(path)


def save_state(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able metadata to a safetensors file, whole or not at all.

    Equal tensors and metadata give equal bytes. (The safetensors library's own writer orders the
    metadata at random.)

    Returns:
        The SHA-256 of the file.
    """
    # Large items first, so that each tensor begins at a multiple of its item's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _OURS: _as_json(metadata)}}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        dtype, shape = _DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                file.write(_bytes_of(tensors[name]))

    return _write(path, write)


def save_torch(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write a plain state dict, which `load_state_dict` of any library takes as it is.

    Returns:
        The SHA-256 of the file.
    """
    state = OrderedDict((name, tensors[name].detach().cpu().clone()) for name in sorted(tensors))
    set_metadata(state, {_OURS: _as_json(metadata)})

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # opened here: torch writes the name of a path into the file
            torch.save(state, file)

    return _write(path, write)


def save_detectron2(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> str:
    """Write a pickle of arrays for Detectron2's checkpointer.

    It matches names by their suffix: `res2.0.conv1.weight` goes to `backbone.bottom_up.res2.0.conv1.weight`.

    Returns:
        The SHA-256 of the file.
    """
    arrays: dict[int, np.ndarray] = {}  # one for tensors under two names
    for tensor in tensors.values():
        arrays.setdefault(id(tensor), np.array(tensor.detach().cpu().numpy(), order="C"))
    content = {
        "model": {name: arrays[id(tensors[name])] for name in sorted(tensors)},
        "__author__": "sebench",
        "matching_heuristics": True,
        _OURS: _as_json(metadata),
    }
    return _write(path, lambda part: part.write_bytes(pickle.dumps(content, protocol=4)))


def _write(path: str | Path, write: Any) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
    return sha256(path)


def _as_json(metadata: Mapping[str, Any]) -> str:
    return json.dumps(dict(metadata), sort_keys=True)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


# Reading -------------------------------------------------------------------------------------------


def _interpret(path: Path, content: bytes) -> TensorFile:
    if len(content) < 8:
        raise ValueError(f"it has {len(content)} bytes")
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        raise ValueError("one of several files that belong together; give the folder or its index")
    digest = hashlib.sha256(content).hexdigest()
    _compare_with_record(path, digest)
    _compare_with_name(path, digest)
    held = _unpack(content)
    state, found_in = find_state_dict(held)
    metadata: dict[str, Any] = {}
    for told in (held, get_metadata(state)):
        if isinstance(told, Mapping) and _OURS in told:
            metadata = _parse(told[_OURS])
    author = held.get("__author__") if isinstance(held, Mapping) else None
    author = author if isinstance(author, str) else None
    return TensorFile(str(path), digest, tensors_of(state), metadata, author, found_in)


def _compare_with_record(path: Path, digest: str) -> None:
    """Compare weights with the SHA-256 that the record of their run has.

    Raises:
        ValueError: they changed since. What is wrong with the record itself is not told here.
    """
    try:
        record = json.loads((path.parent / RECORD).read_bytes())
        told = record["weights"]
        known = told["sha256"] if told["path"] == path.name else None
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return
    if isinstance(known, str) and known != digest:
        raise ValueError(
            f"it changed after its run: {RECORD} beside it has the SHA-256 {known[:16]}..., the file"
            f" {digest[:16]}...; restore it, or move it elsewhere to use it as it is"
        )


def _compare_with_name(path: Path, digest: str) -> None:
    """Warn where a file's name has the beginning of a SHA-256, as published weights have, not its own.

    The torch.save streams of before PyTorch 1.6 have no other checksum.
    """
    told = re.search(r"-(?=\d*[a-f])([0-9a-f]{8})\.", path.name)  # digits alone would be a date
    if told and not digest.startswith(told[1]):
        logger.warning(
            "%s: its name promises a SHA-256 that begins with %s, it has %s...: damaged, or changed",
            path,
            told[1],
            digest[:8],
        )


def _unpack(content: bytes) -> Any:
    """Return what a file holds."""
    head = content[:64]
    for beginning, what in _OTHERS.items():
        if head.startswith(beginning):
            raise ValueError(f"it is {what}")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError("it is a web page, not weights: the download went wrong")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(content):
        return _read_safetensors(content)
    if head.startswith(b"\x93NUMPY"):
        return read_npy(content)
    if head.startswith(b"PK"):
        with open_zip(content) as archive:
            is_numpy = all(name.endswith(".npy") for name in archive.namelist())
            return read_npz(archive) if is_numpy else read_torch_zip(archive)
    return read_pickled(content)


def _read_safetensors(content: bytes) -> dict[str, Any]:
    """Return the tensors and, beside them, the text that we add. Raises ValueError if not whole."""
    try:
        tensors = dict(sorted(safetensors.torch.load(content).items()))  # the library has no order
    except Exception as error:  # of the library, or of torch for a dtype that it has not
        raise ValueError(f"not a whole safetensors file: {error}") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    added = header.get("__metadata__", {}).get(_OURS)
    return tensors if added is None else {**tensors, _OURS: added}


def _read_sharded(path: Path, content: bytes) -> TensorFile:
    """Read the files that an index names; their one SHA-256 is that of all their SHA-256s."""
    try:
        files = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("not an index of weights: it has no weight_map") from error
    digest = hashlib.sha256(content)
    tensors: dict[str, Tensor] = {}
    for name in files:
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not (path.parent / name).is_file()
        ):
            raise ValueError(f"its file {str(name)[:80]!r} does not lie beside it")
        part = (path.parent / name).read_bytes()
        digest.update(hashlib.sha256(part).digest())
        state, _ = find_state_dict(_unpack(part))
        tensors |= tensors_of(state)
    return TensorFile(str(path), digest.hexdigest(), tensors)


def _file_in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.distcp")):
        raise ValueError(
            f"{folder} is a checkpoint of torch.distributed; join it with `python -m"
            " torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
        )
    found = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".pth", ".pt")]
    if len(found) == 1:
        return found[0]
    words = ", ".join(p.name for p in found[:5]) or "no file of weights"
    raise ValueError(f"{folder} is a folder with {words}; give one file of weights")


def _parse(text: Any) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata are damaged: {str(error)[:200]}") from error
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are damaged: not a JSON object")
    return metadata
