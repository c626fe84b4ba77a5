"""What people have is read: wrapped checkpoints, sharded folders, whole modules; damage is named."""

import argparse
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from backbones import BackboneSettings, InputFormat, build_backbone, build_network, save_weights
from backbones.weights.files import read_tensors, save_state, sha256_of_weights
from backbones.weights.load import load_weights, read_weights

RGB = InputFormat(size=96, crop=0.875)


def network_state(prefix=""):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=3)  # small
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


class HistoryBuffer:
    """As mmengine keeps its losses beside the weights."""

    def __init__(self):
        self.values = np.arange(3.0)


class AttributeDict(dict):
    """As Lightning keeps its hyperparameters."""


LAYOUTS = {
    "timm's average": lambda s: {"state_dict": {"other": torch.ones(1)}, "state_dict_ema": s},
    "torch's AveragedModel": lambda s: {
        "model": {"other": torch.ones(1)},
        "model_ema": {"n_averaged": torch.tensor(7), **{f"module.{n}": t for n, t in s.items()}},
    },
    "mmengine with an average": lambda s: {
        "meta": {"epoch": 3},
        "state_dict": s,
        "ema_state_dict": {"steps": torch.tensor(1), "module.w": torch.ones(1)},
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
    },
    "compiled and parallel": lambda s: {f"_orig_mod.module.{n}": t for n, t in s.items()},
    "parallel and compiled": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "FSDP": lambda s: {
        f"_fsdp_wrapped_module.{n.replace('.', '._checkpoint_wrapped_module.', 1)}": t
        for n, t in s.items()
    },
    "Lightning": lambda s: {
        "state_dict": {
            **{f"model.{n}": t for n, t in s.items()},
            "criterion.weight": torch.ones(3),
        },
        "hyper_parameters": AttributeDict(lr=0.1),
        "callbacks": {"best": torch.tensor(1.0)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(1)}}}],
    },
    **{
        key: lambda s, key=key: {"epoch": 1, key: s, "optimizer": {"state": {0: torch.ones(2)}}}
        for key in (
            "model_state_dict", "net", "network", "weight", "weights", "module", "model",
            "model_state", "params", "a_name_of_ones_own",
        )
    },
    "two levels": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "arguments beside it": lambda s: {
        "state_dict": s, "args": argparse.Namespace(lr=0.1), "where": Path("/tmp"),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_dict_is_found_in_what_scripts_wrap_around_it(layout, tmp_path):
    state = network_state()
    torch.save(LAYOUTS[layout](state), tmp_path / "file")
    found = read_tensors(tmp_path / "file").tensors
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_settings_of_omegaconf_beside_the_tensors_are_inert(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    state = network_state()
    torch.save(
        {"cfg": omegaconf.OmegaConf.create({"a": [1, {"b": 2}]}), "net": state}, tmp_path / "f"
    )
    assert read_tensors(tmp_path / "f").tensors.keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_that_was_pickled_whole_gives_its_state_dict(zipped, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)))
    network[2].register_buffer("transient", torch.ones(1), persistent=False)
    torch.save(
        {"epoch": 3, "model": network}, tmp_path / "f", _use_new_zipfile_serialization=zipped
    )
    found = read_tensors(tmp_path / "f").tensors
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], t) for name, t in network.state_dict().items())


def test_several_state_dicts_are_named_not_chosen_among(tmp_path):
    torch.save({"generator": network_state(), "critic": network_state()}, tmp_path / "file")
    with pytest.raises(ValueError, match="several state dicts, under generator, critic"):
        read_tensors(tmp_path / "file")


def test_tensors_pickled_without_torch_save_are_read(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3)}
    (tmp_path / "f").write_bytes(pickle.dumps(state))
    found = read_tensors(tmp_path / "f").tensors
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_and_every_dtype_come_back(zipped, tmp_path):
    base = torch.arange(24.0)
    dtypes = ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    state = {name: torch.tensor([0, 1, 1]).to(getattr(torch, name)) for name in dtypes}
    state |= {
        "view": base[4:16].view(3, 4).t(),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(base),
    }
    state |= {"expanded": torch.ones(1).expand(7), "float8": torch.ones(2).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "f", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "f").tensors
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.detach().float()), name


@pytest.mark.parametrize("given", ["folder", "index"])
def test_sharded_files_are_joined_by_their_index(given, tmp_path):
    state = network_state()
    names = list(state)
    files = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, part in files.items():
        safetensors.torch.save_file({n: state[n] for n in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, part in files.items() for n in part}}))
    found = read_tensors(tmp_path if given == "folder" else index)
    assert found.tensors.keys() == state.keys()
    assert read_tensors(tmp_path).sha256 == found.sha256 == sha256_of_weights(tmp_path)
    with pytest.raises(ValueError, match="one of several files"):
        read_tensors(tmp_path / "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"w": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="does not lie beside it"):
        read_tensors(tmp_path)


def test_names_with_gates_in_a_sequential_and_without_biases_are_read(tmp_path):
    """moskomule's senet.pytorch: timm's network with other names is the oracle."""
    network = timm.create_model("seresnet50", num_classes=4).eval()
    for module in network.modules():
        if type(module).__name__ == "SEModule":
            nn.init.zeros_(module.fc1.bias)
            nn.init.zeros_(module.fc2.bias)
    state = {}
    for name, tensor in network.state_dict().items():
        if ".se." in name and name.endswith("bias"):
            continue
        if ".se." in name:
            tensor = tensor.flatten(1)
        state[name.replace("se.fc1", "se.fc.0").replace("se.fc2", "se.fc.2")] = tensor
    torch.save(state, tmp_path / "seresnet50.pkl")
    found = read_weights(tmp_path / "seresnet50.pkl")
    assert (found.format, found.backbone.name) == ("moskomule", "se_resnet50")
    assert found.backbone.options["se_bias"] is False
    ours = build_network("se_resnet50", 4, **found.backbone.options).eval()
    load_weights(ours, found)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), network(images), atol=1e-5)


@pytest.mark.parametrize("head", ["fpn", "c4"])
def test_a_backbone_is_taken_out_of_a_detectron2_detector(head, tmp_path):
    network = build_backbone("resnet50", stride_in_1x1=False)
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("shortcut.conv.", "shortcut.").replace("shortcut.norm", "shortcut.norm")
        for i in "123":
            name = name.replace(f"norm{i}", f"conv{i}.norm")
        if head == "c4":
            state[f"roi_heads.{name}" if name.startswith("res5") else f"backbone.{name}"] = tensor
        else:
            state[f"backbone.bottom_up.{name}"] = tensor
    state |= {
        "roi_heads.box_predictor.cls_score.weight": torch.ones(2, 2),
        "pixel_mean": torch.ones(3),
    }
    state |= {"proposal_generator.rpn_head.conv.weight": torch.ones(2, 2)}
    torch.save({"model": state, "iteration": 90_000}, tmp_path / "model_final.pth")
    other = build_backbone("resnet50", stride_in_1x1=False)
    loaded = load_weights(other, tmp_path / "model_final.pth")
    assert len(loaded.unexpected) == 3
    assert torch.equal(other.res5[2].conv3.weight, network.res5[2].conv3.weight)


def test_a_users_network_with_torchvisions_stage_names_is_still_ours(tmp_path):
    """MMPretrain has backbone.layer1 too; what we wrote beside the tensors decides first."""
    network = nn.Module()
    network.backbone = timm.create_model("resnet10t", num_classes=0)
    network.head = nn.Module()
    network.head.fc = nn.Linear(512, 3)
    file = tmp_path / "weights.safetensors"
    settings = BackboneSettings("mine", {"depth": 10})
    save_weights(network, file, backbone=settings, num_classes=3, input_format=RGB)
    found = read_weights(file)
    assert (found.format, found.backbone) == ("sebench", settings)
    assert found.tensors.keys() == network.state_dict().keys()


# What is damaged, or made to do harm ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_flipped_bit_in_a_zip_is_found(kind, tmp_path):
    file = tmp_path / ("f.pth" if kind == "zip" else "f.npz")
    values = torch.arange(4000.0)
    if kind == "zip":
        torch.save({"weight": values}, file)
    else:
        np.savez(file, weight=values.numpy())
    content = bytearray(file.read_bytes())
    at = content.index(values.numpy().tobytes()[400:440])
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: Bad CRC-32"):
        read_tensors(file)


def test_a_flipped_bit_where_no_tensor_lies_is_found_too(tmp_path):
    file = tmp_path / "f.pth"
    torch.save({"weight": torch.ones(3)}, file)
    with zipfile.ZipFile(file) as archive:
        part = next(p for p in archive.infolist() if p.filename.endswith("version"))
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x03\x04", part.header_offset)
    at = content.index(b"3\n", at + 30 + len(part.filename))
    content[at + 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: Bad CRC-32"):
        read_tensors(file)


def test_a_zip_that_torch_wrote_without_sums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(5)}, tmp_path / "f")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_tensors(tmp_path / "f").tensors["weight"], torch.ones(5))


def test_two_files_in_one_are_refused_because_readers_differ_in_what_they_read(tmp_path):
    for value in (1, 2):
        torch.save({"weight": torch.full((5,), float(value))}, tmp_path / str(value))
    (tmp_path / "f").write_bytes((tmp_path / "1").read_bytes() + (tmp_path / "2").read_bytes())
    with pytest.raises(ValueError, match="bytes before its first part"):
        read_tensors(tmp_path / "f")


def test_weights_that_changed_after_their_record_was_written_are_refused(tmp_path):
    network = build_network("se_resnet_tiny", 3)
    file = tmp_path / "weights.safetensors"
    settings = BackboneSettings("se_resnet_tiny")
    sha256 = save_weights(network, file, backbone=settings, num_classes=3, input_format=RGB)
    record = {"weights": {"path": file.name, "sha256": sha256}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert read_weights(file).sha256 == sha256
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"record\.json beside it has the SHA-256"):
        read_weights(file)


def test_a_published_name_whose_sum_is_another_is_warned_of(tmp_path, caplog):
    torch.save({"weight": torch.ones(3)}, tmp_path / "f")
    digest = read_tensors(tmp_path / "f").sha256
    for name in (f"resnet-{digest[:8]}.pth", "resnet-20210831.pth", "resnet.pth"):
        (tmp_path / name).write_bytes((tmp_path / "f").read_bytes())
        read_tensors(tmp_path / name)
    assert not caplog.text
    (tmp_path / "resnet-0676ba61.pth").write_bytes((tmp_path / "f").read_bytes())
    read_tensors(tmp_path / "resnet-0676ba61.pth")
    assert "begins with 0676ba61" in caplog.text


def harmful_files(folder):
    """Files that cost far more than their length, where sizes are not looked at first."""
    yield "selfref.pth", b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s."
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%s\x89\x88tR(K\x03X\x01\x00\x00\x00%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK%stb"
    array = b"\x80\x03}X\x01\x00\x00\x00wcnumpy\nndarray\n(K\x04\x85%sC\x10xxxxxxxxxxxxxxxxtRs."
    yield "f4flags.pkl", array % (dtype % (b"f4", b"<", b"\x3f"))
    yield "objflags.pkl", array % (dtype % (b"O8", b"|", b"\x00"))
    built = b"\x80\x03}X\x01\x00\x00\x00wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01bt"
    built += b"R(K\x01K\x02\x85%s\x89C\x10xxxxxxxxxxxxxxxxtbs."
    yield "built-objects.pkl", built % (dtype % (b"O8", b"|", b"\x3f"))
    yield "built-flags.pkl", built % (dtype % (b"f8", b"<", b"\x3f"))
    yield "long-memo.pkl", b"\x80\x02}r\xff\xff\xff\x7f."
    yield "huge-bytes.pkl", b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc"
    yield "deep-tuple.pkl", b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"Nu."
    yield "deep-list.pkl", b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."
    yield (
        "laughs.pkl",
        b"\x80\x02}q\x00"
        + b"".join(b"}q%c(K\x00h%cK\x01h%cu" % (i, i - 1, i - 1) for i in range(1, 200))
        + b".",
    )
    yield (
        "copies.pkl",
        b"\x80\x04C\xff"
        + b"x" * 255
        + b"q\x000"
        + b"]"
        + (b"cbuiltins\nbytearray\nh\x00\x85Ra" * 2000)
        + b".",
    )
    yield "bytes-of-a-number.pkl", b"cbuiltins\nbytearray\n(I99999999999\ntR."
    header = (
        b'{"__metadata__":{"sebench":"'
        + b"[" * 200_000
        + b'"},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    )
    yield "deep.safetensors", len(header).to_bytes(8, "little") + header
    shape = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999)}"
    yield "huge.npy", shape.ljust(127) + b"\n"
    with (
        zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w") as part,
    ):
        for _ in range(64):
            part.write(bytes(1 << 24))
    bomb = bytearray((folder / "bomb.npz").read_bytes())
    yield "bomb.npz", bytes(bomb)
    at = bomb.rindex(b"PK\x01\x02") + 24  # where the directory declares what the part unpacks to
    bomb[at : at + 4] = (1000).to_bytes(4, "little")
    yield "belittled-bomb.npz", bytes(bomb)
    np.save(folder / "w.npy", np.ones(2, "f4"))
    with zipfile.ZipFile(folder / "packed.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.write(folder / "w.npy", "w.npy")
    yield "packed.npz", (folder / "packed.npz").read_bytes()


LIMITED = """
import resource, sys, time
from backbones.weights.load import read_weights
resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (4 << 30),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    start = time.perf_counter()
    try:
        read_weights(path)
        print("READ", path)
    except ValueError as error:
        print("refused", str(error)[:200])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.perf_counter() - start < 10 and grown < 1 << 19, (path, grown)
"""


def test_harmful_files_are_refused_within_two_gigabytes_and_ten_seconds(tmp_path):
    paths = []
    for name, content in harmful_files(tmp_path):
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], done.stdout)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("refused ")] == []
    assert len(lines) == len(paths)
    assert not done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 7}, "classes=7"),
        ({"num_classes": "many"}, "num_classes='many'"),
        ({"num_classes": 10**12}, "1000000000000 num_classes, 3 rows of head"),
        ({"classes": ["a"]}, "1 names of classes"),
        ({"backbone": {"name": 3}}, "backbone.name=3"),
        ({"backbone": None}, "backbone=None"),
        ({"backbone": {"name": "resnet_tiny", "options": {"reduction": {"a": 1}}}}, "options"),
        ({"structure": [1]}, r"structure=\[1\]"),
        ({"input_format": {"mean": [1, 2]}}, "input_format.mean"),
        ({"input_format": {"channel_order": "GRB"}}, "channel_order"),
        ({"input_format": {"interpolation": "text"}}, "interpolation"),
        ({"input_format": {"std": [0, 1, 1]}}, "above 0"),
    ],
)
def test_metadata_of_other_types_are_named(change, words, tmp_path):
    network = build_network("resnet_tiny", 3)
    file = tmp_path / "weights.safetensors"
    settings = BackboneSettings("resnet_tiny")
    save_weights(network, file, backbone=settings, num_classes=3, input_format=RGB)
    held = read_tensors(file)
    tensors, metadata = held.tensors, held.metadata
    save_state(file, tensors, {**metadata, **change})
    with pytest.raises(ValueError, match=f"metadata are damaged.*{words}"):
        read_weights(file)


def test_metadata_cannot_name_files_to_run(tmp_path):
    file = tmp_path / "weights.safetensors"
    network = build_network("resnet_tiny", 3)
    settings = BackboneSettings("resnet_tiny")
    save_weights(network, file, backbone=settings, num_classes=3, input_format=RGB)
    held = read_tensors(file)
    tensors, metadata = held.tensors, held.metadata
    metadata["backbone"]["imports"] = [str(tmp_path / "evil.py")]
    save_state(file, tensors, metadata)
    assert read_weights(file).backbone == settings


def test_keys_that_are_no_text_are_read_and_names_that_cannot_be_printed_refused(tmp_path):
    torch.save({0: torch.ones(1), b"a": torch.ones(2)}, tmp_path / "f")
    assert set(read_tensors(tmp_path / "f").tensors) == {"0", "a"}
    torch.save({"a\x1b[31m": torch.ones(1)}, tmp_path / "f")
    with pytest.raises(ValueError, match=r"named 'a\\x1b\[31m'"):
        read_tensors(tmp_path / "f")


def test_others_can_read_what_we_write(tmp_path):
    before = os.umask(0o022)
    try:
        save_state(tmp_path / "f", {"w": torch.ones(2, 2), "n": torch.tensor(3)}, {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
    found = safetensors.torch.load_file(tmp_path / "f")
    assert torch.equal(found["w"], torch.ones(2, 2))
    assert found["n"] == 3
    with safetensors.safe_open(tmp_path / "f", "pt") as file:
        assert file.metadata() == {"format": "pt", "sebench": '{"a": 1}'}
