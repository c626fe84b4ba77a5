"""Ways to break a file, all of them functions of bytes and a seeded generator.

Some know nothing of the format (`mutate_bytes`), some break one thing inside a file that is otherwise
whole, so that the fault meets the code behind the parser: a leaf of JSON, an operation of a pickle, an
entry of a zip archive with its checksum right.
"""

import gzip
import io
import itertools
import json
import os
import pickle
import pickletools
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml

Mutation = Callable[[bytes, Random], bytes]
SCRIPT = "<script>alert('sebench')</script>"  # must never stand in a report as it is
_RUN = f"{os.getpid():08d}"  # attacks at the same time do not see each other's
CANARY = f"{tempfile.gettempdir()}/sebench-fuzz-canary-{_RUN}"  # a file that nothing may make
EVIL = f"{tempfile.gettempdir()}/sebench_fuzz_imported_{_RUN}.py"  # a file that makes it
_INTEGERS = (0, 1, -1, 2, 7, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)  # fmt: skip
_DEEP = "@deep{}@"  # becomes a nest of lists of that depth, which json.dumps could not write


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, move or overwrite; the first kilobyte, where headers are, most often."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(content)
        if size < 4:
            return bytes(content) + rng.randbytes(8)
        at = rng.randrange(min(size, 1024)) if rng.random() < 0.5 else rng.randrange(size)
        length = min(rng.choice((1, 2, 4, 8, 64, 512)), size - at)
        action = rng.randrange(10)
        if action < 3:
            content[at] ^= 1 << rng.randrange(8)
        elif action == 3:
            content[at] = rng.choice((0, 1, 127, 128, 255, ord("0"), ord("\n"), ord(".")))
        elif action == 4:
            del content[at : size if rng.random() < 0.5 else at + length]
        elif action == 5:
            content[at:at] = content[at : at + length] * rng.choice((1, 3, 100))
        elif action == 6:
            content[at : at + length] = rng.randbytes(length)
        elif action == 7:
            other = rng.randrange(size)
            content[at : at + length] = content[other : other + length]
        elif action == 8:
            width = rng.choice((2, 4, 8))
            value = rng.choice((*_INTEGERS, size, size + 1, size - 1)) % 256**width
            content[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        else:
            content += rng.choice((b"\0" * 100, rng.randbytes(100), data))
    return bytes(content)


# Trees of plain values ---------------------------------------------------------------------------


def odd_value(current: Any, rng: Random) -> Any:
    """What does not belong where `current` stands, or only just does."""
    odd = [
        *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
        *(2**53 + 1, 2**63, 2**64, -(2**31), 10**30, 10**400),
        *("", "text", "1", "nan", "null", "\x1b[31mred\x1b[0m", "two\nlines", "\0", "\ud800"),
        *(
            [EVIL],
            "../../outside",
            "/etc/passwd",
            "x" * 100_000,
            SCRIPT,
            "${oc.env:HOME}",
            "١٢",
            "²",
        ),
        *([], {}, [[]], [None], {"": None}, [current], {"a": current}, [current, current]),
        *(str(current)[:1000], _DEEP.format(100), _DEEP.format(5000), _DEEP.format(100_000)),
    ]
    if isinstance(current, (int, float)) and not isinstance(current, bool):
        odd += [-current, current + 1, current * 1000, current + 0.5, float(current)] * 3
    return rng.choice(odd)


def mutate_tree(tree: Any, rng: Random) -> Any:
    """A copy of nested lists and dicts in which one to three things are wrong."""
    holder = [pickle.loads(pickle.dumps(tree))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        container, key = rng.choice(places)
        action = rng.randrange(8)
        if action == 0 and container is not holder:
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(("", "x", "id", key + " ", SCRIPT))] = container.pop(key)
        elif action == 2 and isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), container[key])
        elif action == 3:
            other, at = rng.choice(places)
            container[key] = pickle.loads(pickle.dumps(other[at]))
        else:
            container[key] = odd_value(container[key], rng)
    return holder[0]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(
        container.items() if isinstance(container, dict) else enumerate(container)
    ):
        yield container, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def mutate_json(data: bytes, rng: Random) -> bytes:
    action = rng.randrange(10)
    if action == 0:
        return mutate_bytes(data, rng)
    if action == 1:
        return rng.choice(
            (
                data.decode().encode("utf-16"),
                b"\xef\xbb\xbf" + data,
                data + data,
                data.replace(b":", b":1,", 1),
                data.replace(b"1", b"1" * 5000, 1),
                b"[" * 100_000,
                b'{"a":' * 100_000,
                b"",
                b"null",
            )
        )
    return _dump_json(mutate_tree(json.loads(data), rng))


def _dump_json(tree: Any) -> bytes:
    return deepen(json.dumps(tree)).encode()


def deepen(text: str) -> str:
    for depth in (100, 5000, 100_000):
        text = text.replace(f'"{_DEEP.format(depth)}"', "[" * depth + "]" * depth)
    return text


_YAML_TRICKS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + b] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
    f"!!python/object/apply:os.system ['touch {CANARY}']\n",
    f"seed: !!python/object/apply:os.system ['touch {CANARY}']\n",
    "&a [*a]\n", "a: &a {b: *a}\n", "seed: ${seed}\n", "seed: ${oc.env:HOME}\n", "<<: 3\n",
    "? [a]\n: b\n", "a: 1\na: 2\n", "\t- x\n", "seed: 2026-01-01\n", "seed: 0o17\n", "seed: 1:30:00\n", "seed: .nan\n",
    "seed: !!binary aGVsbG8=\n", "seed: !!set {a}\n", "%YAML 9.9\n---\nseed: 1\n", "---\na: 1\n---\nb: 2\n",
)  # fmt: skip


def mutate_yaml(data: bytes, rng: Random) -> bytes:
    action = rng.randrange(10)
    if action == 0:
        return mutate_bytes(data, rng)
    if action == 1:
        trick = rng.choice(_YAML_TRICKS).encode()
        return trick + data if rng.random() < 0.5 else trick
    if action == 2:
        return rng.choice(
            (data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data, b"", b"[" * 5000)
        )
    tree = mutate_tree(yaml.safe_load(data), rng)
    text = yaml.safe_dump(tree, sort_keys=False, width=10**6).replace(
        _DEEP.format(100_000), _DEEP.format(5000)
    )
    return deepen(text.replace("'@", '"@').replace("@'", '@"')).encode("utf-8", "surrogatepass")


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Break a list file, one entry a line."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    text = data.decode()
    whole = (
        text.replace("\n", "\r\n"), "\ufeff" + text, text.upper(), text.replace(" ", "\t"), text.replace(" ", "  "),
        text.replace("/", "\\"), text + "\n\n", text * 2, "", "\n", text.replace(" ", ","), text.replace("\n", "\r"),
    )  # fmt: skip
    if rng.random() < 0.2:
        return rng.choice(whole).encode(
            rng.choice(("utf-8", "utf-8", "utf-16", "latin1")), "replace"
        )
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        name, space, label = lines[at].rpartition(" ")
        odd = rng.choice(
            (
                "-1",
                "²",
                "١",
                "1.0",
                "0x1",
                "99999",
                "1" * 5000,
                "",
                "nan",
                "+1",
                "1_0",
                "\0",
                "00",
                "0 ",
            )
        )
        lines[at] = rng.choice(
            (
                name + space + odd,
                odd + space + label,
                lines[rng.randrange(len(lines))],
                name,
                "../" + lines[at],
                "/etc/" + lines[at],
                "./" + lines[at],
                lines[at] + "\x85x",
                "\x1b[2J" + lines[at],
                "x" * 100_000,
                lines[at].replace("/", "//"),
                "é" + lines[at],
                "# " + lines[at],
            )
        )
        if rng.random() < 0.3:
            del lines[rng.randrange(len(lines))]
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Pickles -----------------------------------------------------------------------------------------


def _pushed(value: Any) -> bytes:
    """Operations that leave a plain value on the stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _call(module: str, name: str, *arguments: Any) -> bytes:
    return f"c{module}\n{name}\n".encode() + _pushed(arguments) + b"R"


def _dtype(text: str, *state: Any) -> bytes:
    return _call("numpy", "dtype", text, 0, 1) + _pushed(state) + b"b"


_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _pushed((0,)) + _pushed(b"b") + b"tR"  # fmt: skip
_FORGED = (
    _call("os", "system", f"touch {CANARY}"),
    _call("posix", "system", f"touch {CANARY}"),
    _call("builtins", "exec", f"open({CANARY!r}, 'w')"),
    _call("__builtin__", "eval", f"open({CANARY!r}, 'w')"),
    _call("builtins", "open", CANARY, "w"),
    _call("io", "open", CANARY, "w"),
    _call("subprocess", "Popen", ["touch", CANARY]),
    _call("shutil", "copyfile", "/etc/hostname", CANARY),
    _call("numpy", "save", CANARY, 1),
    _call("torch", "save", 1, CANARY),
    _call("torch.hub", "load", "owner/name", "model"),
    _call("torch", "load", CANARY),
    _call("torch.storage", "_load_from_bytes", b"\x80\x02]."),
    _call("builtins", "getattr", "", "__class__"),
    _call("builtins", "bytearray", 10**13),
    _call("builtins", "list", "x" * 1000),
    _call("builtins", "int", "9" * 4000),
    _call("builtins", "tuple", {}),
    _call("builtins", "complex", "x"),
    _call("_codecs", "encode", "x", "rot13"),
    _call("_codecs", "encode", 1),
    _call("torch", "Size", [2**62, 2**62]),
    _call("torch", "device", "cuda:99"),
    _call("torch._utils", "_rebuild_parameter", 1, True, {}),
    _call("torch._utils", "_rebuild_tensor_v2", None, 0, (10**12,), (0,), False, {}),
    _call("torch._utils", "_rebuild_tensor_v2", 1, -5, (-1,), (2**62,), "x", {}),
    b"ccollections\ndefaultdict\n(cos\nsystem\ntR" + _pushed("x") + _pushed(1) + b"s",
    b"cargparse\nNamespace\n)\x81" + _pushed({"__class__": 1, "x": 2}) + b"b",
    _dtype("f4", 3, "<", None, None, None, -1, -1, 63),
    _dtype("O", 3, "|", None, None, None, -1, -1, 0),
    _dtype("V8", 3, "|", None, ["a"], {"a": (1, 2**40)}, 8, 1, 0),
    _dtype("V8", 4, "|", ("f4", (10**9, 10**9)), None, None, 8, 1, 0, {}),
    _dtype("f4", 9, "", 1, 2, 3),
    _dtype("U4", 3, "<", None, None, None, 2**31 - 1, 4, 8),
    _ARRAY + b"(" + _pushed(1) + _pushed((10**12,)) + _dtype("f4", 3, "<", None, None, None, -1, -1, 0) + b"\x89" + _pushed(b"") + b"tb",
    _ARRAY + b"(" + _pushed(1) + _pushed((4,)) + _dtype("f4", 3, "<", None, None, None, -1, -1, 63) + b"\x89" + _pushed(b"\x41" * 32) + b"tb",
    _ARRAY + b"(" + _pushed(1) + _pushed((2,)) + _dtype("O", 3, "|", None, None, None, -1, -1, 0) + b"\x89" + _pushed(b"\x41" * 16) + b"tb",
    _ARRAY + b"(" + _pushed(1) + _pushed((-3, 2)) + _dtype("f4", 3, "<", None, None, None, -1, -1, 0) + b"\x89" + _pushed(b"\0" * 24) + b"tb",
    b"cnumpy.core.multiarray\nscalar\n" + _dtype("O", 3, "|", None, None, None, -1, -1, 63) + _pushed(b"\x41" * 8) + b"\x86R",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _pushed((10**12,)) + _pushed(b"f8") + b"tR",
    b"cnumpy.core.numeric\n_frombuffer\n(" + _pushed(b"\0" * 8) + _dtype("O", 3, "|", None, None, None, -1, -1, 63) + _pushed((1,)) + _pushed("C") + b"tR",
    b"}" + b")" + b"\x85" * 100_000 + b"Ns",  # a deep tuple as a key: its hash recurses in C
    b"]" * 50_000 + b"a" * 49_999,
    b"(" * 100_000,
    b"]q\xffh\xffa",  # a list in itself
    b"}q\xff" + _pushed("state_dict") + b"h\xffs",  # a dictionary in itself
    b"}q\xff" + _pushed("model") + b"h\xffs",
    b"\x8b\xff\xff\xff\x7f",  # LONG4 of 2 GB
    b"\x8d" + b"\xff" * 7 + b"\x7f",  # BINUNICODE8
    b"\x96" + (2**40).to_bytes(8, "little"),  # BYTEARRAY8
    b"r\xff\xff\xff\x7f",  # LONG_BINPUT: a memo of 2**31 entries
    b"j\xff\xff\xff\x7f", b"h\x01", b"h\xfe", b"Q", b"P12\n", b"\x82\x01", b"I99999999999999999999\n", b"Fnan\n",
    b"V\\ud800\n", b"S'\\xff'\n", b"N", b"}", b"]", b"b", b"R", b"s", b"u", b"a", b"e", b"0", b"1", b"2", b"t", b"\x85", b"\x93", b"\x81", b"\x92",
    b"}b", b"]b", b"Nb", _pushed((None, {"__setstate__": 1})) + b"b", _pushed({"shape": 1, "dtype": 2}) + b"b",
)  # fmt: skip
_NAMES = ("os system", "builtins eval", "numpy dtype", "numpy ndarray", "collections OrderedDict", "torch FloatStorage",
          "torch LongStorage", "torch BoolStorage", "torch QInt8Storage", "torch UntypedStorage", "torch Tensor", "torch float16",
          "torch._utils _rebuild_tensor", "numpy.core.multiarray scalar", "builtins set", "argparse Namespace")  # fmt: skip


def split_pickle(data: bytes) -> tuple[list[bytes], bytes]:
    """The operations of one pickle or several after each other, and the bytes behind them."""
    pieces, start = [], 0
    while start < len(data):
        try:
            places = [place for _, _, place in pickletools.genops(data[start:])]
        except Exception:
            break
        end = data.index(b".", start + places[-1]) + 1
        bounds = [start + place for place in places] + [end]
        pieces += [data[a:b] for a, b in itertools.pairwise(bounds)]
        start = end
    return pieces, data[start:]


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Change, move, add or drop operations of a pickle whose other operations stay whole."""
    pieces, rest = split_pickle(data)
    if not pieces or rng.random() < 0.2:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, action = rng.randrange(len(pieces)), rng.randrange(8)
        if action == 0 and len(pieces) > 1:
            del pieces[at]
        elif action == 1:
            pieces.insert(at, pieces[rng.randrange(len(pieces))])
        elif action == 2:
            other = rng.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif action == 3:
            numbers = [i for i, piece in enumerate(pieces) if piece[:1] in b"KMJI\x8a"]
            value = rng.choice((*_INTEGERS, -5, 3, 4, 10**12))
            pieces[rng.choice(numbers or [at])] = _pushed(value)
        elif action == 4:
            named = [i for i, piece in enumerate(pieces) if piece[:1] == b"c"]
            module, name = rng.choice(_NAMES).split()
            pieces[rng.choice(named or [at])] = f"c{module}\n{name}\n".encode()
        elif action == 5:
            pieces[at] = rng.choice(_FORGED)
        else:
            pieces.insert(at, rng.choice(_FORGED))
    return b"".join(pieces) + rest


# Archives and compressed streams -----------------------------------------------------------------


def bomb(megabytes: int) -> bytes:
    """A raw deflate stream of that many megabytes of zeros, a thousandth as long."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + packer.flush()


def write_zip(entries: list[dict[str, Any]]) -> bytes:
    """A zip archive of entries {name, data, method, size, crc, stored}: fields may lie."""
    body, directory = io.BytesIO(), b""
    for entry in entries:
        name, data = entry["name"].encode("utf-8", "surrogatepass"), entry["data"]
        crc = entry.get("crc", zlib.crc32(data)) & 0xFFFFFFFF
        size, stored = entry.get("size", len(data)) & 0xFFFFFFFF, data
        if entry.get("method", 0) == 8:
            packer = zlib.compressobj(6, wbits=-15)
            stored = entry.get("stored") or packer.compress(data) + packer.flush()
        fields = (entry.get("flags", 0), entry.get("method", 0), 0, 33, crc, len(stored), size)
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(name), 0)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *fields, len(name), 0, 0, 0, 0, 0, body.tell()) + name  # fmt: skip
        body.write(local + name + stored)
    count, start = len(entries), body.tell()
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return body.getvalue() + directory + end


def mutate_zip(data: bytes, rng: Random, inner: Mutation = mutate_bytes) -> bytes:
    """Break one entry, or one field of the archive, of a zip file that is otherwise whole."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [{"name": n, "data": archive.read(n)} for n in archive.namelist()]
    pickles = [entry for entry in entries if entry["name"].endswith(".pkl")]
    entry = rng.choice(pickles if pickles and rng.random() < 0.6 else entries)
    action = rng.randrange(10)
    if action < 5:
        entry["data"] = inner(entry["data"], rng)
    elif action == 5:
        entry["crc"] = rng.getrandbits(32)
    elif action == 6:
        entry["size"] = rng.choice(_INTEGERS)
    elif action == 7:
        entry["name"] = rng.choice(("", "../x", "/etc/x", entries[0]["name"], entry["name"] + "x", "data.pkl", "x" * 300))  # fmt: skip
    elif action == 8:
        entry |= {"method": 8, "stored": bomb(3000), "size": rng.choice((3000 * 2**20, 100))}
    else:
        entry |= rng.choice(({"method": 8}, {"method": 99}, {"flags": 1}, {"method": 8, "crc": 1}))
        if rng.random() < 0.3:
            entries.remove(entry)
    return write_zip(entries)


def mutate_gzip(data: bytes, rng: Random) -> bytes:
    """Break the archive, or what it holds."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    content = gzip.decompress(data)
    if rng.random() < 0.1:
        return data[:10] + bomb(3000) + b"\0" * 8
    if rng.random() < 0.1:
        return data + data
    return gzip.compress(mutate_bytes(content, rng), mtime=0)
