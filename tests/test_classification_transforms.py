"""Views of the protocols and augmentation against hand-made crops and torchvision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy.stats import kstest
from torchvision import transforms as v1

from backbones import InputFormat
from classification.config import AugmentSettings, EvaluateSettings
from classification.images import from_pil
from classification.protocols import PROTOCOLS, choose_protocol
from classification.transforms import (
    augment_batch,
    build_train_transform,
    build_views,
    cut_out,
    draw,
    normalize,
)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), np.uint8)
    return Image.fromarray(pixels)


def views(protocol, image):
    return build_views(protocol)(from_pil(image))


def assert_within_one(ours, reference):
    """No value more than one grey level from what PIL makes."""
    assert ours.dtype == torch.uint8
    assert ours.shape == reference.shape
    assert (ours.int() - reference.int()).abs().max() <= 1


def protocol(name, **changes):
    return choose_protocol(EvaluateSettings(protocol=name, **changes))[1]


# Protocols ---------------------------------------------------------------------------------------


def test_single_crop_is_a_resize_of_the_shorter_side_and_the_centre(image):
    resized = image.resize((358, 256), Image.Resampling.BILINEAR)  # 420 * 256 / 300 = 358.4
    by_hand = resized.crop((67, 16, 67 + 224, 16 + 224))
    (view,) = views(PROTOCOLS["imagenet-256-224"], image)
    assert_within_one(view, from_pil(by_hand))


def test_the_299_protocol_equals_torchvisions_transforms(image):
    expected = v1.Compose([v1.Resize(352), v1.CenterCrop(299)])(image)
    (view,) = views(PROTOCOLS["imagenet-352-299"], image)
    assert_within_one(view, from_pil(expected))


def test_the_resize_of_the_320_protocol_is_a_setting_and_shows_in_the_name(image):
    name, chosen = choose_protocol(EvaluateSettings(protocol="imagenet-320", resize=352))
    assert name == "imagenet-320+resize352"
    (view,) = views(chosen, image)
    assert_within_one(view, from_pil(v1.Compose([v1.Resize(352), v1.CenterCrop(320)])(image)))


def test_warp256_squashes_and_resize256_does_not(image):
    squashed = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    (warped,) = views(PROTOCOLS["places365-warp256"], image)
    (resized,) = views(PROTOCOLS["places365-resize256"], image)
    assert_within_one(warped, from_pil(squashed))
    assert not torch.equal(warped, resized)


def test_both_places_protocols_agree_on_images_of_256_by_256(image):
    square = image.resize((256, 256))
    warped, resized = (
        views(PROTOCOLS[f"places365-{name}256"], square) for name in ("warp", "resize")
    )
    assert torch.equal(warped, resized)


def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images(image):
    ten = views(PROTOCOLS["imagenet-256-224-ten-crop"], image)
    resized = image.resize((358, 256), Image.Resampling.BILINEAR)
    corners = [(0, 0), (358 - 224, 0), (0, 32), (358 - 224, 32), (67, 16)]
    crops = [resized.crop((x, y, x + 224, y + 224)) for x, y in corners]
    expected = [from_pil(crop) for crop in crops] + [
        from_pil(ImageOps.mirror(crop)) for crop in crops
    ]
    # torchvision mirrors the whole image: its left corners are the right ones mirrored.
    mirrored = [5 + i for i in (1, 0, 3, 2, 4)]
    assert_within_one(ten, torch.stack(expected)[[0, 1, 2, 3, 4, *mirrored]])


def test_multi_scale_has_ten_crops_of_every_scale(image):
    chosen = PROTOCOLS["imagenet-multi-scale"]
    many = views(chosen, image)
    assert len(many) == chosen.views == 50
    single = views(protocol("imagenet-256-224-ten-crop", resize=288), image)
    assert torch.equal(many[20:30], single)


def test_flip_adds_the_mirror_image(image):
    view, mirrored = views(protocol("imagenet-256-224", flip=True), image)
    assert torch.equal(mirrored, view.flip(-1))


def test_protocols_refuse_what_does_not_apply():
    with pytest.raises(ValueError, match="did you mean 'imagenet-256-224'"):
        choose_protocol(EvaluateSettings(protocol="imagenet-256-225"))
    with pytest.raises(ValueError, match="larger than"):
        protocol("imagenet-256-224", crop=300)
    with pytest.raises(ValueError, match="mirror"):
        protocol("imagenet-256-224-ten-crop", flip=True)
    with pytest.raises(ValueError, match="as it is"):
        protocol("full-image", crop=28)


# Normalisation -----------------------------------------------------------------------------------


def test_normalizing_follows_the_input_format_in_its_channel_order():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    caffe = InputFormat(channel_order="BGR", mean=(104, 117, 123), std=(1, 1, 1))
    assert normalize(image, caffe).flatten().tolist() == [30 - 104, 20 - 117, 10 - 123]
    rgb = normalize(image, InputFormat(mean=(10, 10, 10), std=(2, 5, 10))).flatten().tolist()
    assert rgb == [0, 2, 2]
    assert image.flatten().tolist() == [10, 20, 30]


# Augmentation ------------------------------------------------------------------------------------


def seeds(count):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 2**62, count))


def test_draws_are_uniform_and_independent_of_each_other():
    first, second = (draw(seeds(100_000), number).numpy() for number in (0, 1))
    assert kstest(first, "uniform").pvalue > 0.01
    assert kstest(second, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    assert draw(torch.arange(5), 0).min() >= 0


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_every_padded_crop_is_a_window_of_the_padded_image(mode):
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    settings = AugmentSettings(crop="padded", size=8, padding=2, padding_mode=mode, flip=0.5)
    augmented = augment_batch(images, settings, seeds(40))
    kind = "constant" if mode == "zeros" else "reflect"
    padded = F.pad(images.float(), (2, 2, 2, 2), kind).to(torch.uint8)
    places, flips = set(), 0
    for before, after in zip(padded, augmented, strict=True):
        found = [
            (y, x, flipped)
            for y in range(5)
            for x in range(5)
            for flipped in (False, True)
            if torch.equal(after.flip(-1) if flipped else after, before[:, y : y + 8, x : x + 8])
        ]
        assert len(found) == 1
        places.add(found[0][:2])
        flips += found[0][2]
    assert len(places) > 15
    assert 10 < flips < 30


def test_no_crop_and_no_flip_leave_a_batch_alone():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    settings = AugmentSettings(crop="none", size=8, flip=0)
    assert torch.equal(augment_batch(images, settings, seeds(4)), images)


def test_cutout_zeroes_one_square_clipped_at_the_border():
    images = torch.ones(200, 3, 32, 32)
    cut = cut_out(images, 16, seeds(200)) == 0
    assert torch.equal(cut[:, 0], cut[:, 2])
    areas = cut[:, 0].sum((1, 2))
    # A centre at a corner leaves 8x8, one in the middle 16x16; every hole is a rectangle.
    assert 64 <= areas.min() < areas.max() == 256
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, areas)
    assert images.min() == 1


def test_files_are_augmented_to_one_size_with_torchs_draws(image):
    transform = build_train_transform(AugmentSettings(size=64))
    torch.manual_seed(3)
    pixels = from_pil(image)
    first = transform(pixels)
    torch.manual_seed(3)
    assert torch.equal(first, transform(pixels))
    assert not torch.equal(first, transform(pixels))
    assert (first.shape, first.dtype) == ((3, 64, 64), torch.uint8)


def test_files_need_a_size():
    with pytest.raises(ValueError, match=r"augment\.size"):
        build_train_transform(AugmentSettings(size=0))
