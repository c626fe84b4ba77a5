"""Networks of other libraries, written by them, give their own logits here."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision

from backbones import BackboneSettings, InputFormat, build_backbone, build_network
from backbones.weights.formats import FORMATS, caffe_labels, from_ours
from backbones.weights.load import fit_backbone, load_weights, read_weights


def randomized(build):
    """Build a network without its slow initialisation and fill it with numbers that stay in range."""
    with torch.device("meta"):
        network = build()
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(7)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(3)
        else:
            low = 0.5 if name.endswith(("weight", "var")) else -0.2
            tensor.uniform_(low, low + 0.6, generator=generator)
        tensor.copy_(tensor.half())  # so that half a file holds all of it
    return network.eval()


def save_half(network, file):
    halves = {n: t.half() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    torch.save(halves, file)


def fitted(found):
    """Build the network that weights ask for, and load them."""
    settings = BackboneSettings(found.backbone.name, weights=found.path)
    options = fit_backbone(settings, found).options
    with torch.device("meta"):
        network = build_network(settings.name, found.num_classes, **options)
    network = network.to_empty(device="cpu")
    load_weights(network, found)
    return network.eval()


def logits(network, size=64):
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(picture)


IN_3X3 = {"stride_in_1x1": False, "stem_pool": "padded"}


@pytest.mark.parametrize(
    ("library", "theirs", "ours", "options"),
    [
        ("torchvision", "resnet50", "resnet50", IN_3X3),
        ("torchvision", "resnet101", "resnet101", IN_3X3),
        ("torchvision", "resnet152", "resnet152", IN_3X3),
        ("torchvision", "resnext50_32x4d", "resnext50_32x4d", IN_3X3),
        ("torchvision", "vgg16_bn", "vgg16_bn", {}),
        ("timm", "resnet50", "resnet50", IN_3X3),
        ("timm", "seresnet50", "se_resnet50", IN_3X3),
        ("timm", "seresnext50_32x4d", "se_resnext50_32x4d", IN_3X3),
        ("timm", "legacy_seresnet50", "se_resnet50", {"stride_in_1x1": True, "stem_pool": "ceil"}),
        (
            "timm",
            "legacy_seresnet101",
            "se_resnet101",
            {"stride_in_1x1": True, "stem_pool": "ceil"},
        ),
        (
            "timm",
            "legacy_seresnet152",
            "se_resnet152",
            {"stride_in_1x1": True, "stem_pool": "ceil"},
        ),
        (
            "timm",
            "legacy_seresnext50_32x4d",
            "se_resnext50_32x4d",
            {"stride_in_1x1": False, "stem_pool": "ceil"},
        ),
        (
            "timm",
            "legacy_seresnext101_32x4d",
            "se_resnext101_32x4d",
            {"stride_in_1x1": False, "stem_pool": "ceil"},
        ),
        ("timm", "legacy_senet154", "senet154", {"stem_pool": "ceil"}),
        ("timm", "senet154", "senet154", {"stem_pool": "padded"}),
        ("timm", "inception_resnet_v2", "inception_resnet_v2", {}),
    ],
)
def test_weights_of_a_library_give_its_logits(library, theirs, ours, options, tmp_path):
    build = timm.create_model if library == "timm" else torchvision.models.get_model
    kind = {"num_classes": 10}
    if theirs == "vgg16_bn":
        kind["init_weights"] = False
    network = randomized(lambda: build(theirs, **kind))
    file = tmp_path / "anything"  # what it is shows in the content
    save_half(network, file)
    found = read_weights(file)
    assert found.backbone == BackboneSettings(ours, options)
    assert found.num_classes == 10
    size = 96 if "inception" in theirs else 64
    assert torch.equal(logits(fitted(found), size), logits(network, size))


def test_mmpretrain_names_are_read(tmp_path):
    network = randomized(lambda: timm.create_model("seresnet50", num_classes=10))
    state = {}
    for name, tensor in network.state_dict().items():
        name = re.sub(r"\.se\.fc(\d)\.", r".se_layer.conv\1.conv.", name)
        state[name.replace("fc.", "head.fc.") if name.startswith("fc") else f"backbone.{name}"] = (
            tensor
        )
    file = tmp_path / "seresnet50.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": state}, file)
    found = read_weights(file)
    assert (found.format, found.backbone.name) == ("mmpretrain", "se_resnet50")
    assert torch.equal(logits(fitted(found)), logits(network))


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote its str: a string of bytes."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_str(self, text):
        raw = text.encode("latin1")
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)

    dispatch[str] = save_str


def test_places365_checkpoints_of_python_2_are_read(tmp_path, monkeypatch):
    network = randomized(lambda: torchvision.models.resnet18(num_classes=365))
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    file = tmp_path / "resnet18_places365.pth.tar"
    content = {"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": np.float64(54.2)}
    module = type("python2", (), {"Pickler": Python2Pickler, "dump": staticmethod(pickle.dump)})
    torch.save(content, file, pickle_module=module, _use_new_zipfile_serialization=False)
    assert b"module.conv1.weight" in file.read_bytes()
    found = read_weights(file)
    assert (found.format, found.num_classes) == ("places365", 365)
    assert found.input_format.channel_order == "RGB"
    assert torch.equal(logits(fitted(found)), logits(network))


def detectron2_resnet(stride_in_1x1):
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    stages = ResNet.make_default_stages(50, stride_in_1x1=stride_in_1x1, norm="FrozenBN")
    names = ["stem", "res2", "res3", "res4", "res5"]
    return ResNet(BasicStem(norm="FrozenBN"), stages, out_features=names)


def assert_same_stages(ours, theirs):
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, yours = ours.eval()(picture), theirs(picture)
    for name in yours:
        assert torch.allclose(mine[name], yours[name], rtol=1e-5, atol=1e-5), name


def test_torchvision_weights_converted_for_detectron2_are_read(tmp_path):
    theirs = randomized(lambda: detectron2_resnet(stride_in_1x1=False))
    model = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    content = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps(content))
    found = read_weights(file)
    assert (found.format, found.backbone.options) == ("detectron2", IN_3X3)
    ours = build_backbone("resnet50", **found.backbone.options)
    load_weights(ours, file)
    assert_same_stages(ours, theirs)


def test_unsigned_detectron2_names_do_not_tell_the_stride(tmp_path):
    theirs = randomized(lambda: detectron2_resnet(stride_in_1x1=True))
    file = tmp_path / "model_final.pth"
    torch.save({"model": theirs.state_dict()}, file)
    with pytest.raises(ValueError, match="do not tell where its network strides"):
        fit_backbone(BackboneSettings("resnet50", weights=str(file)))
    said = BackboneSettings("resnet50", {"stride_in_1x1": True}, str(file))
    assert fit_backbone(said).options == {"stride_in_1x1": True}


def test_msra_weights_read_as_detectron2_reads_them(tmp_path):
    """Detectron2's own conversion of Caffe2 names, in its network, is the oracle."""
    from detectron2.checkpoint import DetectionCheckpointer

    theirs = randomized(lambda: detectron2_resnet(stride_in_1x1=True))
    blobs = {}
    for name, tensor in theirs.state_dict().items():
        if "running" in name:
            continue
        name = re.sub(r"^stem\.conv1\.norm\.", "res_conv1_bn_", name).replace(
            "stem.conv1.", "conv1_"
        )
        name = re.sub(r"^res(\d)\.(\d+)\.shortcut\.norm\.", r"res\1_\2_branch1_bn_", name)
        name = re.sub(r"^res(\d)\.(\d+)\.shortcut\.", r"res\1_\2_branch1_", name)
        for number, letter in ("1", "a"), ("2", "b"), ("3", "c"):
            branch = rf"res\1_\2_branch2{letter}_"
            name = re.sub(rf"^res(\d)\.(\d+)\.conv{number}\.norm\.", branch + "bn_", name)
            name = re.sub(rf"^res(\d)\.(\d+)\.conv{number}\.", branch, name)
        leaf = "s" if "bn_" in name else "w"
        blobs[name.replace("weight", leaf).replace("bias", "b")] = tensor.numpy()
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps(blobs))
    DetectionCheckpointer(theirs).load(str(file))
    found = read_weights(file)
    assert (found.format, found.backbone.name) == ("msra", "resnet50")
    assert found.backbone.options == {"stride_in_1x1": True, "stem_pool": "padded"}
    bgr = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), size=224, crop=0.875)
    assert found.input_format == bgr
    ours = build_backbone("resnet50", **found.backbone.options)
    load_weights(ours, file)
    assert_same_stages(ours, theirs)


def caffe_blobs(network, inverse):
    """Write a legacy network of timm as pycaffe gives its layers: a list of arrays for each."""
    legacy = dict(next(f for f in FORMATS if f.name == "timm-legacy").theirs)
    layers = {legacy[ours]: theirs for ours, theirs in inverse.items()}
    blobs = {}
    for name, tensor in network.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        caffe, array = layers[layer], tensor.numpy()
        if leaf in ("running_mean", "running_var"):
            blobs.setdefault(caffe, [None, None, np.array([2.0], "f4")])
            blobs[caffe][leaf == "running_var"] = array * 2  # sums of two batches
        elif caffe.endswith("/bn") and leaf in ("weight", "bias"):
            blobs.setdefault(f"{caffe}/scale", [None, None])[leaf == "bias"] = array
        elif leaf != "num_batches_tracked":
            if caffe == "classifier":
                unsorted = np.empty_like(array)
                unsorted[np.array(caffe_labels()) - 1] = array
                array = unsorted
            blobs.setdefault(caffe, []).append(array)
    return blobs


@pytest.mark.parametrize("container", ["npz", "npy"])
def test_caffe_blobs_are_read_in_the_usual_order_of_classes(container, tmp_path):
    network = randomized(lambda: timm.create_model("legacy_seresnet50"))
    blobs = caffe_blobs(network, next(f for f in FORMATS if f.name == "caffe").theirs)
    assert "conv2_1_1x1_reduce/bn/scale" in blobs
    if container == "npy":
        file = tmp_path / "weights.npy"
        np.save(file, blobs, allow_pickle=True)
    else:
        file = tmp_path / "weights.npz"
        flat = {f"{k}/{i}": array for k, arrays in blobs.items() for i, array in enumerate(arrays)}
        np.savez(file, **flat)
    found = read_weights(file)
    assert (found.format, found.input_format.channel_order) == ("caffe", "BGR")
    assert found.input_format.mean == (104.0, 117.0, 123.0)
    assert found.backbone.options == {"stride_in_1x1": True, "stem_pool": "ceil"}
    assert torch.allclose(logits(fitted(found)), logits(network), atol=1e-5)


def test_caffe_labels_are_those_of_the_published_list():
    # hujie-frank/SENet, ILSVRC2017_val.txt, first five images, and their classes in sorted order.
    assert [caffe_labels()[i] - 1 for i in (65, 970, 230, 809, 516)] == [489, 360, 170, 821, 296]
    assert caffe_labels()[0] == 449  # mcnSENets, misc/label_map.txt
    assert sorted(caffe_labels()) == list(range(1, 1001))


def test_legacy_basic_blocks_are_refused_for_their_relu_before_se(tmp_path):
    network = timm.create_model("legacy_seresnet18", num_classes=2).eval()
    file = tmp_path / "file"
    torch.save(network.state_dict(), file)
    assert read_weights(file).backbone is None
    with pytest.raises(ValueError, match="ReLU before SE"):
        load_weights(build_network("se_resnet18", 2, stem_pool="ceil"), file)
    theirs = build_network("timm:legacy_seresnet18", 2).eval()
    load_weights(theirs, file)
    assert torch.equal(logits(theirs), logits(network))


def test_a_variant_that_only_resembles_ours_fits_no_network(tmp_path):
    network = timm.create_model("seresnet152d")  # deep stem, pooled shortcuts
    torch.save(network.state_dict(), tmp_path / "file")
    assert read_weights(tmp_path / "file").backbone is None


def test_names_go_there_and_back_in_every_format():
    with torch.device("meta"):
        network = build_network("resnet50")
    for weight_format in FORMATS:
        if weight_format.name in ("torchvision", "mmpretrain", "detectron2"):
            theirs = from_ours(network.state_dict(), weight_format)
            assert len(theirs) == len(network.state_dict())


def test_legacy_weights_give_the_detector_the_stages_of_timm(tmp_path):
    from detection import build_detectron2_backbone

    theirs = randomized(lambda: timm.create_model("legacy_seresnet50", num_classes=10))
    save_half(theirs, tmp_path / "file")
    stages = build_detectron2_backbone(
        "se_resnet50", weights=str(tmp_path / "file"), norm="FrozenBN"
    ).eval()
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = stages(picture)
        _, *expected = theirs.forward_intermediates(picture, intermediates_only=True)
    for name, map_ in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        assert torch.allclose(ours[name], map_, rtol=1e-4, atol=1e-5), name
