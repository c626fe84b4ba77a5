"""OpenMMLab's registry builds the suite's networks, with the maps that the others get."""

from pathlib import Path

import pytest
import torch
from mmcv.cnn import build_plugin_layer
from mmengine import Config
from mmengine.registry import MODELS

import backbones.openmmlab
from backbones import BackboneSettings, InputFormat, build_network, save_weights

PICTURE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    network = build_network("se_resnet_tiny", 3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    file = str(tmp_path_factory.mktemp("weights") / "weights.safetensors")
    settings = BackboneSettings("se_resnet_tiny")
    save_weights(network, file, backbone=settings, num_classes=3, input_format=BGR)
    return network, file


def test_maps_equal_the_classifiers_and_the_detectors_to_the_bit(saved):
    network, file = saved
    built = MODELS.build({"type": "sebench.Backbone", "name": "se_resnet_tiny", "weights": file})
    with torch.no_grad():
        maps = built.eval()(PICTURE)
        features = network.backbone(PICTURE)
    assert all(torch.equal(a, features[f"res{i}"]) for i, a in enumerate(maps, start=2))

    from detection import build_detectron2_backbone

    stages = build_detectron2_backbone(
        "se_resnet_tiny", freeze_at=0, norm="BN", weights=file
    ).eval()
    with torch.no_grad():
        detected = stages(PICTURE)
    assert all(torch.equal(a, detected[f"res{i}"]) for i, a in enumerate(maps, start=2))


def test_the_example_config_builds_an_se_resnet_50():
    config = Config.fromfile(Path(backbones.openmmlab.__file__).with_name("openmmlab_config.py"))
    with torch.device("meta"):
        built = MODELS.build(config.model.backbone)
        maps = built(PICTURE.to("meta"))
    assert [tuple(a.shape[1:]) for a in maps] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    frozen = {n.split(".")[1] for n, p in built.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert not any(m.training for m in built.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_families_have_their_openmmlab_names():
    with torch.device("meta"):
        for name in ("ResNet", "SEResNet", "ResNeXt", "SEResNeXt"):
            assert len(MODELS.build({"type": f"sebench.{name}", "depth": 101}).stages.res4) == 23
        assert len(MODELS.build({"type": "sebench.SENet"}).stages.res4) == 36


def test_the_se_block_is_a_plugin_layer_of_mmcv():
    torch.manual_seed(0)
    settings = {"type": "sebench.SEBlock", "reduction": 4}
    name, layer = build_plugin_layer(settings, postfix="_after_conv3", in_channels=8)
    assert name == "se_after_conv3"
    x = torch.randn(1, 8, 5, 5)
    gate = torch.sigmoid(layer.fc2(torch.relu(layer.fc1(x.mean((2, 3))))))
    assert torch.allclose(layer(x), x * gate[:, :, None, None])


def test_the_preprocessor_follows_the_weights(saved):
    _, file = saved
    told = backbones.openmmlab.preprocessor_settings(file)
    assert told == {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}


def test_bad_settings_are_refused():
    base = {"type": "sebench.Backbone", "name": "se_resnet_tiny"}
    for settings, words in (
        ({"out_indices": (4,)}, "out_indices"),
        ({"frozen_stages": 9}, "frozen_stages"),
        ({"name": "se_resnet_tinny"}, "did you mean se_resnet_tiny"),
    ):
        with pytest.raises(Exception, match=words):
            MODELS.build(base | settings)
