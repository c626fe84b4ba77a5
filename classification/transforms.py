"""From images to what a network sees: training augmentation and the views of a protocol.

Images stay uint8 until they are on the device; `normalize` is the one place that makes floats.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from backbones import InputFormat
from classification.config import AugmentSettings
from classification.protocols import Protocol


def normalize(images: Tensor, input_format: InputFormat) -> Tensor:
    """Turn uint8 RGB (N, 3, H, W) into the float32 input a network was trained on."""
    if input_format.channel_order == "BGR":
        images = images.flip(1)
    shape = (1, 3, 1, 1)
    mean = torch.tensor(input_format.mean, device=images.device).view(shape)
    std = torch.tensor(input_format.std, device=images.device).view(shape)
    return images.float().sub_(mean).div_(std)


# Training: one file at a time --------------------------------------------------------------------


def build_train_transform(
    settings: AugmentSettings, interpolation: str = "bilinear"
) -> Callable[[Image.Image], Tensor]:
    """Build PIL image -> uint8 (3, size, size). Its draws come from torch's global generator.

    Source: scale and aspect augmentation [5], 8 to 100 % of the area, aspect 3/4 to 4/3.
    """
    if settings.size == 0:
        raise ValueError("augment.size=0: files of many sizes need a crop, e.g. augment.size=224")
    padding_mode = {"zeros": "constant", "reflect": "reflect"}[settings.padding_mode]
    mode = InterpolationMode(interpolation)
    size = settings.size
    crops = {
        "resized": [v2.RandomResizedCrop(size, tuple(settings.scale), tuple(settings.ratio), mode)],
        "padded": [
            v2.Resize(size, mode),
            v2.CenterCrop(size),
            v2.RandomCrop(size, settings.padding, padding_mode=padding_mode),
        ],
        "none": [v2.Resize(size, mode), v2.CenterCrop(size)],
    }
    policies = {
        "none": [],
        "trivial_augment": [v2.TrivialAugmentWide()],
        "rand_augment": [v2.RandAugment()],
    }
    steps = [*crops[settings.crop], v2.RandomHorizontalFlip(settings.flip)]
    return v2.Compose([*steps, *policies[settings.policy], v2.PILToTensor()])


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
) -> Callable[[Image.Image], Tensor]:
    """Build PIL image -> uint8 (V, 3, H, W), the protocol's views of it."""
    mode = InterpolationMode(interpolation)
    if protocol.resize_mode == "none":
        resizes = [v2.Identity()]
    elif protocol.resize_mode == "warp":
        resizes = [v2.Resize((size, size), mode) for size in protocol.resize]
    else:
        resizes = [v2.Resize(size, mode) for size in protocol.resize]
    crops = {
        "full": lambda image: [image],
        "center": lambda image: [v2.functional.center_crop(image, [protocol.crop])],
        "ten": v2.TenCrop(protocol.crop or 1),
    }
    crop = crops[protocol.crops]
    flip = v2.functional.horizontal_flip

    def views(image: Image.Image) -> Tensor:
        cropped = [view for resize in resizes for view in crop(resize(image))]
        if protocol.flip:
            cropped += [flip(view) for view in cropped]
        return torch.stack([v2.functional.pil_to_tensor(view) for view in cropped])

    return views
