"""Weights are data: whatever a file asks to run is refused, and plain files of any age are read."""

import argparse
import builtins
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from backbones.weights.files import read_tensors
from backbones.weights.pickles import UnsafePickle, read_pickle


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def written(kind, content, path):
    if kind == "zip":
        torch.save(content, path)
    elif kind == "stream":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), np.array([content], dtype=object), allow_pickle=True)
        return path.with_suffix(".npy")
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize("kind", ["zip", "stream", "pickle", "npy"])
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.getattr, torch.load])
def test_a_file_that_would_run_code_is_refused(kind, function, tmp_path):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    arguments = (argument, "read") if function is getattr else (argument,)
    file = written(kind, {"weight": Call(function, *arguments)}, tmp_path / "file")
    with pytest.raises(UnsafePickle, match=r"neither a tensor"):
        read_tensors(file)
    assert not marker.exists()


def test_admitted_functions_cannot_be_tampered_with(tmp_path):
    """The opcode BUILD sets attributes on what is before it, even on a function."""
    global_ = b"ctorch._utils\n_rebuild_tensor_v2\n"
    attributes = pickle.dumps({"__defaults__": None, "marked": 1}, protocol=0)[:-1]
    file = tmp_path / "file"
    file.write_bytes(global_ + b"(N" + attributes + b"tb.")
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(file)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "marked")


def test_torchscript_is_refused(tmp_path):
    file = tmp_path / "file"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/constants.pkl", pickle.dumps(()))
    with pytest.raises(UnsafePickle, match="TorchScript"):
        read_tensors(file)


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_training_checkpoints_of_torch_are_read(kind, tmp_path):
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    content = {
        "state_dict": OrderedDict((f"module.{n}", t) for n, t in network.state_dict().items()),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(76.1),
        "size": torch.Size([3]),
        "dtype": torch.bfloat16,
    }
    file = written(kind, content, tmp_path / "file")
    tensors = read_tensors(file).tensors
    assert list(tensors) == ["weight", "bias"]
    assert torch.equal(tensors["weight"], network.weight)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_are_read_in_every_protocol(protocol, tmp_path):
    content = {
        "list": ["a", 1, [2.5, None, True]], "tuple": (1, (2, "é"), ()), "set": {1, 2}, "frozen": frozenset({"x"}),
        "dict": {1: b"bytes", "empty": {}, "big": 2**70, "negative": -(2**40), "bytes": bytearray(b"ab")},
        "ordered": OrderedDict(a=1), "complex": 1j,
    }  # fmt: skip
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_pickle(file) == content


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numpy_are_read_in_every_protocol(protocol, tmp_path):
    array = np.arange(6, dtype="f4").reshape(2, 3)
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps({"model": {"w": array, "s": np.float32(2)}}, protocol=protocol))
    assert np.array_equal(read_tensors(file).tensors["w"], array)


def test_files_that_are_no_weights_are_named_for_what_they_are(tmp_path):
    file = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match="no such file"):
        read_tensors(file)
    cases = {
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "web page": b"<!DOCTYPE html><html></html>",
        "cannot be read": b"not weights at all",
        "no tensors": pickle.dumps({"a": 1}),
        "holds a list": pickle.dumps([1, 2]),
    }
    for words, content in cases.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_tensors(file)


def test_truncated_files_are_named(tmp_path):
    file = tmp_path / "file"
    for save in (torch.save, lambda x, f: torch.save(x, f, _use_new_zipfile_serialization=False)):
        save({"weight": torch.zeros(1000)}, file)
        file.write_bytes(file.read_bytes()[:-900])
        with pytest.raises(ValueError, match=str(file)):
            read_tensors(file)
