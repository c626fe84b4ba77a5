"""Read tensors and arrays out of pickles that strangers made, without executing anything of theirs.

A pickle is a program: it may name any importable object and call it. The reader here admits a literal table of
containers, tensors and arrays and refuses every other name, so the worst a crafted file can do is raise. It reads
`torch.save` files (zip since PyTorch 1.6, and the pickle stream before it, Python 2's included) and plain pickles such
as Detectron2's `.pkl`.
"""

import collections
import functools
import io
import pickle
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What the first pickle of a `torch.save` stream holds (PyTorch before 1.6), as protocol 2 writes it.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class UnsafePickle(ValueError):
    """A pickle asks for an object that is neither a container nor a tensor nor an array."""


class _Inert:
    """Stands where a checkpoint keeps settings (argparse.Namespace, a path): holds nothing, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` does in protocol-2 pickles of bytes; other codecs are not needed."""
    if encoding != "latin1":
        raise UnsafePickle(f"the pickle encodes text as {encoding!r}; only 'latin1' is admitted")
    return text.encode("latin1")


# (module, name) in the file -> what stands for it. Python classes and functions of libraries are not handed out bare:
# a pickle could set attributes on them. Types written in C refuse that by themselves.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): dict,
    ("_codecs", "encode"): _latin1,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("argparse", "Namespace"): _Inert,
    ("pathlib", "PosixPath"): _Inert,
    ("pathlib", "WindowsPath"): _Inert,
}
for _builtins in ("builtins", "__builtin__"):
    for _type in (dict, list, tuple, set, frozenset, bytearray, complex, float, int, slice):
        _ADMITTED[_builtins, _type.__name__] = _type
for _numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[_numpy, "_reconstruct"] = np._core.multiarray._reconstruct
    _ADMITTED[_numpy, "scalar"] = np._core.multiarray.scalar
for _numpy in ("numpy.core.numeric", "numpy._core.numeric"):
    _ADMITTED[_numpy, "_frombuffer"] = np._core.numeric._frombuffer
for _type in (np.ndarray, np.dtype):
    _ADMITTED["numpy", _type.__name__] = _type


class _Unpickler(pickle.Unpickler):
    """`pickle.Unpickler` that knows the names of `_ADMITTED` and no others.

    `torch.load` derives from it and adds, for names with "Storage" in them, a typed handle of its own making.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        try:
            admitted = _ADMITTED[module, name]
        except KeyError:
            raise UnsafePickle(
                f"the pickle asks for '{module}.{name}', which is neither a tensor, an array nor a plain container; "
                "it is not executed. Where you trust the file, load it with its own library and save only its "
                "state dict"
            ) from None
        if isinstance(admitted, types.FunctionType):
            return functools.partial(admitted)  # a fresh object: attributes set on it go nowhere
        return admitted

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            name == "persistent_load"
        ):  # set by torch.load; pickled modules with their source are not for us
            load = value

            def value(key: tuple) -> Any:
                if not isinstance(key, tuple) or key[0] not in ("storage", b"storage"):
                    raise UnsafePickle(
                        "the pickle refers to something other than a tensor's storage"
                    )
                return load(key)

        super().__setattr__(name, value)


def load_pickle(file: Any, encoding: str = "latin1") -> Any:
    """Read one plain pickle from an open file, as `read_pickle` does from a path."""
    return _Unpickler(file, encoding=encoding).load()


# What `torch.load` wants as its `pickle_module`: it calls `load` and derives from `Unpickler`.
_RESTRICTED = types.SimpleNamespace(
    __name__="restricted_pickle", Unpickler=_Unpickler, load=load_pickle
)


def read_pickle(path: str | Path) -> Any:
    """Read a `torch.save` file or a plain pickle.

    Returns:
        What was pickled: plain containers of torch tensors (on the CPU) and numpy arrays. Python 2's strings are
        decoded as latin1.
    Raises:
        UnsafePickle: (a ValueError) the file names an object outside the admitted ones; nothing was executed.
        ValueError: the file is truncated or not a pickle.
    """
    path = Path(path)
    content = path.read_bytes()
    file = io.BytesIO(content)
    try:
        if content.startswith(b"PK"):
            _refuse_torchscript(file)
            return torch.load(
                file, map_location="cpu", pickle_module=_RESTRICTED, encoding="latin1"
            )
        if content.startswith(_TORCH_MAGIC):
            return torch.load(
                file, map_location="cpu", pickle_module=_RESTRICTED, encoding="latin1"
            )
        if tarfile.is_tarfile(file):
            raise ValueError("a tar archive (PyTorch before 0.2, or an unopened download)")
        file.seek(0)
        return load_pickle(file)
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged stream makes the libraries raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a pickle of tensors or arrays: {reason}"
        ) from error


def _refuse_torchscript(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise UnsafePickle("a TorchScript archive holds a program, not only weights")
    file.seek(0)
