"""The class numbers of ImageNet's devkit, out of `meta.mat`.

A reader of our own for the small part of MATLAB's format that this file uses: SciPy's reads past the end of
memory where a file is damaged.

Source: "MAT-File Format", The MathWorks, level 5.
"""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from backbones.config import printable

_LARGEST, _UNPACKED = 2**21, 2**24  # bytes of the file, and of what it unpacks to
_STRUCT, _TEXT = 2, 4  # classes of arrays; those of numbers are 6 to 15
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # fmt: skip
_ENCODINGS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}


def read_synsets(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid of the classes.

    The columns are ILSVRC2012_ID, WNID, words, gloss, num_children, ...; those without children are the
    classes.

    Raises:
        ValueError: naming the file; it is damaged, or not the devkit's.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        content = path.read_bytes()
        if content[126:128] not in (b"IM", b"MI"):
            raise ValueError("not a MATLAB file of level 5")
        order = "<" if content[126:128] == b"IM" else ">"
        for element, data in _unpacked(_elements(content[128:], order), order):
            if element != _MATRIX:
                continue
            kind, size, name, parts = _open(data, order)
            if name == "synsets":
                if kind != _STRUCT:
                    raise ValueError("synsets is no table")
                rows = _rows(size, parts, order)
                keys = ("ILSVRC2012_ID", "WNID", "num_children")
                values = [[_value(row[key], order) for key in keys] for row in rows]
                return {
                    int(number): str(wnid) for number, wnid, children in values if children == 0
                }
        raise ValueError("no variable 'synsets'")
    except (ValueError, LookupError, struct.error, zlib.error) as error:
        reason = f"lacks {error}" if isinstance(error, LookupError) else str(error)
        raise ValueError(f"{path}: not the devkit's, or damaged ({printable(reason)})") from None


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of the elements that follow each other in `content`."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        begin, room = at + 8, len(content) - at - 8
        if kind >> 16:  # a small one: size and type in four bytes, the data in the next four
            kind, size, begin, room = kind & 0xFFFF, kind >> 16, at + 4, 4
        if size > room:
            raise ValueError("cut short")
        yield kind, content[begin : begin + size]
        is_padded = kind != _COMPRESSED and begin == at + 8
        at = begin + (4 if begin == at + 4 else size + (-size % 8 if is_padded else 0))


def _unpacked(elements: Iterable[tuple[int, bytes]], order: str) -> Iterator[tuple[int, bytes]]:
    for kind, data in elements:
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, _UNPACKED)
            if unpacker.unconsumed_tail:
                raise ValueError(f"it unpacks to more than {_UNPACKED} bytes")
            yield from _elements(data, order)
        else:
            yield kind, data


def _open(data: bytes, order: str) -> tuple[int, int, str, list[tuple[int, bytes]]]:
    """Of an array: its class, how many values it has, its name, and the elements that hold them."""
    flags, sizes, name, *parts = _elements(data, order) if data else ((6, bytes(8)),) * 3
    (flag,) = struct.unpack_from(f"{order}I", flags[1])
    size = math.prod(np.frombuffer(sizes[1], f"{order}i4").tolist())
    return flag & 0xFF, size, name[1].decode("latin1"), parts


def _rows(size: int, parts: list[tuple[int, bytes]], order: str) -> list[dict[str, bytes]]:
    """The rows of an array of structures: one array a column and row."""
    length = int.from_bytes(parts[0][1], "little" if order == "<" else "big")
    names = parts[1][1]
    if not length or not names or len(names) % length:
        raise ValueError("columns without names")
    columns = [
        names[at : at + length].split(b"\0")[0].decode("latin1")
        for at in range(0, len(names), length)
    ]
    values = [data for element, data in parts[2:] if element == _MATRIX]
    if len(values) != size * len(columns):
        raise ValueError(f"{len(values)} values for {size} rows of {len(columns)} columns")
    return [
        dict(zip(columns, values[at : at + len(columns)], strict=True))
        for at in range(0, len(values), len(columns))
    ]


def _value(data: bytes, order: str) -> int | str:
    """The text or the whole number in an array."""
    kind, _, _, parts = _open(data, order)
    element, content = parts[0]
    if kind == _TEXT:
        encoding = _ENCODINGS[element]
        return content.decode(encoding + {"<": "-le", ">": "-be"}[order] * (encoding == "utf-16"))
    values = np.frombuffer(content, order + _NUMBERS[element])
    if len(values) != 1 or not float(values[0]).is_integer():
        raise ValueError(f"{values.tolist()} where a whole number is wanted")
    return int(values[0])
