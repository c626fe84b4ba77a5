"""Our backbones in Detectron2's hands: registry, LazyConfig, features, frozen stages, norms."""

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo, modeling
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_model
from detectron2.utils.registry import Registry
from torch import nn

import detection.backbone
from backbones import (
    BackboneSettings,
    InputFormat,
    build_backbone,
    build_network,
    save_weights,
)
from backbones.weights.convert import convert_weights
from detection import add_sebench_config, build_detectron2_backbone, register_backbones, use_weights
from detection.backbone import _convert_norms

TINY = "build_se_resnet_tiny_backbone"


@pytest.fixture(autouse=True)
def _registered():
    register_backbones()


def foreign_cfg(config_file, backbone):
    """A Detectron2 config as anyone has it, with nothing of ours but the backbone's name."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(config_file))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = backbone
    return cfg


def tiny_cfg(**resnets):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = TINY
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def build_tiny(cfg):
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))


@pytest.fixture
def trained():
    """A classifier whose norms have seen statistics."""
    torch.manual_seed(0)
    network = build_network("se_resnet_tiny", num_classes=5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


@pytest.fixture
def weights(trained, tmp_path):
    path = tmp_path / "tiny.safetensors"
    settings = BackboneSettings("se_resnet_tiny")
    save_weights(trained, path, backbone=settings, num_classes=5, input_format=InputFormat())
    return str(path)


def test_importing_registers_nothing_and_registering_twice_is_no_harm(monkeypatch):
    registry = Registry("BACKBONE")
    monkeypatch.setattr(modeling, "BACKBONE_REGISTRY", registry)
    spec = importlib.util.spec_from_file_location("detection.again", detection.backbone.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not list(registry)
    module.register_backbones()
    first = dict(registry)
    module.register_backbones()
    assert dict(registry) == first
    assert "build_retinanet_se_resnet50_fpn_backbone" in first


def test_only_backbones_with_imagenet_strides_are_registered():
    names = {name for name, _ in BACKBONE_REGISTRY}
    assert "build_se_resnext101_32x4d_fpn_backbone" in names
    assert not [name for name in names if "resnet164" in name]


@pytest.mark.parametrize(
    ("config_file", "backbone", "features"),
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "build_se_resnet50_fpn_backbone", "p2 p6"),
        (
            "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
            "build_retinanet_se_resnet50_fpn_backbone",
            "p3 p7",
        ),
        (
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
            "build_se_resnet50_fpn_backbone",
            "p2 p6",
        ),
    ],
)
def test_detectors_build_and_run_on_se_resnet50_from_a_foreign_config(
    config_file, backbone, features
):
    model = build_model(foreign_cfg(config_file, backbone)).eval()
    first, last = features.split()
    pyramid = list(model.backbone.output_shape())
    assert (pyramid[0], pyramid[-1]) == (first, last)
    # 16 blocks, each with its squeeze and excitation.
    assert sum(name.endswith(".se") for name, _ in model.named_modules()) == 16
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])
    assert found["instances"].image_size == (64, 96)


def test_a_lazy_config_builds_mask_rcnn_on_our_stages():
    path = Path(model_zoo.__file__).parent / "configs" / "common" / "models" / "mask_rcnn_fpn.py"
    model = LazyConfig.load(str(path)).model
    model.backbone.bottom_up = LazyCall(build_detectron2_backbone)(
        name="se_resnet_tiny", freeze_at=2, out_features=["res2", "res3", "res4", "res5"]
    )
    detector = instantiate(model).eval()
    assert detector.backbone.output_shape()["p5"] == ShapeSpec(channels=256, stride=32)
    assert not detector.backbone.bottom_up.stages.res2[0].se.fc1.weight.requires_grad
    with torch.no_grad():
        detector([{"image": torch.zeros(3, 64, 64)}])


def test_options_and_weights_come_from_the_sebench_node(weights, tmp_path):
    cfg = tiny_cfg()
    add_sebench_config(cfg)
    file = tmp_path / "mine.yaml"
    file.write_text("MODEL: {SEBENCH: {OPTIONS: {reduction: 4, se_bias: false}}}")
    cfg.merge_from_file(str(file))
    se = build_tiny(cfg).stages.res5[0].se
    assert se.fc1.out_features == 128 // 4
    assert se.fc1.bias is None
    cfg = tiny_cfg()
    use_weights(cfg, weights)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    build_tiny(cfg)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_features_in_the_detector_equal_the_classifiers_to_the_bit(
    trained, weights, norm, freeze_at
):
    cfg = tiny_cfg(NORM=norm)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    use_weights(cfg, weights)
    stages = build_tiny(cfg).eval()
    pictures = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, found = trained.backbone(pictures), stages(pictures)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, feature in found.items():
        assert torch.equal(feature, expected[name])
        shape = stages.output_shape()[name]
        assert feature.shape == (2, shape.channels, 96 // shape.stride, 64 // shape.stride)


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3, 5])
def test_freeze_at_freezes_exactly_those_stages_and_only_their_norms(freeze_at):
    network = build_detectron2_backbone("se_resnet_tiny", freeze_at=freeze_at, norm="BN").stages
    for index, name in enumerate(network.feature_specs):
        stage = getattr(network, name)
        frozen = index < freeze_at
        assert {p.requires_grad for p in stage.parameters()} == {not frozen}
        if name != "stem":
            assert stage[0].se.fc1.weight.requires_grad is not frozen
        norms = {type(m) for m in stage.modules() if "Norm" in type(m).__name__}
        assert norms == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}


def test_a_frozen_stage_keeps_its_statistics_in_training(weights):
    stages = build_detectron2_backbone(
        "se_resnet_tiny", freeze_at=2, norm="BN", weights=weights
    ).train()
    before = {name: value.clone() for name, value in stages.state_dict().items()}
    stages(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    moved = {n for n, value in stages.state_dict().items() if not torch.equal(value, before[n])}
    assert moved
    assert not [name for name in moved if name.startswith(("stages.stem", "stages.res2"))]


@pytest.mark.parametrize(
    ("norm", "kind"), [("SyncBN", nn.SyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)]
)
def test_every_norm_of_the_other_stages_is_the_one_asked_for(norm, kind):
    network = build_detectron2_backbone("se_resnet_tiny", freeze_at=0, norm=norm).stages
    assert {type(m) for m in network.modules() if "Norm" in type(m).__name__} == {kind}


def test_group_norm_replaces_every_norm_and_refuses_what_it_cannot_do(weights):
    network = build_detectron2_backbone("resnet18", freeze_at=0, norm="GN").stages
    kinds = {type(m) for m in network.modules() if "Norm" in type(m).__name__}
    assert kinds == {nn.GroupNorm}
    with pytest.raises(ValueError, match=r"multiples of 32; stem\.norm1 has 24"):
        build_detectron2_backbone("se_resnet_tiny", freeze_at=0, norm="GN")
    with pytest.raises(ValueError, match="norm GN would drop them"):
        build_detectron2_backbone("se_resnet_tiny", freeze_at=0, norm="GN", weights=weights)


def test_stages_that_nobody_asked_for_are_dropped():
    stages = build_detectron2_backbone(
        "se_resnet_tiny", out_features=["res3", "res4"], freeze_at=0, norm="BN"
    )
    assert list(stages.output_shape()) == ["res3", "res4"]
    assert not hasattr(stages.stages, "res5")
    sum(feature.sum() for feature in stages(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in stages.parameters())


def test_training_from_scratch_with_frozen_norms_is_refused(weights):
    pictures = torch.randn(1, 3, 64, 64)
    scratch = build_detectron2_backbone("se_resnet_tiny", norm="FrozenBN").train()
    with pytest.raises(ValueError, match="without statistics they do nothing"):
        scratch(pictures)
    scratch.eval()(pictures)
    build_detectron2_backbone("se_resnet_tiny", norm="FrozenBN", weights=weights).train()(pictures)


def tiny_detector(**model):
    cfg = foreign_cfg("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", TINY.replace("_b", "_fpn_b"))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.update(model)
    return cfg


def stages_of(model):
    return model.backbone.bottom_up.stages.state_dict()


def test_use_weights_puts_every_tensor_into_a_detector_of_detectron2(trained, weights):
    cfg = tiny_detector()
    use_weights(cfg, weights)
    found = stages_of(build_model(cfg))
    expected = trained.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_converted_pickle_loads_every_tensor_by_model_weights(trained, weights, tmp_path):
    path = tmp_path / "converted.pkl"
    convert_weights(weights, "detectron2", path)
    model = build_model(tiny_detector(WEIGHTS=str(path)))
    DetectionCheckpointer(model).load(str(path))
    found, expected = stages_of(model), trained.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["pth", "pth under model", "safetensors"])
def test_model_weights_that_would_load_in_part_are_an_error(trained, weights, tmp_path, kind):
    """Detectron2's checkpointer alone would load nothing, or some convolutions, and warn."""
    path = tmp_path / f"given.{kind.split()[0]}"
    state = trained.state_dict()
    if kind == "safetensors":
        path = weights
    else:
        torch.save({"model": state} if "under" in kind else state, path)
    cfg = tiny_detector(WEIGHTS=str(path))
    with pytest.raises(ValueError, match=r"detection\.use_weights\(cfg, FILE\)"):
        DetectionCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)


def test_a_checkpoint_of_the_same_detector_loads_by_model_weights(weights, tmp_path):
    cfg = tiny_detector()
    use_weights(cfg, weights)
    model = build_model(cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    cfg = tiny_detector(WEIGHTS=str(tmp_path / "model_final.pth"))
    again = build_model(cfg)
    DetectionCheckpointer(again).load(cfg.MODEL.WEIGHTS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_rgb_weights_in_a_bgr_detector_are_refused(weights):
    cfg = tiny_cfg()
    use_weights(cfg, weights)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"feeds BGR .* trained on RGB"):
        build_tiny(cfg)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD = "RGB", [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="let the input follow the weights"):
        build_tiny(cfg)


def test_what_our_networks_do_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="no dilated or deformable"):
        build_tiny(tiny_cfg(RES5_DILATION=2))
    with pytest.raises(ValueError, match="choose from stem, res2"):
        build_tiny(tiny_cfg(OUT_FEATURES=["res6"]))
    with pytest.raises(ValueError, match=r"strides 4, 8, 16, 32, not \[1, 1, 2, 4\]"):
        build_detectron2_backbone("resnet20")
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_sebench_backbone"
    with pytest.raises(ValueError, match="says which backbone, and is empty"):
        build_tiny(cfg)


def test_stride_in_1x1_of_a_foreign_config_is_obeyed():
    cfg = tiny_cfg(STRIDE_IN_1X1=False)
    cfg.MODEL.BACKBONE.NAME = "build_resnet50_backbone"
    block = build_tiny(cfg).stages.res3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_a_network_of_timm_serves_with_the_activations_inside_its_norms_kept():
    name = "timm:regnetx_002"  # its norms are timm's BatchNormAct2d
    expected = build_backbone(name).eval()
    cfg = tiny_cfg()
    add_sebench_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SEBENCH.NAME = "build_sebench_backbone", name
    stages = build_tiny(cfg)
    assert not [m for m in stages.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {p.requires_grad for p in stages.stages.res2.parameters()} == {False}
    stages = build_detectron2_backbone(name, freeze_at=0, norm="BN").eval()
    stages.stages.load_state_dict(
        dict(zip(stages.stages.state_dict(), expected.state_dict().values(), strict=True))
    )
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = expected(pictures)
        assert torch.equal(stages(pictures)["res5"], features["res5"])
        _convert_norms(expected, [expected], "FrozenBN")
        assert torch.equal(expected(pictures)["res5"], features["res5"])


def test_the_pyramid_stands_on_the_stages():
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_tiny_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.RESNETS.OUT_FEATURES, 32
    pyramid = build_tiny(cfg)
    assert isinstance(pyramid, FPN)
    assert pyramid.size_divisibility == 32
