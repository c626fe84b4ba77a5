"""From image files to a network's input on one core: torchvision's default pipeline over ours."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from backbones import InputFormat
from classification.config import AugmentSettings, DataSettings, EvaluateSettings
from classification.crop_cache import choose_cache
from classification.datasets import ImageFiles
from classification.distributed import Processes
from classification.loader import evaluation_batches, train_batches
from classification.protocols import choose_protocol
from classification.readers import read_folder
from classification.transforms import normalize
from tools.speed.timing import Measurement, check_equal, compare

PICTURES = 128
BATCH = 128  # what evaluation takes unless told otherwise
ONE_GREY_LEVEL = 1 / 255
CPU = torch.device("cpu")
EVALUATION = [transforms.Resize(256), transforms.CenterCrop(224)]
TRAINING = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]


def first_pass() -> Iterator[Measurement]:
    """Evaluation crops of 256/224 from files never seen before."""
    with _files() as files:
        yield _compare(files, EVALUATION, lambda: _evaluation(files, "none"))


def later_pass() -> Iterator[Measurement]:
    """The same from crops that an earlier pass kept; both read what the system has in memory.

    Eight copies of the images, so that crops come from memory and not from a processor's cache.
    """
    with _files(copies=8) as files, tempfile.TemporaryDirectory() as folder:
        deque(_evaluation(files, folder), maxlen=0)
        yield _compare(files, EVALUATION, lambda: _evaluation(files, folder))


def training() -> Iterator[Measurement]:
    """Random resized crops of 224, flipped, by the same draws."""
    with _files() as files:
        yield _compare(files, TRAINING, lambda: _training(files))


def _compare(
    files: ImageFiles, steps: list[Callable], crops: Callable[[], Iterable[Tensor]]
) -> Measurement:
    """Time from files to normalised float32 batches, by torchvision and by what gives `crops`."""
    first = next(iter(crops()))
    plain = datasets.ImageFolder(files.folder, transforms.Compose(steps))
    expected = []
    for index in range(len(first)):
        torch.manual_seed(index)
        expected.append(transforms.functional.pil_to_tensor(plain[index][0]))
    difference = check_equal(first, torch.stack(expected), ONE_GREY_LEVEL)

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    whole = [*steps, transforms.ToTensor(), transforms.Normalize(mean, std)]
    default = datasets.ImageFolder(files.folder, transforms.Compose(whole))
    settings = {
        "device": "cpu",
        "images": len(files),
        "kilobytes": round(
            sum(p.stat().st_size for p in files.folder.glob("*/*")) / len(files) / 1e3
        ),
        "size": "500x375",
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compare(
            lambda: deque(DataLoader(default, BATCH), maxlen=0),
            lambda: deque((normalize(batch, InputFormat()) for batch in crops()), maxlen=0),
            settings,
            difference,
        )
    finally:
        torch.set_num_threads(threads)


def _evaluation(files: ImageFiles, cache: str) -> Iterator[Tensor]:
    settings = EvaluateSettings("imagenet-256-224", cache=cache)
    _, protocol = choose_protocol(settings)
    kept = choose_cache(settings, files, protocol, "bilinear")
    one = Processes(0, 1, CPU)
    for batch in evaluation_batches(files, protocol, BATCH, one, 0, "bilinear", kept):
        yield batch.images[:, 0]


def _training(files: ImageFiles) -> Iterator[Tensor]:
    keys = [(index, index) for index in range(len(files))]  # an image's place is its seed
    parts = (keys[start : start + BATCH] for start in range(0, len(keys), BATCH))
    data = DataSettings(workers=0)
    for batch in train_batches(files, parts, data, AugmentSettings(), "bilinear", CPU):
        yield batch.images


@contextmanager
def _files(copies: int = 1) -> Iterator[ImageFiles]:
    """JPEG files of 500x375 pixels and about 110 kB, as ImageNet's are."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "val" / "class"
        folder.mkdir(parents=True)
        for number in range(PICTURES):
            path = folder / f"{number:03}.jpg"
            _image(number, 500, 375).save(path, quality=91)
            for copy in range(1, copies):
                shutil.copyfile(path, folder / f"{number + copy * PICTURES:03}.jpg")
        yield read_folder(DataSettings(name="folder", root=root), "val")


def _image(seed: int, width: int, height: int) -> Image.Image:
    """Noise with the spectrum of photographs, amplitude over frequency, and channels alike."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    spectra = rng.normal(size=(2, 3, *frequency.shape))
    waves = np.fft.irfft2((spectra[0] + 1j * spectra[1]) / frequency, s=(height, width))
    waves /= waves.std(axis=(1, 2), keepdims=True)
    waves[1:] = 0.8 * waves[0] + 0.35 * waves[1:]
    pixels = np.clip(120 + 45 * waves, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
