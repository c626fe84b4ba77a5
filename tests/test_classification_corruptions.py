"""Corrupted views: of the crop, the same for an image wherever it comes, and marked in the record."""

import importlib.metadata

import numpy as np
import pytest
import torch
from PIL import Image

from classification import corruptions
from classification.config import CORRUPTIONS, DataSettings, EvaluateSettings
from classification.corruptions import Corruption
from classification.distributed import Processes
from classification.images import from_pil
from classification.loader import evaluation_batches
from classification.protocols import PROTOCOLS, choose_protocol
from classification.readers import read_folder
from classification.transforms import build_views
from tools import sample_data

imagecorruptions = pytest.importorskip("imagecorruptions")
# Compiling glass blur takes seconds; with the rest of them every image takes a fraction of one.
QUICK = [name for name in CORRUPTIONS if name != "glass_blur"]
FIXED = (
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
    *("gaussian_blur", "saturate"),
)  # nothing in them is drawn


def chosen(**settings):
    return choose_protocol(EvaluateSettings(protocol="imagenet-256-224", **settings))


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[:300, :420]
    waves = np.stack([127 + 100 * np.sin(x / 17 + y / k) for k in (9, 23, 41)], axis=-1)
    return from_pil(Image.fromarray(waves.astype(np.uint8)))


def test_the_names_are_those_of_the_library():
    assert set(CORRUPTIONS) == set(imagecorruptions.get_corruption_names("all"))


@pytest.mark.parametrize("name", QUICK)
def test_a_seed_decides_the_corruption_of_the_crop(image, name):
    protocol = chosen(corruption=name, severity=3)[1]
    (clean,) = build_views(PROTOCOLS["imagenet-256-224"])(image)
    state = np.random.get_state()[1].copy()
    (first,), (again,), (other,) = (build_views(protocol)(image, seed) for seed in (1, 1, 2))
    assert np.array_equal(np.random.get_state()[1], state)
    assert (first.dtype, first.shape) == (torch.uint8, clean.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, clean)
    if name not in FIXED:
        assert not torch.equal(first, other)


def test_contrast_is_the_formula_of_its_authors(image):
    corrupted = Corruption("contrast", 5, "").apply(image, 0)
    pixels = image.permute(1, 2, 0).numpy() / 255.0
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    expected = np.clip((pixels - mean) * 0.05 + mean, 0, 1) * 255  # severity 5: a twentieth
    assert np.abs(corrupted.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_an_image_is_corrupted_alike_alone_and_in_the_set(tmp_path):
    root = sample_data.make_imagenet(tmp_path / "i", 3, train_per_class=1, val_per_class=3, size=40)
    files = read_folder(DataSettings(name="folder", root=str(root)), "val")
    evaluate = EvaluateSettings(
        "imagenet-256-224", resize=40, crop=32, corruption="shot_noise", severity=2
    )
    _, protocol = choose_protocol(evaluate)

    def crops(dataset, size):
        alone = Processes(0, 1, torch.device("cpu"))
        batches = evaluation_batches(dataset, protocol, size, alone, 0, "bilinear")
        return torch.cat([batch.images for batch in batches])

    whole = crops(files, 4)
    assert torch.equal(crops(files.subset(np.array([2, 7])), 1), whole[[2, 7]])
    assert len({view.numpy().tobytes() for view in whole}) == 9


def test_a_corruption_shows_in_the_protocol(image):
    name, protocol = chosen(corruption="fog", severity=4)
    assert name == "imagenet-256-224+fog4"
    described = protocol.describe(name).settings["corruption"]
    assert (described["name"], described["severity"]) == ("fog", 4)
    assert described["library"].startswith("imagecorruptions")
    assert "corruption" not in chosen()[1].describe("plain").settings
    flipped = chosen(corruption="snow", severity=1, flip=True)[1]
    view, mirrored = build_views(flipped)(image, 5)
    assert torch.equal(mirrored, view.flip(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "foggy", "severity": 1}, "did you mean 'fog'"),
        ({"corruption": "fog"}, "go together"),
        ({"severity": 3}, "go together"),
        ({"corruption": "fog", "severity": 6}, "severity=6: must be at most 5"),
        ({"corruption": "fog", "severity": 1, "crop": 24}, "32 pixels"),
    ],
)
def test_what_cannot_be_had_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        chosen(**settings)


def test_ten_crops_are_not_corrupted():
    with pytest.raises(ValueError, match="single crops"):
        choose_protocol(EvaluateSettings("imagenet-256-224-ten-crop", corruption="fog", severity=1))


def test_a_missing_library_is_named_with_how_to_get_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(corruptions, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'sebench\[corruptions\]'"):
        chosen(corruption="fog", severity=1)
