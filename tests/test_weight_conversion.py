"""Weights go to other libraries and come back; both networks are shown to agree, or not to."""

import pickle

import pytest
import timm
import torch
import torchvision

from backbones import BackboneSettings, InputFormat, build_network, save_weights
from backbones.weights.convert import convert_weights, inspect_weights, verify_weights
from backbones.weights.load import read_weights

BGR = InputFormat("BGR", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), size=224, crop=0.875)


def trained(name, classes=5, **options):
    """Build a network whose norms have seen something."""
    torch.manual_seed(0)
    network = build_network(name, classes, **options).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


def save(network, file, name, input_format=BGR, classes=None, **options):
    settings = BackboneSettings(name, options)
    count = network.head.fc.out_features
    save_weights(
        network,
        file,
        backbone=settings,
        num_classes=count,
        input_format=input_format,
        classes=classes,
    )
    return file


def logits(network):
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(picture)


@pytest.mark.parametrize(
    ("theirs", "suffix", "options"),
    [
        ("legacy_seresnet50", ".pth", {"stem_pool": "ceil"}),
        ("seresnet50", ".safetensors", {"stride_in_1x1": False}),
    ],
)
def test_what_we_train_gives_equal_logits_in_timm_and_comes_back(theirs, suffix, options, tmp_path):
    ours = trained("se_resnet50", **options)
    classes = ["a", "b", "c", "d", "e"]
    file = save(ours, tmp_path / "ours.safetensors", "se_resnet50", classes=classes, **options)
    out = tmp_path / f"timm{suffix}"
    report = convert_weights(file, "timm", out)
    assert report["load_with"] == f"timm:{theirs}"
    network = timm.create_model(theirs, num_classes=5, checkpoint_path=str(out))
    assert torch.equal(logits(network), logits(ours))

    back = tmp_path / "back.safetensors"
    convert_weights(out, "safetensors", back)
    before, after = read_weights(file), read_weights(back)
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.tensors[n], after.tensors[n]) for n in before.tensors)
    for what in ("backbone", "structure", "num_classes", "classes", "input_format"):
        assert getattr(before, what) == getattr(after, what)


def test_a_stride_or_pool_that_timm_has_not_is_refused_with_the_mend(tmp_path):
    with torch.device("meta"):
        network = build_network("se_resnet50", 5)
    network.to_empty(device="cpu")
    file = save(network, tmp_path / "ours.safetensors", "se_resnet50")
    with pytest.raises(ValueError, match=r"stem_pool=ceil .* or stride_in_1x1=false"):
        convert_weights(file, "timm", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="torchvision has no se_resnet50"):
        convert_weights(file, "torchvision", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="choose from safetensors, timm"):
        convert_weights(file, "keras", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_plain_resnet_goes_to_torchvision_and_detectron2(tmp_path):
    ours = trained("resnet50", stride_in_1x1=False)
    file = save(ours, tmp_path / "ours.safetensors", "resnet50", stride_in_1x1=False)
    convert_weights(file, "torchvision", tmp_path / "tv.pth")
    network = torchvision.models.resnet50(num_classes=5)
    network.load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True))
    assert torch.equal(logits(network), logits(ours))

    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    pkl = tmp_path / "d2.pkl"
    assert "STRIDE_IN_1X1=False" in convert_weights(file, "detectron2", pkl)["load_with"]
    stages = ResNet.make_default_stages(50, stride_in_1x1=False, norm="FrozenBN")
    names = ["stem", "res2", "res3", "res4", "res5"]
    detector = torch.nn.Module()  # names as in a detector: backbone.bottom_up.res2 ...
    detector.backbone = torch.nn.Module()
    detector.backbone.bottom_up = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=names)
    DetectionCheckpointer(detector).load(str(pkl))
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        mine, yours = ours.backbone(picture), detector.backbone.bottom_up.eval()(picture)
    assert all(torch.allclose(mine[n], yours[n], rtol=1e-4, atol=1e-5) for n in names)
    back = read_weights(pkl)
    assert (back.backbone.options, back.input_format) == ({"stride_in_1x1": False}, BGR)


def test_verify_proves_equality_and_finds_the_near_miss(tmp_path):
    theirs = timm.create_model("legacy_seresnet50", num_classes=5)
    file = tmp_path / "file"
    torch.save(theirs.state_dict(), file)
    found = verify_weights(file, "timm:legacy_seresnet50", size=64)
    assert found["equal"]
    assert (found["logits"], set(found["stages"].values())) == (0.0, {0.0})
    wrong = verify_weights(file, "timm:seresnet50", size=64)  # takes every tensor
    assert not wrong["equal"]
    assert wrong["stages"]["res5"] > 1e-3 * wrong["largest_value"]
    with pytest.raises(ValueError, match="does not fit timm:resnet50"):
        verify_weights(file, "timm:resnet50", size=64)


def test_inspect_says_what_a_file_can_do(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=365).state_dict(), tmp_path / "places")
    found = inspect_weights(tmp_path / "places")
    assert (found["format"], found["network"]) == ("places365", "resnet18")
    assert found["tasks"] == ["scene", "detection"]
    assert (found["missing"], found["extra"]) == ([], [])
    assert found["input_format"]["channel_order"] == "RGB"

    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.extra.weight"] = state.pop("layer1.0.conv2.weight")
    torch.save(state, tmp_path / "odd")
    found = inspect_weights(tmp_path / "odd")
    assert (found["network"], found["nearest"]) == (None, "resnet18")
    assert found["missing"] == ["backbone.res2.0.conv2.weight"]
    assert found["extra"] == ["layer1.0.extra.weight"]


def test_inspect_of_a_librarys_network_says_how_to_use_it(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps({"w": [1.0]}))
    with pytest.raises(ValueError, match="no tensors"):
        inspect_weights(tmp_path / "file")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "file")
    found = inspect_weights(tmp_path / "file")
    assert found["format"] == "unknown"
    assert "timm:NAME" in found["notes"][0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("se_resnet_tiny", {"reduction": 4}), ("resnet_tiny", {}), ("se_mobilenet", {})],
)
def test_a_converted_file_fills_our_backbone_through_detectron2s_checkpointer(
    name, options, tmp_path
):
    import detectron2.config
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from detection import add_sebench_config, register_backbones

    ours = trained(name, **options)
    file = save(ours, tmp_path / "ours.safetensors", name, **options)
    out = tmp_path / "d2.pkl"
    load_with = convert_weights(file, "detectron2", out)["load_with"]
    assert f"MODEL.WEIGHTS={out}" in load_with
    register_backbones()
    cfg = detectron2.config.get_cfg()
    add_sebench_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = f"build_{name}_fpn_backbone"
    cfg.MODEL.SEBENCH.OPTIONS.update(options)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    detector = build_model(cfg)
    DetectionCheckpointer(detector).load(str(out))
    stages = detector.backbone.bottom_up.stages.state_dict()
    wanted = ours.backbone.state_dict()
    assert stages.keys() == wanted.keys()
    assert all(torch.equal(stages[key], wanted[key]) for key in wanted)
    back = read_weights(out)
    assert (back.backbone, back.num_classes) == (BackboneSettings(name, options), 5)


@pytest.mark.parametrize("target", ["safetensors", "timm", "detectron2"])
def test_equal_weights_are_equal_bytes_whoever_writes_them(target, tmp_path):
    """Not of the order of tensors and metadata, nor of the file's name or the process."""
    ours = trained("resnet18")
    state = ours.state_dict()
    reverse = dict(sorted(state.items(), reverse=True))
    digests = set()
    for index in range(3):
        folder = tmp_path / f"folder{index}"
        folder.mkdir()
        file = save(ours, folder / f"{index}.safetensors", "resnet18")
        digests.add(convert_weights(file, target, folder / f"out{index}.pth")["sha256"])
        ours.state_dict = lambda: reverse
    assert len(digests) == 1


def test_options_with_lists_are_inspected(tmp_path):
    network = build_network("se_resnet_tiny", 3, se_stages=[2, 3])
    file = save(network, tmp_path / "f.safetensors", "se_resnet_tiny", se_stages=[2, 3])
    found = inspect_weights(file)
    assert (found["options"], found["missing"], found["extra"]) == ({"se_stages": [2, 3]}, [], [])
