"""From images to what a network sees: training augmentation and the views of a protocol.

Images stay uint8 until they are on the device; `normalize` is the one place that makes floats.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from backbones import InputFormat
from classification.config import AugmentSettings
from classification.images import from_pil, resize, stack, to_pil
from classification.protocols import Protocol

_CACHED = 2**17  # float32 values


def normalize(images: Tensor, input_format: InputFormat) -> Tensor:
    """Turn uint8 RGB (N, 3, H, W) into the float32 input a network was trained on.

    The result is in channels-last memory format.
    """
    count, _, height, width = images.shape
    rows = images.permute(0, 2, 3, 1)
    if input_format.channel_order == "BGR":
        rows = rows.flip(3)
    # Rows of 3 * width values: with an innermost dimension of 3 nothing could be vectorised.
    rows = rows.flatten(2)
    std = torch.tensor(input_format.std, dtype=torch.float64)
    mean = torch.tensor(input_format.mean, dtype=torch.float64)
    scale = (1 / std).float().repeat(width).to(images.device)
    shift = (-mean / std).float().repeat(width).to(images.device)
    values = torch.empty(rows.shape, device=images.device)
    # On a CPU about as much at a time as its cache holds between the two steps.
    part = count if images.is_cuda else max(1, _CACHED // max(1, rows[0].numel()))
    for some_rows, some_values in zip(rows.split(part), values.split(part), strict=True):
        torch.addcmul(shift, some_values.copy_(some_rows), scale, out=some_values)
    return values.view(count, height, width, 3).permute(0, 3, 1, 2)


# Training: one file at a time --------------------------------------------------------------------


def build_train_transform(
    settings: AugmentSettings, interpolation: str = "bilinear"
) -> Callable[[Tensor], Tensor]:
    """Build uint8 (3, H, W) -> uint8 (3, size, size). Its draws come from torch's global generator.

    Source: scale and aspect augmentation [5], 8 to 100 % of the area, aspect 3/4 to 4/3.
    """
    if settings.size == 0:
        raise ValueError("augment.size=0: files of many sizes need a crop, e.g. augment.size=224")
    size = settings.size
    # Partial functions, no closures: the processes that read images get them as pickles.
    region = v2.RandomResizedCrop(size, tuple(settings.scale), tuple(settings.ratio))
    resized = partial(_crop_region, region=region, size=size, interpolation=interpolation)
    centred = partial(_crop_centre, size=size, interpolation=interpolation)
    padding_mode = {"zeros": "constant", "reflect": "reflect"}[settings.padding_mode]
    crops = {
        "resized": [resized],
        "padded": [centred, v2.RandomCrop(size, settings.padding, padding_mode=padding_mode)],
        "none": [centred],
    }
    policies = {"trivial_augment": v2.TrivialAugmentWide, "rand_augment": v2.RandAugment}
    steps = [*crops[settings.crop], v2.RandomHorizontalFlip(settings.flip)]
    if settings.policy != "none":  # on PIL images, as the policies' papers and recipes did
        steps += [to_pil, policies[settings.policy](), from_pil]
    return v2.Compose(steps)


def _crop_region(
    image: Tensor, *, region: v2.RandomResizedCrop, size: int, interpolation: str
) -> Tensor:
    drawn = region.make_params([image])
    top, left = drawn["top"], drawn["left"]
    chosen = image[:, top : top + drawn["height"], left : left + drawn["width"]]
    return resize(chosen, (size, size), interpolation)


def _crop_centre(image: Tensor, *, size: int, interpolation: str) -> Tensor:
    whole = shorter_side(image, size)
    return resize(image, whole, interpolation, centre(whole, size))


# Training: a batch at a time, for sets held in memory ----------------------------------------------


def draw(seeds: Tensor, number: int) -> Tensor:
    """The `number`-th draw of each seed, float64 in [0, 1): a function of the seed alone.

    So an image is augmented alike whatever batch, part or process it comes in.
    Source: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    z = seeds.numpy().astype(np.uint64) + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def augment_batch(images: Tensor, settings: AugmentSettings, seeds: Tensor) -> Tensor:
    """Pad, crop and flip each of uint8 (N, 3, H, W) by its own seed, int64 (N,) on the CPU."""
    count, _, height, width = images.shape
    device = images.device
    if settings.crop == "padded" and settings.padding:
        p = settings.padding
        top = (draw(seeds, 0) * (2 * p + 1)).long().to(device)
        left = (draw(seeds, 1) * (2 * p + 1)).long().to(device)
        if settings.padding_mode == "reflect":
            images = F.pad(images.float(), (p, p, p, p), "reflect").to(torch.uint8)
        else:
            images = F.pad(images, (p, p, p, p))
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        which = torch.arange(count, device=device)[:, None, None]
        images = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
        images = images.permute(0, 3, 1, 2)
    if settings.flip:
        flipped = (draw(seeds, 2) < settings.flip).to(device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images


def cut_out(images: Tensor, side: int, seeds: Tensor) -> Tensor:
    """Zero in each normalised image (N, C, H, W) a square centred anywhere, clipped at the border.

    Source: Cutout, arXiv 1708.04552, and its code: the mask spans `centre - side // 2` to
    `centre + side // 2`, always applied.
    """
    height, width = images.shape[2:]
    half = side // 2

    def inside(number: int, length: int) -> Tensor:
        centre = (draw(seeds, number) * length).long()
        offset = torch.arange(length) - centre[:, None]
        return ((offset >= -half) & (offset < half)).to(images.device)

    mask = inside(3, height)[:, None, :, None] & inside(4, width)[:, None, None, :]
    return images.masked_fill(mask, 0)


# Evaluation --------------------------------------------------------------------------------------


def build_views(
    protocol: Protocol, interpolation: str = "bilinear"
) -> Callable[[Tensor, int], Tensor]:
    """Build uint8 (3, H, W) and the seed of a corruption -> uint8 (V, 3, H, W), the views of it."""
    return partial(_views, protocol, interpolation)


def _views(protocol: Protocol, interpolation: str, image: Tensor, seed: int = 0) -> Tensor:
    cropped = [image]
    if protocol.crops != "full":
        cropped = list(_crops_of_all_scales(protocol, interpolation, image))
    if protocol.corruption is not None:
        cropped = [protocol.corruption.apply(view, seed) for view in cropped]
    if protocol.flip:
        cropped += [view.flip(2) for view in cropped]
    return stack(cropped)


def _crops_of_all_scales(protocol: Protocol, interpolation: str, image: Tensor) -> Iterator[Tensor]:
    assert protocol.crop is not None
    for length in protocol.resize:
        whole = (length, length)
        if protocol.resize_mode == "shorter":
            whole = shorter_side(image, length)
        if protocol.crops == "center":
            yield resize(image, whole, interpolation, centre(whole, protocol.crop))
        else:
            yield from v2.functional.ten_crop(resize(image, whole, interpolation), [protocol.crop])


def shorter_side(image: Tensor, length: int) -> tuple[int, int]:
    """Height and width after resizing the shorter side to `length`, rounded as torchvision does."""
    height, width = image.shape[1:]
    short = min(height, width)
    return int(length * height / short), int(length * width / short)


def centre(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the square in the middle, rounded as torchvision does."""
    top, left = (round((length - side) / 2) for length in size)
    return top, left, side, side
