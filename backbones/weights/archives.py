"""Files of torch.save and numpy, whose parts have declared sizes: checked before memory is taken.

A zip keeps a CRC-32 of each part, which is compared whenever the part is read.
"""

import io
import struct
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.config import first_line
from backbones.weights.pickled_objects import (
    Reference,
    Storage,
    UnsafePickle,
    array_of,
    count_elements,
    storage_type,
)
from backbones.weights.pickles import interpret

# What the first pickle of a `torch.save` stream holds (PyTorch before 1.6), as protocol 2 writes it.
TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

# A zip may unpack to this many bytes whatever its length, and to so many times its length. Weights
# hardly compress; deflate reaches 1000 times on zeros.
_UNPACKED, _RATIO = 1 << 28, 20


def open_zip(content: bytes) -> zipfile.ZipFile:
    """Open a zip in memory and look at what it declares.

    Raises:
        ValueError: it is cut short or damaged, or it would unpack to far more than weights do.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        parts: list[zipfile.ZipInfo] = archive.infolist()
    except Exception as error:  # zipfile has no one error for damaged directories
        raise ValueError(f"cut short or damaged: {first_line(error)}") from error
    if parts and all(part.header_offset for part in parts):
        raise ValueError("bytes before its first part: readers would differ in what it holds")
    if any(part.flag_bits & 1 for part in parts):
        raise ValueError("an encrypted zip")
    if any(part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for part in parts):
        raise ValueError("a zip packed by another method than deflate, which nothing of weights is")
    unpacked = sum(part.file_size for part in parts)
    if unpacked > max(_UNPACKED, _RATIO * len(content)):
        raise ValueError(
            f"a zip of {len(content)} bytes that unpacks to {unpacked}: no weights compress so well"
        )
    if len({part.filename for part in parts}) < len(parts):
        raise ValueError("a zip with two parts of one name")
    if not any(part.CRC for part in parts):  # torch was told to keep no sums: nothing to compare
        for part in parts:
            del part.CRC
    return archive


def read_part(archive: zipfile.ZipFile, name: str) -> bytearray:
    """Read one part of a zip, no more than it declares, and compare its sum.

    Raises:
        ValueError: there is no such part, or it is damaged.
    """
    try:
        part = archive.getinfo(name)
        with archive.open(part) as file:  # `archive.read` unpacks up to 2 GB, whatever is declared
            content = bytearray(file.read(part.file_size))
            if len(content) < part.file_size or file.read(1):
                raise ValueError("its length is not the one declared")
    except Exception as error:
        raise ValueError(f"its part {name} is cut short or damaged: {first_line(error)}") from error
    return content


def read_pickled(content: bytes) -> Any:
    """Read a pickle, or what `torch.save` wrote before PyTorch 1.6.

    Raises:
        UnsafePickle: (a ValueError) it calls something that is not admitted; nothing was executed.
        ValueError: it is damaged, or not a pickle.
    """
    if content.startswith(TORCH_MAGIC):
        return _read_torch_stream(content)
    if content[257:262] == b"ustar":
        raise ValueError("a tar archive (PyTorch before 0.2, or an unopened download)")
    return interpret(io.BytesIO(content), nested=_read_nested)


# torch.save ----------------------------------------------------------------------------------------


def read_torch_zip(archive: zipfile.ZipFile) -> Any:
    """Read what `torch.save` wrote since PyTorch 1.6: a pickle, and one part for each storage.

    Raises:
        UnsafePickle: (a ValueError) it asks for code to be run.
        ValueError: it is damaged.
    """
    names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise UnsafePickle("a TorchScript archive holds a program, not only weights")
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise ValueError("a zip of neither torch.save nor numpy")
    (root,) = roots
    if f"{root}byteorder" in names and read_part(archive, f"{root}byteorder") != b"little":
        raise ValueError("its numbers are in big-endian order")
    found: dict[str, Tensor] = {}

    def storage(key: Any) -> Storage | Reference:
        kind, name, count, _ = _storage_key(key)
        dtype = storage_type(kind)
        if name not in found:
            found[name] = _as_tensor(read_part(archive, f"{root}data/{name}"))
        if len(found[name]) < count * dtype.itemsize:
            raise ValueError(f"storage {name} is shorter than it is said to be")
        return Storage(found[name], dtype)

    held = interpret(io.BytesIO(read_part(archive, f"{root}data.pkl")), persistent=storage)
    for name in names:  # what nothing refers to is compared with its sum as well
        if name != f"{root}data.pkl" and name.removeprefix(f"{root}data/") not in found:
            read_part(archive, name)
    return held


def _read_torch_stream(content: bytes) -> Any:
    """Read what `torch.save` wrote before PyTorch 1.6: pickles, and the storages after them.

    Raises:
        UnsafePickle: (a ValueError) it asks for code to be run.
        ValueError: it is damaged.
    """
    file = io.BytesIO(content)
    file.seek(len(TORCH_MAGIC))
    interpret(file)  # the version
    machine = interpret(file)  # that wrote it
    if isinstance(machine, dict) and not machine.get("little_endian", True):
        raise ValueError("its numbers are in big-endian order")
    found: dict[str, tuple[Tensor, int]] = {}  # bytes, and how many elements

    def storage(key: Any) -> Storage | Reference:
        if isinstance(key, tuple) and len(key) == 4 and key[0] == "module":
            return key[1]  # a class with its source, of a module that was pickled whole
        kind, name, count, view = _storage_key(key)
        dtype = storage_type(kind)
        if name not in found:
            taken = sum(len(tensor) for tensor, _ in found.values())
            if taken + count * dtype.itemsize > len(content):
                raise ValueError("its storages are longer than the file")
            found[name] = torch.empty(count * dtype.itemsize, dtype=torch.uint8), count
        whole = found[name][0]
        if view is not None:
            _, offset, length = view
            count_elements([offset, length])
            whole = whole[offset * dtype.itemsize : (offset + length) * dtype.itemsize]
        return Storage(whole, dtype)

    held = interpret(file, persistent=storage)
    order = interpret(file)
    if not isinstance(order, list) or {str(name) for name in order} != set(found):
        raise ValueError("its list of storages is damaged")
    for name in order:  # the bytes of each: a count, then so many elements
        tensor, count = found[str(name)]
        if file.read(8) != struct.pack("<q", count):
            raise ValueError("cut short or damaged between its storages")
        if file.readinto(tensor.numpy().data) < len(tensor):
            raise ValueError("cut short")
    return held


def _read_nested(content: Any) -> Storage:
    """Read the storage of a tensor that `pickle.dump`, not `torch.save`, wrote."""
    if not isinstance(content, bytes) or not content.startswith(TORCH_MAGIC):
        raise ValueError("a tensor that is none")
    return _read_torch_stream(content)


def _storage_key(key: Any) -> tuple[Any, str, int, Any]:
    """Check (storage, type, name, device, count[, view]) and return type, name, count and view."""
    if (
        not isinstance(key, tuple)
        or len(key) not in (5, 6)
        or key[0] not in ("storage", b"storage")
    ):
        raise UnsafePickle("the pickle refers to something other than a tensor's storage")
    count_elements([key[4]])
    return key[1], str(key[2]), key[4], key[5] if len(key) == 6 else None


def _as_tensor(content: bytearray) -> Tensor:
    if not content:  # which torch.frombuffer refuses
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8)


# numpy ---------------------------------------------------------------------------------------------


def read_npz(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Read the arrays of a `.npz` by name."""
    return {
        name.removesuffix(".npy"): read_npy(bytes(read_part(archive, name)))
        for name in archive.namelist()
    }


def read_npy(content: bytes) -> Any:
    """Read a `.npy`: an array of numbers or text, or the pickled objects in it.

    Raises:
        UnsafePickle: (a ValueError) it asks for code to be run.
        ValueError: it is damaged.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read_header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            return read_pickled(content[file.tell() :])
        if dtype.kind not in "biufSU":
            raise ValueError(f"arrays of {dtype}; numbers and text are read")
        count = count_elements(shape)
        data = memoryview(content)[file.tell() :]
        if count * dtype.itemsize > len(data):
            raise ValueError("cut short")
        return array_of(data[: count * dtype.itemsize], dtype, shape, "F" if fortran else "C")
    except UnsafePickle:
        raise
    except Exception as error:  # numpy's header is parsed as Python, with errors of all kinds
        raise ValueError(f"not an array of numpy, or damaged: {first_line(error)}") from error
