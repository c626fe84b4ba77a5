"""Images are read and resized as PIL and torchvision's default transforms do."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode, v2

from classification.config import AugmentSettings
from classification.images import from_pil, read_image, resize
from classification.protocols import PROTOCOLS
from classification.transforms import build_train_transform, build_views


def noise(height, width, seed=0):
    """The hardest picture to resize alike: every pixel another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def apart(ours, reference):
    """The largest difference in grey levels."""
    assert ours.dtype == torch.uint8
    assert ours.shape == reference.shape
    return int((ours.int() - reference.int()).abs().max())


@pytest.mark.parametrize(
    "saving",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4", "quality": 97},
        {"progressive": True, "quality": 40},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"format": "PNG"},
        {"format": "PNG", "mode": "P"},
        {"format": "PNG", "mode": "RGBA"},
        {"format": "WEBP"},
    ],
    ids=str,
)
def test_files_are_read_as_pil_reads_them_to_the_bit(tmp_path, saving):
    saving = {"format": "JPEG", "mode": "RGB"} | saving
    image = noise(101, 67).convert(saving.pop("mode"))
    path = tmp_path / "image"
    image.save(path, **saving)
    assert torch.equal(read_image(path), from_pil(Image.open(path).convert("RGB")))


def test_damaged_files_are_read_where_pil_reads_them_and_refused_where_it_refuses(tmp_path):
    buffer = io.BytesIO()
    noise(120, 160).save(buffer, "JPEG", quality=95)
    whole, path = buffer.getvalue(), tmp_path / "image.jpg"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    cases = [whole[: len(whole) // 2], whole[:-2], whole[:300], bytes(flipped), b"", b"text"]
    read = 0
    for content in cases:
        path.write_bytes(content)
        try:
            expected = from_pil(Image.open(path).convert("RGB"))
        except (OSError, SyntaxError):
            with pytest.raises((OSError, ValueError)):
                read_image(path)
        else:
            read += 1
            assert torch.equal(read_image(path), expected)
    assert 0 < read < len(cases)


def test_a_file_too_large_to_unpack_is_refused_before_it_is(tmp_path, monkeypatch):
    noise(40, 40).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="DecompressionBombError"):
        read_image(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="1600 pixels, more than"),
    ):
        read_image(tmp_path / "bomb.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_line_of_pixels_is_refused_and_not_enlarged_to_gigabytes(tmp_path, suffix):
    noise(1, 200).save(tmp_path / f"long.{suffix}")
    assert build_views(PROTOCOLS["imagenet-256-224"])(read_image(tmp_path / f"long.{suffix}")).any()
    noise(20_000, 1).save(tmp_path / f"longer.{suffix}")
    with pytest.raises(ValueError, match="20000x1 pixels: one side is more than 200 times"):
        read_image(tmp_path / f"longer.{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_followed_as_in_torchvisions_image_folder(tmp_path, orientation):
    image, path = noise(20, 33), tmp_path / "turned.jpg"
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    assert torch.equal(read_image(path), from_pil(default_loader(str(path))))
    assert read_image(path).shape == (3, 20, 33)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_greys_keep_their_upper_8_bits(tmp_path, suffix):
    grey = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)
    path = tmp_path / f"grey.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    assert read_image(path)[1].flatten().tolist() == list(range(256))


@pytest.mark.parametrize("grey", [np.float32(0.5), np.int32(70_000)])
def test_greys_of_unknown_white_are_refused(tmp_path, grey):
    Image.fromarray(np.full((4, 4), grey)).save(tmp_path / "grey.tif")
    with pytest.raises(ValueError, match="which of them is white"):
        read_image(tmp_path / "grey.tif")


def test_a_pipe_is_refused_at_once_and_postscript_is_not_run(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")
    path = tmp_path / "script.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(OSError, match="cannot identify"):
        read_image(path)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (256, 256), (60, 431), (1100, 900)])
def test_evaluation_crops_are_within_one_grey_level_of_torchvisions(shape):
    image = noise(*shape)
    for name in ("imagenet-256-224", "imagenet-352-299", "imagenet-320"):
        protocol = PROTOCOLS[name]
        reference = v2.Compose([v2.Resize(protocol.resize[0]), v2.CenterCrop(protocol.crop)])(image)
        (view,) = build_views(protocol)(from_pil(image))
        assert apart(view, from_pil(reference)) <= 1


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos", "nearest"])
def test_other_interpolations_are_pils_to_the_bit(interpolation):
    image = noise(375, 500)
    mode = InterpolationMode(interpolation)
    reference = v2.Compose([v2.Resize(256, mode), v2.CenterCrop(224)])(image)
    (view,) = build_views(PROTOCOLS["imagenet-256-224"], interpolation)(from_pil(image))
    assert apart(view, from_pil(reference)) == 0


def test_a_part_of_a_resized_image_equals_that_part_of_the_whole():
    image = from_pil(noise(203, 311))
    whole = resize(image, (97, 149))
    for top, left, height, width in [(0, 0, 97, 149), (40, 9, 30, 100), (96, 148, 1, 1)]:
        part = resize(image, (97, 149), box=(top, left, height, width))
        assert torch.equal(part, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize("policy", ["none", "trivial_augment"])
def test_training_crops_are_within_one_grey_level_of_torchvisions_by_the_same_draws(policy):
    image = noise(375, 500)
    reference = [v2.RandomResizedCrop(96), v2.RandomHorizontalFlip()]
    allowed = 1
    if policy == "trivial_augment":
        reference, allowed = [*reference, v2.TrivialAugmentWide()], 255  # a level more may be much
    reference = v2.Compose([*reference, v2.PILToTensor()])
    ours = build_train_transform(AugmentSettings(size=96, policy=policy))
    shares = []
    for seed in range(12):
        torch.manual_seed(seed)
        expected = reference(image)
        torch.manual_seed(seed)
        crop = ours(from_pil(image))
        assert apart(crop, expected) <= allowed
        shares.append(float(((crop.int() - expected.int()).abs() <= 1).float().mean()))
    assert np.median(shares) > 0.95
