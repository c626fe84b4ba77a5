"""Weights are written whole, load strictly, and near misses are caught."""

from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from backbones import BackboneSettings, InputFormat, build_backbone, build_network
from backbones.weights.files import read_tensors, save_state
from backbones.weights.load import (
    fit_backbone,
    load_weights,
    read_weights,
    save_weights,
    structure_of,
)

BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bicubic", 96, 0.9)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = build_network("se_resnet_tiny", 3, reduction=4)
    file = tmp_path / "weights.safetensors"
    settings = BackboneSettings("se_resnet_tiny", {"reduction": 4})
    save_weights(
        network, file, backbone=settings, num_classes=3, input_format=BGR, classes=["a", "b", "c"]
    )
    return network.eval(), file


def features(network, size=64):
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(picture)


def test_a_network_comes_back_with_all_that_is_needed_to_use_it(saved):
    network, file = saved
    found = read_weights(file)
    assert found.format == "sebench"
    assert found.backbone == BackboneSettings("se_resnet_tiny", {"reduction": 4})
    assert (found.num_classes, found.classes, found.input_format) == (3, ["a", "b", "c"], BGR)
    other = build_network("se_resnet_tiny", 3, reduction=4)
    loaded = load_weights(other, file)
    assert torch.equal(features(network), features(other))
    assert (loaded.missing, loaded.unexpected) == ([], [])
    assert loaded.tensors == len(network.state_dict())


def test_a_backbone_takes_its_part_and_drops_the_head(saved):
    network, file = saved
    backbone = build_backbone("se_resnet_tiny", reduction=4)
    loaded = load_weights(backbone, file)
    assert loaded.unexpected == ["head.fc.bias", "head.fc.weight"]
    ours, theirs = features(backbone), features(network.backbone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_replaced_head_is_left_as_it_was(saved):
    _, file = saved
    other = build_network("se_resnet_tiny", 7, reduction=4)
    before = other.head.fc.weight.clone()
    loaded = load_weights(other, file, replace_head=True)
    assert torch.equal(other.head.fc.weight, before)
    assert loaded.missing == ["head.fc.weight", "head.fc.bias"]


def test_what_does_not_fit_is_named_in_a_table(saved):
    _, file = saved
    plain = build_network("resnet_tiny", 5)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_weights(plain, file)
    table = str(error.value)
    assert "unexpected backbone.res2.0.se.fc1.bias" in table
    assert "misshapen  head.fc.weight  (3, 128) in the file, (5, 128) wanted" in table
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_a_missing_tensor_is_named_with_its_nearest(saved, tmp_path):
    network, file = saved
    held = read_tensors(file)
    tensors, metadata = held.tensors, held.metadata
    tensors["backbone.res2.0.conv7.weight"] = tensors.pop("backbone.res2.0.conv1.weight")
    save_state(file, tensors, metadata)
    with pytest.raises(
        ValueError, match=r"missing +backbone.res2.0.conv1.weight +\(nearest: .*conv7"
    ):
        load_weights(network, file)


def test_gaps_are_tolerated_only_where_a_pattern_says_so_and_recorded(saved):
    network, file = saved
    held = read_tensors(file)
    tensors, metadata = held.tensors, held.metadata
    dropped = [name for name in tensors if name.startswith("backbone.res5.")]
    save_state(file, {n: t for n, t in tensors.items() if n not in dropped}, metadata)
    with pytest.raises(ValueError, match="missing"):
        load_weights(network, file)
    with pytest.raises(ValueError, match="missing"):
        load_weights(network, file, allow_missing=["backbone.res4.*"])
    loaded = load_weights(network, file, allow_missing=["backbone.res5.*"])
    assert sorted(loaded.missing) == sorted(dropped)


def test_options_follow_the_weights_and_contradictions_name_both(saved):
    _, file = saved
    asked = BackboneSettings("se_resnet_tiny", weights=str(file))
    assert fit_backbone(asked).options == {"reduction": 4}
    with pytest.raises(ValueError, match=r"reduction=4.*reduction=8"):
        fit_backbone(replace(asked, options={"reduction": 8}))
    with pytest.raises(ValueError, match=r"holds a se_resnet_tiny; the settings ask for resnet18"):
        fit_backbone(replace(asked, name="resnet18"))


def test_gates_of_another_kind_are_refused_though_their_tensors_fit(saved):
    _, file = saved
    other = build_network("se_resnet_tiny", 3, reduction=4, excitation="tanh")
    with pytest.raises(ValueError, match=r"excitation=sigmoid, the network has excitation=tanh"):
        load_weights(other, file)


def test_legacy_weights_are_refused_by_a_network_that_strides_in_the_3x3(tmp_path):
    """A near miss: every tensor fits, and every output would be wrong."""
    with torch.device("meta"):
        legacy = timm.create_model("legacy_seresnet50", num_classes=2)
    legacy.to_empty(device="cpu")
    torch.save(legacy.state_dict(), tmp_path / "se_resnet50.pth")
    file = str(tmp_path / "se_resnet50.pth")
    with torch.device("meta"):
        wrong = build_network("se_resnet50", 2, stride_in_1x1=False, stem_pool="ceil")
    with pytest.raises(
        ValueError, match=r"stride_in_1x1=true, the network has stride_in_1x1=false"
    ):
        load_weights(wrong, file)
    asked = BackboneSettings("se_resnet50", {"stride_in_1x1": False}, file)
    with pytest.raises(
        ValueError, match=r"stride_in_1x1=true, the network has stride_in_1x1=false"
    ):
        fit_backbone(asked)
    with torch.device("meta"):
        wrong = build_network("se_resnet50", 2, stride_in_1x1=True, stem_pool="padded")
    with pytest.raises(ValueError, match=r"stem_pool=ceil, the network has stem_pool=padded"):
        load_weights(wrong, file)


def test_rgb_weights_are_refused_by_a_detector_fed_with_bgr(tmp_path):
    """A near miss: Detectron2 feeds BGR with std 1 unless told otherwise."""
    detection = pytest.importorskip("detection.backbone")
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), file)
    known = read_weights(file).input_format
    usual = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"BGR.*RGB"):
        detection.check_input_format(usual, known, str(file))


def test_an_unknown_format_says_which_are_known(tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"blocks.0.weight": torch.zeros(2)}, file)
    assert read_weights(file).format == "unknown"
    with pytest.raises(ValueError, match=r"blocks\.0\.weight.*timm-legacy.*timm:NAME"):
        load_weights(build_network("resnet_tiny", 2), file)


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved, monkeypatch):
    network, file = saved
    before = file.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(file, network.state_dict(), {})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_structure_is_read_off_the_network():
    with torch.device("meta"):
        network = build_backbone("se_resnet50", stem_pool="ceil", squeeze="max", placement="pre")
        plain = build_backbone("resnext50_32x4d")
    assert structure_of(network) == {
        "stride_in_1x1": True,
        "stem_pool": "ceil",
        "squeeze": "max",
        "excitation": "sigmoid",
        "placement": "pre",
    }
    assert structure_of(plain) == {"stride_in_1x1": False, "stem_pool": "padded"}
