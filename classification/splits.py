"""The images of an experiment: trained on, chosen on, reported; and whether they are fit for it."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.config import check_choice, printable
from backbones.duplicates import COMPARED_UP_FRONT, describe_shared, find_shared_files
from backbones.files import DECODED_UP_FRONT, IMAGE_FORMATS, sha256_of_list, size_of
from backbones.result import Dataset
from classification.catalog import Readers, readers_of
from classification.config import ClassificationConfig, DataSettings
from classification.datasets import ImageArray, ImageFiles
from classification.folders import normal, read_lines, require, some
from classification.images import read_image
from classification.loader import BadImages

Split = ImageArray | ImageFiles

READERS = readers_of("classification")
# Of sets up to this many files each file is looked at before anything is computed: decoded where
# they have no more than `DECODED_UP_FRONT` bytes together, else by its head and tail.
INSPECTED_UP_FRONT = COMPARED_UP_FRONT


@dataclass(frozen=True)
class Splits:
    """The images of an experiment.

    Attributes:
        reported: whose numbers are reported.
        train: without what is held out; None where nothing is trained.
        held_out: of train, for choosing an epoch; None where `data.holdout` is 0.
        doubts: what is likely a mistake, a line each.
    """

    reported: Split
    train: Split | None = None
    held_out: Split | None = None
    doubts: Sequence[str] = ()

    def describe(self, skipped: list[str]) -> Dataset:
        """The reported set and the number of the other images, for the result.

        `images` counts what was seen: with `skipped_images` it adds up to `images_in_set`.
        """
        reported = self.reported
        bad = set(skipped)
        seen = [place for place, name in enumerate(reported.ids) if name not in bad]
        names = [printable(reported.ids[place]) for place in seen]
        return Dataset(
            name=reported.name,
            split=reported.split,
            images=len(reported) - len(skipped),
            images_in_set=len(reported),
            skipped_images=[printable(name) for name in skipped],
            classes=len(reported.class_names),
            class_names=list(reported.class_names),
            synthetic=reported.synthetic,
            root=str(reported.root),
            sha256=reported.sha256(),
            reported_sha256=sha256_of_list(names, reported.labels[seen]),
            train_images=None if self.train is None else len(self.train),
            held_out_images=None if self.held_out is None else len(self.held_out),
        )


def load_splits(config: ClassificationConfig, readers: Readers, training: bool) -> Splits:
    """Read the split whose numbers are reported and, for training, the others.

    Raises:
        ValueError: the set is unknown here, incomplete, disagrees with itself, or holds more
            unreadable files than allowed.
    """
    data = config.data
    check_choice("data.name", data.name, tuple(readers))
    read, reported_name = readers[data.name]
    reported = read(data, reported_name)
    if config.evaluate.images is not None:
        reported = select_listed(reported, Path(os.path.expanduser(config.evaluate.images)))
    _inspect(reported, data)
    if not training:
        return Splits(reported)
    train, held_out = read(data, "train"), None
    if list(train.class_names) != list(reported.class_names):
        raise ValueError(f"{reported.root}: train and {reported.split} have different classes")
    doubts = describe_shared_images(train, reported)
    if data.holdout:
        kept, held = split_holdout(train.labels, data.holdout)
        train, held_out = train.subset(kept), train.subset(held)
        _inspect(held_out, data)
    _inspect(train, data)
    return Splits(reported, train, held_out, doubts)


def _inspect(split: Split, data: DataSettings) -> None:
    if isinstance(split, ImageFiles) and len(split) <= INSPECTED_UP_FRONT:
        BadImages(data.skip_bad_images, split.root).add(find_bad_images(split))


# Parts of a set ------------------------------------------------------------------------------------


def split_holdout(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept for training and indices held out, the same `fraction` of every class.

    The choice is the same for every seed, so that networks and seeds are chosen on the same
    images. At least one image of each class is held out and one kept.

    Raises:
        ValueError: a class has a single image.
    """
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(f"data.holdout={fraction}: class {label} has one image, none to spare")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(np.random.default_rng([365, int(label)]).permutation(members)[:count])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def select_listed(dataset: Split, path: Path) -> Split:
    """Keep the images listed in the file at `path`: ids, file names or stems, one a line.

    Raises:
        ValueError: a line names no image of the set, more than one, or the same as another line.
    """
    require(path, f"evaluate.images={path}")
    wanted = [line.strip() for line in read_lines(path) if not line.startswith("#")]
    index: dict[str, set[int]] = {}
    for position, image_id in enumerate(dataset.ids):
        file_name = image_id.rsplit("/", 1)[-1]
        for key in {image_id, file_name, file_name.rsplit(".", 1)[0]}:
            index.setdefault(normal(key), set()).add(position)
    found = [
        index.get(normal(name)) or index.get(normal(name.replace("\\", "/"))) for name in wanted
    ]
    unknown = [name for name, places in zip(wanted, found, strict=True) if not places]
    if unknown or not wanted:
        what = some(unknown) if unknown else "nothing"
        raise ValueError(f"{path}: lists {what}, not an image of {dataset.name} {dataset.split}")
    ambiguous = [name for name, places in zip(wanted, found, strict=True) if len(places or ()) > 1]
    if ambiguous:
        raise ValueError(
            f"{path}: {some(ambiguous)} is the name of several images; give its folder"
        )
    chosen = np.array([min(places or ()) for places in found])
    if len(np.unique(chosen)) != len(chosen):
        raise ValueError(f"{path}: lists an image twice; every image counts once")
    return dataset.subset(np.sort(chosen))


# Are they fit for it? ------------------------------------------------------------------------------


def find_bad_images(dataset: ImageFiles) -> list[str]:
    """Ids of images that are missing, damaged or none.

    Every file of a small set is decoded. Of others, head and tail are looked at, and decoded are
    those without an end marker near their end; so damage in the middle of one may stay unseen.
    """
    paths = [dataset.folder / image_id for image_id in dataset.ids]
    small = sum(size_of(path) for path in paths) <= DECODED_UP_FRONT
    with ThreadPoolExecutor(2) as threads:  # each may hold an image of PIL's limit
        good = list(threads.map(_is_readable if small else _is_whole, paths))
    return [image_id for image_id, is_good in zip(dataset.ids, good, strict=True) if not is_good]


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except (OSError, ValueError):
        return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
        if marker is not None:
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - 4096))
                if marker in file.read():
                    return True
    except Exception:  # every decoder of PIL has errors of its own
        return False
    return _is_readable(path)


def describe_shared_images(train: Split, reported: Split, thorough: bool = False) -> list[str]:
    """A line on the reported images that are trained on, as far as it is cheap to know; or none.

    Sets in memory are compared by their pixels, small ones on disk by their files' content, large
    ones by their files' paths, and where `thorough` by their content too.
    """
    if isinstance(train, ImageArray) and isinstance(reported, ImageArray):
        how, trained = "content", set(_pixel_hashes(train))
        pairs = zip(reported.ids, _pixel_hashes(reported), strict=True)
        shared = [image_id for image_id, pixels in pairs if pixels in trained]
    elif isinstance(train, ImageFiles) and isinstance(reported, ImageFiles):
        files = (reported.folder, reported.ids)
        how, shared = find_shared_files([(train.folder, train.ids)], files, thorough)
    else:
        return []
    of = f"{reported.split} images of {reported.name}"
    return describe_shared(shared, how, len(reported), of)


def _pixel_hashes(dataset: ImageArray) -> list[bytes]:
    rows = dataset.images.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def check_batches(config: ClassificationConfig, train: Split, processes: int) -> int:
    """Whether the batch can be shared out; returns the optimiser steps of an epoch.

    Raises:
        ValueError: the batch does not divide among processes and parts, is larger than the set,
            or leaves parts that cannot be mixed.
    """
    settings = config.train
    parts = processes * settings.accumulate
    if settings.batch_size % parts:
        lower = max(parts, settings.batch_size // parts * parts)
        raise ValueError(
            f"train.batch_size={settings.batch_size} does not divide among {processes} processes "
            f"x {settings.accumulate} parts (train.accumulate); {lower} would"
        )
    if settings.batch_size > len(train):
        raise ValueError(
            f"train.batch_size={settings.batch_size} is more than the {len(train)} training "
            "images; lower it"
        )
    mixes = config.augment.mixup or config.augment.cutmix
    if mixes and settings.batch_size // parts % 2:
        raise ValueError(
            f"augment.mixup and cutmix pair images, but {settings.batch_size} images in {parts} "
            "parts leave odd ones; choose train.batch_size a multiple of "
            f"{2 * parts}"
        )
    if isinstance(train, ImageFiles) and config.augment.size == 0:
        raise ValueError("augment.size=0: files of many sizes need one size, e.g. augment.size=224")
    return len(train) // settings.batch_size
