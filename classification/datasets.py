"""Data sets as one of two things: arrays in memory, or a list of files with their labels."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from backbones.files import SYNTHETIC, sha256_of_list
from classification.images import read_image


class Names(Sequence[str]):
    """Many names in one block of memory.

    Millions of Python strings would be copied, a page at a time, into every reading process that
    looks at them. Names that are not UTF-8 keep their bytes, as `os.listdir` gives them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        text = b"".join(encode(name) + b"\0" for name in names)
        self._bytes = np.frombuffer(text, np.uint8)
        self._ends = np.flatnonzero(self._bytes == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        end = self._ends[index]
        start = self._ends[index - 1] + 1 if index % len(self) else 0
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogateescape")


def encode(name: str) -> bytes:
    """The bytes of a file's name, whatever they are."""
    return name.encode("utf-8", "surrogateescape")


@dataclass
class Batch:
    """Some images of a data set.

    Attributes:
        images: uint8 (N, 3, H, W), or (N, V, 3, H, W) with views.
        labels: int64 (N,).
        indices: places in the data set, int64 (N,).
        seeds: of each image's augmentation, int64 (N,).
        bad: ids of images that should be among them and could not be read.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    seeds: torch.Tensor
    bad: list[str] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """Called by DataLoader where the device is a GPU."""
        self.images = self.images.pin_memory()
        self.labels = self.labels.pin_memory()
        return self


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        name: of the data set, e.g. "imagenet".
        split: e.g. "val".
        ids: what each image is called in results, unique.
        labels: int64 array, an index into `class_names` for each image.
        class_names: in the order of the labels.
        root: where it was read from.
    """

    name: str
    split: str
    ids: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    root: Path

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def synthetic(self) -> bool:
        """Whether the folder says that its data are synthetic."""
        return (self.root / SYNTHETIC).is_file()

    def sha256(self) -> str:
        """Of the ids and labels, in order."""
        return sha256_of_list(self.ids, self.labels)


@dataclass(frozen=True)
class ImageArray(Dataset):
    """A small set held whole in memory: `images` is uint8 (N, 3, H, W), RGB."""

    images: torch.Tensor

    def image(self, index: int) -> torch.Tensor:
        """One image, uint8 (3, H, W)."""
        return self.images[index]

    def subset(self, indices: np.ndarray) -> "ImageArray":
        """The images at `indices`, int64, in their order."""
        return replace(
            self,
            ids=[self.ids[i] for i in indices],
            labels=self.labels[indices],
            images=self.images[torch.from_numpy(indices)],
        )

    def sha256(self) -> str:
        """Of the ids, labels and pixels, in order."""
        digest = hashlib.sha256(super().sha256().encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageFiles(Dataset):
    """A set of image files: `folder / id` is the path of an image."""

    folder: Path

    def image(self, index: int) -> torch.Tensor:
        """One image, uint8 (3, H, W). Raises what `read_image` does."""
        return read_image(f"{self.folder}/{self.ids[index]}")

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        """The images at `indices`, int64, in their order."""
        names = Names(self.ids[i] for i in indices.tolist())
        return replace(self, ids=names, labels=self.labels[indices])
