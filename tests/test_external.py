"""Networks of timm and torchvision keep the promise of a backbone, and their own outputs."""

import copy

import pytest
import timm
import torch
import torchvision

from backbones import (
    BackboneSettings,
    InputFormat,
    build_backbone,
    build_network,
    describe_backbone,
    load_weights,
    read_weights,
    save_weights,
    twin_of,
)
from backbones.libraries import input_format_of


def picture(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet26",
        "timm:regnety_002",
        "timm:efficientnet_b0",
        "timm:mobilenetv3_small_100",
        "timm:convnext_atto",
        "timm:resnest14d",
        "torchvision:resnet18",
        "torchvision:regnet_y_400mf",
        "torchvision:mobilenet_v3_small",
        "torchvision:squeezenet1_1",
    ],
)
def test_logits_and_stages_are_the_librarys(name):
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    build = timm.create_model if library == "timm" else torchvision.models.get_model
    theirs = build(model, num_classes=5).eval()
    ours = build_network(name, 5).eval()
    ours.load_state_dict(ours.backbone.rename(theirs.state_dict()))
    specs = ours.backbone.feature_specs
    with torch.no_grad():
        features = ours.backbone(picture())
        assert torch.equal(ours(picture()), theirs(picture()))
        assert torch.equal(copy.deepcopy(ours)(picture()), theirs(picture()))
        if library == "timm":
            stages = theirs.forward_intermediates(picture(), intermediates_only=True)[-4:]
            for mine, yours in zip(list(features.values())[1:], stages, strict=True):
                assert torch.equal(mine, yours)
    assert list(features) == list(specs)
    for key, spec in specs.items():
        assert features[key].shape[1] == spec.channels
        if describe_backbone(name).detection is None:
            assert features[key].shape[2] == 64 // spec.stride


def test_a_description_counts_what_timm_says():
    info = describe_backbone("timm:seresnet50.a1_in1k")
    assert (info.parameters, info.is_se, info.input_size) == (28_088_024, True, 224)
    # Convolutions and FC layers of torchvision's ResNet-50 (stride in the 3x3), residual additions,
    # and SE's two matrices.
    assert info.multiply_adds == 4_089_184_256 + 5_519_360 + 2_514_944
    assert info.detection is None


def test_what_cannot_serve_says_why():
    assert "unpadded" in describe_backbone("timm:inception_v3").detection
    with pytest.raises(ValueError, match="cannot serve as a backbone"):
        describe_backbone("timm:vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="not a chain of convolutional stages"):
        build_backbone("timm:hrnet_w18_small")


def test_unknown_names_tags_and_options_are_refused_with_near_matches():
    with pytest.raises(ValueError, match="did you mean timm:resnet50"):
        build_backbone("timm:resnet5O")
    with pytest.raises(ValueError, match="tagged 'a9_in1k'; it has a1_in1k"):
        describe_backbone("timm:resnet50.a9_in1k")
    with pytest.raises(ValueError, match="no_such_option"):
        build_backbone("timm:resnet18", no_such_option=1)
    with pytest.raises(ValueError, match="did you mean torchvision:resnet50"):
        build_backbone("torchvision:resnet5O")


def test_twins_share_the_recipe_tag():
    assert twin_of("timm:seresnet50.a1_in1k", {}) == ("timm:resnet50.a1_in1k", {})
    assert twin_of("timm:seresnet50", {}) == ("timm:resnet50", {})
    assert twin_of("timm:seresnet50.ra2_in1k", {}) is None  # timm has no such ResNet-50
    assert twin_of("timm:resnet50.a1_in1k", {}) is None


def test_input_formats_are_the_librarys():
    assert input_format_of("timm:resnet50.a1_in1k") == InputFormat(
        interpolation="bicubic", size=224, crop=0.95
    )
    half = (127.5, 127.5, 127.5)
    assert input_format_of("timm:inception_resnet_v2.tf_in1k") == InputFormat(
        mean=half, std=half, interpolation="bicubic", size=299, crop=0.8975
    )
    assert input_format_of("torchvision:resnet50.IMAGENET1K_V1") == InputFormat(
        size=224, crop=0.875
    )


def test_files_of_the_library_load_strictly_and_ours_come_back(tmp_path):
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = build_network("timm:mobilenetv3_small_050", 5).eval()
    loaded = load_weights(ours, tmp_path / "timm.pth")
    input_format = read_weights(tmp_path / "timm.pth", ours.backbone.name).input_format
    assert (loaded.format, input_format.interpolation) == ("timm", "bicubic")
    assert torch.equal(ours(picture()), theirs(picture()))
    file = tmp_path / "ours.safetensors"
    settings = BackboneSettings("timm:mobilenetv3_small_050")
    save_weights(ours, file, backbone=settings, num_classes=5, input_format=input_format)
    again = build_network("timm:mobilenetv3_small_050", 5).eval()
    assert load_weights(again, file).format == "sebench"
    assert torch.equal(again(picture()), theirs(picture()))
    assert all(
        torch.equal(tensor, theirs.state_dict()[name])
        for name, tensor in ours.backbone.library_tensors(ours.state_dict()).items()
    )
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(build_network("timm:mobilenetv3_small_075", 5), tmp_path / "timm.pth")


def test_no_network_is_said_plainly(monkeypatch):
    import huggingface_hub.constants
    import torch.hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent-cache")
    monkeypatch.setattr(torch.hub.os, "makedirs", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=r"timm could not get the weights.*give its path instead"):
        read_weights("timm:test_resnet.r160_in1k")
    with pytest.raises(ValueError, match="torchvision could not get the weights"):
        read_weights("torchvision:squeezenet1_1")


def test_dropout_reaches_the_head():
    assert build_network("timm:legacy_seresnet18", 5).head.model.drop_rate == 0  # timm's own: 0.2
    head = build_network("torchvision:squeezenet1_1", 5, dropout=0.3).head
    assert [m.p for m in head.modules() if isinstance(m, torch.nn.Dropout)] == [0.3]
    with pytest.raises(ValueError, match="no dropout"):
        build_network("torchvision:resnet18", 5, dropout=0.3)
