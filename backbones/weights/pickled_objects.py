"""What a pickle may build: containers, arrays, tensors; and inert placeholders for the rest.

A literal table maps the names in a file to functions of ours, which take plain values and check
them. No object of a library is handed to a pickle, so that none can be called or tampered with.
"""

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_EXPANDED = 1 << 20  # elements of a tensor that repeats its storage by strides of 0

# Item sizes of the kinds of arrays that hold numbers; those of text are in the type's name.
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
_OBJECT_FLAGS = 63  # of numpy's dtype "O"
_TEXT_FLAGS = 8  # of numpy's dtype "U"

DTYPES: dict[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
# Type of a storage -> dtype of its elements.
STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class UnsafePickle(ValueError):
    """A pickle calls something that builds neither a container nor a tensor nor an array."""


@dataclass(eq=False)
class Foreign:
    """Placeholder for a non-tensor object in a checkpoint, e.g. argparse.Namespace."""

    name: str
    content: dict[Any, Any] = field(default_factory=dict)  # its items, if it is a mapping
    state: Any = None


@dataclass(frozen=True, eq=False)
class Reference:
    """A name in a pickle, and the function of ours that stands for it."""

    module: str
    name: str
    build: Callable[..., Any] | None = None  # None: what it names is not admitted

    def call(self, *arguments: Any) -> Any:
        """Build what the named class or function would.

        Raises:
            UnsafePickle: it is a function, or a class of Python's own, that is not admitted.
        """
        if self.build is not None:
            return self.build(*arguments)
        if _is_class_of_data(self.module, self.name):
            return Foreign(f"{self.module}.{self.name}")
        raise UnsafePickle(
            f"the pickle asks for '{self.module}.{self.name}', which is neither a tensor, an array"
            " nor a plain container; it is not executed. Where you trust the file, load it with its"
            " own library and save only its state dict"
        )


def refer(module: Any, name: Any) -> Reference:
    """Resolve a name in a pickle, importing nothing."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name that is not text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # Python 2
    if module.startswith("numpy.core"):  # numpy before 2.0
        module = module.replace("numpy.core", "numpy._core", 1)
    return Reference(module, name, _BUILDERS.get((module, name)))


def set_metadata(state: OrderedDict, metadata: Any) -> None:
    """Keep what torch's modules tell about a state dict, in the attribute where they keep it.

    Torch has no public name for it. Were it another, files that `save_torch` wrote would lose
    classes and input format on the way back, which a test of the conversion would notice.
    """
    setattr(state, "_metadata", metadata)  # noqa: B010 - OrderedDict declares no attributes


def get_metadata(state: Any) -> Any:
    """Return what `set_metadata` set, or None."""
    return getattr(state, "_metadata", None)


# Placeholders --------------------------------------------------------------------------------------

# Package -> classes whose objects training scripts keep beside the tensors.
_INERT = {
    "argparse": ("Namespace",),
    "builtins": ("object", "range", "slice"),
    "collections": ("deque",),
    "datetime": ("date", "datetime", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "functools": ("partial",),
    "numpy": ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
}


def _is_class_of_data(module: str, name: str) -> bool:
    """Whether an object of that class may be a placeholder: by the custom of naming classes."""
    root = module.partition(".")[0]
    if name in _INERT.get(root, ()):
        return True
    if root in sys.stdlib_module_names or root in ("nt", "posix", "__builtins__"):
        return False
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()


def _reconstruct_object(cls: Any, base: Any = None, state: Any = None) -> Foreign:
    """Stand for copyreg's functions, which make an object of a class without calling it."""
    if not isinstance(cls, Reference):
        raise TypeError("an object of something that is no class")
    made = cls.call()
    if not isinstance(made, Foreign):
        raise TypeError(f"an object of {cls.name} without its values")
    if isinstance(state, dict):
        made.content = dict(state)
    return made


# Arrays --------------------------------------------------------------------------------------------


class ArrayType:
    """A numpy dtype of kind b, i, u, f, S, U, or O for arrays of objects, as plain values."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        parts = re.fullmatch(r"([<>|=]?)([biufSUO])(\d{1,9})", code) if type(code) is str else None
        self.order, self.kind, size = parts.groups() if parts else ("", "", "")
        if parts is None or int(size) not in _SIZES.get(self.kind, (int(size),)):
            raise ValueError(f"an array type {str(code)[:40]!r}; numbers and text are read")
        self.size = int(size)

    def set_state(self, state: Any) -> None:
        """Take the byte order. The rest of the state has one right value for each kind.

        Raises:
            ValueError: it has another, which could make numpy take bytes for addresses.
        """
        allowed = {"O": (_OBJECT_FLAGS,), "U": (0, _TEXT_FLAGS)}.get(self.kind, (0,))
        if (
            not isinstance(state, tuple)
            or len(state) != 8
            or state[1] not in ("<", ">", "|", "=")
            or any(part is not None for part in state[2:5])
            or state[7] not in allowed
        ):
            raise ValueError("an array type with a forged state")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """Return the dtype. Raises ValueError for arrays of objects, which numpy would call into."""
        if self.kind == "O":
            raise ValueError("objects where numbers are wanted")
        order = self.order if self.order in ("<", ">") else ""
        return np.dtype(f"{order}{self.kind}{self.size}")


class ArrayShell:
    """An array whose state has not been set."""

    def __init__(self, *arguments: Any) -> None:
        self.memo_keys: list[int] = []

    def build(self, state: Any) -> Any:
        """Return the array of a state (version, shape, type, whether in Fortran's order, data).

        An array of objects comes as a list; of one object without a shape, as that object.
        """
        _, shape, kind, fortran, data = state
        if isinstance(kind, ArrayType) and kind.kind == "O":
            count = count_elements(shape)
            if not isinstance(data, list) or len(data) != count:
                raise ValueError("an array of objects without them")
            return data[0] if shape == () else data
        return array_of(data, kind, shape, "F" if fortran else "C")


def count_elements(shape: Any) -> int:
    """Return the product of a shape. Raises ValueError unless it is of whole numbers from 0 on."""
    if not isinstance(shape, (tuple, list)) or len(shape) > 32:
        raise ValueError("a shape that is none")
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"a shape {tuple(shape)}"[:80])
    return math.prod(shape)


def array_of(data: Any, kind: Any, shape: Sequence[int], order: Any = "C") -> np.ndarray:
    """Return the array whose bytes are `data` (bytes, or Python 2's text).

    Args:
        kind: an ArrayType, or numpy's dtype.

    Raises:
        ValueError: there are fewer or more bytes than the shape says.
    """
    dtype = kind.numpy() if isinstance(kind, ArrayType) else kind
    if not isinstance(dtype, np.dtype):
        raise TypeError("an array without a type")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, (bytes, bytearray, memoryview)):
        raise TypeError("an array without bytes")
    count = count_elements(shape)
    if len(raw) != count * dtype.itemsize:
        raise ValueError(f"an array of shape {tuple(shape)} in {len(raw)} bytes")
    if dtype.itemsize == 0 and count:
        raise ValueError("an array of text without room for any")
    array = np.frombuffer(raw, np.uint8 if dtype.kind == "b" else dtype)
    if dtype.kind == "b":
        array = array != 0  # a bool that is neither 0 nor 1 would be no bool
    return array.reshape(shape, order="F" if order == "F" else "C")


def _array_from_buffer(
    buffer: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None
) -> np.ndarray:
    array = array_of(buffer, dtype, shape, order)
    if axes is None:
        return array
    count_elements(axes)
    return array.transpose(axes)


# Tensors -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Storage:
    """The bytes of a tensor, and what its type says they are."""

    content: Tensor  # (bytes,), uint8
    dtype: torch.dtype


def storage_type(reference: Any) -> torch.dtype:
    """Return the dtype of a storage's elements.

    Raises:
        ValueError: it is not a type of storage that is read (e.g. quantized).
    """
    name = reference.name if isinstance(reference, Reference) else str(reference)
    if name not in STORAGES:
        raise ValueError(f"a storage of type {name[:40]!r}; tensors of numbers are read")
    return STORAGES[name]


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: Any = None
) -> Tensor:
    """Stand for torch's `_rebuild_tensor` and `_rebuild_tensor_v2`: a view of a storage."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    dtype = dtype or storage.dtype
    whole = storage.content[: len(storage.content) // dtype.itemsize * dtype.itemsize].view(dtype)
    count = count_elements(size)
    count_elements([offset])
    count_elements(stride)
    if len(size) != len(stride) or len(size) > 16:
        raise ValueError("a tensor with as many strides as it has no sides")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= len(whole) or count > max(len(whole), _EXPANDED)):
        raise ValueError(f"a tensor of shape {tuple(size)} in a storage of {len(whole)} elements")
    if not count:
        return torch.empty(tuple(size), dtype=dtype)
    return torch.as_strided(whole, tuple(size), tuple(stride), offset)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """Stand for torch's `_rebuild_tensor_v3`, of dtypes that have no storage of their own."""
    if not isinstance(dtype, Reference) or dtype.name not in DTYPES:
        raise TypeError("a tensor without a dtype")
    return _tensor(storage, offset, size, stride, dtype=DTYPES[dtype.name])


def _subclass(build: Any, cls: Any, arguments: Any, state: Any) -> Any:
    """Stand for torch's `_rebuild_from_type_v2`: the tensor without its subclass."""
    if not isinstance(build, Reference) or not isinstance(arguments, tuple):
        raise TypeError("a tensor of nothing")
    return build.call(*arguments)


# Containers ----------------------------------------------------------------------------------------


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """What `_codecs.encode` does in protocol-2 pickles of bytes; other codecs are not needed."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickle(f"the pickle encodes text as {encoding!r}; only 'latin1' is admitted")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: Any = None) -> bytes:
    """Bytes, never of a number, which would be that many."""
    if isinstance(content, str):
        return _latin1(content, encoding)
    if not isinstance(content, (bytes, bytearray, list, tuple)):
        raise TypeError("bytes of a number")
    return bytes(content)


def _checked(make: type, kinds: tuple[type, ...]) -> Callable[..., Any]:
    def build(*parts: Any) -> Any:
        if not all(isinstance(part, kinds) for part in parts):
            raise TypeError(f"a {make.__name__} of something else")
        if kinds is _NUMBERS and any(len(str(part)) > 400 for part in parts):
            raise ValueError(f"a {make.__name__} of too many digits")
        return make(*parts)

    return build


_NUMBERS = (int, float, str)
_SEQUENCES = (list, tuple, set, frozenset)
_COLLECTIONS = (*_SEQUENCES, Mapping, str, bytes)


def _refuse(what: str) -> Callable[..., NoReturn]:
    def build(*arguments: Any) -> NoReturn:
        raise UnsafePickle(f"the pickle makes {what}")

    return build


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda default=None, items=(): dict(items),
    ("collections", "Counter"): dict,
    ("_codecs", "encode"): _latin1,
    ("copyreg", "_reconstructor"): _reconstruct_object,
    ("copyreg", "__newobj__"): _reconstruct_object,
    ("builtins", "dict"): dict,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): lambda *given: bytearray(_bytes(*given)),
    ("builtins", "type"): _refuse("classes; it is not executed"),
    ("numpy._core.multiarray", "_reconstruct"): ArrayShell,
    ("numpy._core.multiarray", "scalar"): lambda kind, data=b"": array_of(data, kind, ())[()],
    ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy", "dtype"): ArrayType,
    ("numpy", "ndarray"): _refuse("arrays of raw memory, as numpy's own never do"),
    ("torch", "Size"): _checked(tuple, _COLLECTIONS),
    ("torch", "device"): lambda *parts: ":".join(str(part)[:20] for part in parts),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    **{("builtins", make.__name__): _checked(make, _COLLECTIONS) for make in _SEQUENCES},
    **{
        ("builtins", make.__name__): _checked(make, _NUMBERS)
        for make in (int, float, complex, bool)
    },
}
