"""Evaluation crops kept on disk: decoded by the first pass, read as they are by all later ones.

A file holds the crops of one set by one protocol: a check of each image, then the pixels. Its name
is a hash of all that decides them, so other pixels have another name, and a file is never mended or
extended, only built, read and removed. Several processes may build one and read it together.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classification import corruptions, images, transforms
from classification.config import EvaluateSettings
from classification.datasets import Batch, ImageArray, ImageFiles
from classification.folders import some
from classification.protocols import Protocol

logger = logging.getLogger(__name__)

SMALL = 1000  # images: evaluate.cache=auto keeps no smaller set, it is read in a moment
_ABANDONED = 3600  # seconds since a file under construction was last written to
_PAGE = 4096  # bytes: pixels begin at a multiple of it
_PACKAGES = ("numpy", "pillow", "simplejpeg", "torch", "torchvision")
_PACKAGES_OF_CORRUPTIONS = ("opencv-python", "scikit-image", "scipy")


class CropCache:
    """The crops of one set by one protocol, in a file at `path` or still to be put there.

    All files of its folder together take `limit` bytes or less.
    """

    def __init__(
        self,
        path: Path,
        dataset: ImageFiles,
        protocol: Protocol,
        interpolation: str,
        limit: float,
    ) -> None:
        self.path, self._dataset, self._protocol = path, dataset, protocol
        self._interpolation, self._limit = interpolation, limit
        side = protocol.crop
        assert side is not None, "crops of many sizes are not kept"
        self._shape = (protocol.views, side, side, 3)
        self._used = int(np.prod(self._shape))  # bytes of an image
        self._stride = -(-self._used // 64) * 64
        self._head = -(-8 * len(dataset) // _PAGE) * _PAGE
        self.bytes = self._head + len(dataset) * self._stride
        self._partial = path.with_suffix(".partial")
        self._file: int | None = None  # being written

    # Reading -------------------------------------------------------------------------------------

    def open(self) -> bool:
        """Whether the file is there and whole. A file of the wrong size is removed."""
        try:
            self._kept = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed after the pass
        except OSError:
            return False
        if os.fstat(self._kept.fileno()).st_size != self.bytes:
            self._remove_damaged()
            return False
        with suppress(OSError):
            os.utime(self.path)  # what was used last is evicted last
        self._checks = np.fromfile(self._kept, np.uint64, len(self._dataset))
        return True

    def read(self, start: int, stop: int) -> Tensor | None:
        """Crops of the images from `start` to `stop`, uint8 (N, V, 3, H, W).

        Returns None where they are damaged; the file is then removed.
        """
        self._kept.seek(self._head + start * self._stride)
        rows = np.fromfile(self._kept, np.uint8, (stop - start) * self._stride)
        rows = rows.reshape(-1, self._stride)
        if not np.array_equal(_checks(rows), self._checks[start:stop]):
            self._remove_damaged()
            return None
        if stop == len(self._dataset):
            self._kept.close()
        crops = torch.from_numpy(rows[:, : self._used]).view(stop - start, *self._shape)
        return crops.movedim(-1, -3)

    def _remove_damaged(self) -> None:
        self._kept.close()
        logger.warning("%s is damaged: removed, and built anew by the next whole pass", self.path)
        self.path.unlink(missing_ok=True)

    # Building ------------------------------------------------------------------------------------

    def keep(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; on their way their crops are kept, where there is room for them.

        A set with unreadable images is not kept.
        """
        self._start()
        try:
            for batch in batches:
                if self._file is not None and batch.bad:
                    self._abandon(f"{some(batch.bad)} cannot be read")
                elif self._file is not None:
                    self._write(self._file, batch.indices, batch.images)
                yield batch
        finally:
            if self._file is not None:
                self._finish(self._file)

    def _start(self) -> None:
        """Begin the shared partial file, or join in, unless it would exceed the limit or the disk."""
        folder, limit = self.path.parent, self._limit
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(folder).free
            if self.bytes > min(limit, free / 2) and not self._partial.exists():
                logger.info(
                    "evaluation crops are not kept: they take %.3g GB, evaluate.cache_gigabytes "
                    "is %.3g and %s has %.3g GB left",
                    *(self.bytes / 1e9, limit / 1e9, folder, free / 1e9),
                )
                return
            evict(folder, limit - self.bytes, keep=self._partial)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o600)
            os.truncate(self._file, self.bytes)
        except OSError as error:
            self._abandon(str(error))
            return
        logger.info("keeping evaluation crops in %s (%.3g GB)", self.path, self.bytes / 1e9)

    def _write(self, file: int, indices: Tensor, crops: Tensor) -> None:
        """Put the crops of some images, uint8 (N, V, 3, H, W), in their places."""
        rows = np.zeros((len(indices), self._stride), np.uint8)
        rows[:, : self._used] = crops.movedim(-3, -1).flatten(1).numpy()
        try:
            for index, row, check in zip(indices.tolist(), rows, _checks(rows), strict=True):
                os.pwrite(file, row.data, self._head + index * self._stride)
                os.pwrite(file, check.tobytes(), 8 * index)  # after its image: it says "is here"
        except OSError as error:  # the disk is full
            self._abandon(str(error))

    def _finish(self, file: int) -> None:
        """Give the file its name if every image is in it, from this process or others."""
        checks = np.frombuffer(os.pread(file, 8 * len(self._dataset), 0), np.uint64)
        os.close(file)
        self._file = None
        if not checks.all():
            return  # another process has the rest
        if _key(self._dataset, self._protocol, self._interpolation) != self.path.stem:
            self._abandon("images were changed while they were read")
            return
        with suppress(FileNotFoundError):  # another process was as quick
            self._partial.replace(self.path)

    def _abandon(self, reason: str) -> None:
        logger.info("evaluation crops are not kept: %s", reason)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


def _checks(rows: np.ndarray) -> np.ndarray:
    """Checksum of each row, never 0, which means "not written yet": a sum of its 64-bit words."""
    sums = rows.view(np.uint64).sum(axis=1, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    sums[sums == 0] = 1
    return sums


def choose_cache(
    settings: EvaluateSettings,
    dataset: ImageArray | ImageFiles,
    protocol: Protocol,
    interpolation: str,
) -> CropCache | None:
    """The cache that `settings` ask for; None for none, or where it would not pay."""
    if settings.cache == "none" or not isinstance(dataset, ImageFiles) or protocol.crop is None:
        return None
    if settings.cache == "auto":
        if len(dataset) < SMALL:
            return None
        home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        if home.startswith("~"):
            return None  # nobody's home
        folder = Path(home, "sebench", "crops")
    else:
        folder = Path(os.path.expanduser(settings.cache))
    try:
        key = _key(dataset, protocol, interpolation)
    except OSError:
        return None  # a file is missing: reading it says so
    path = folder / f"{key}.crops"
    return CropCache(path, dataset, protocol, interpolation, 1e9 * settings.cache_gigabytes)


def evict(folder: Path, limit: float, keep: Path) -> None:
    """Remove what was used longest ago until the files in `folder` take `limit` bytes or less."""
    files = []
    for path in (*folder.glob("*.crops"), *folder.glob("*.partial")):
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, path in files if path != keep)
    for used, size, path in sorted(files):
        under_construction = path.suffix == ".partial" and time.time() - used < _ABANDONED
        if total <= limit or path == keep or under_construction:
            continue
        path.unlink(missing_ok=True)
        total -= size


def _key(dataset: ImageFiles, protocol: Protocol, interpolation: str) -> str:
    """A hash of what decides the pixels: protocol, our code, libraries, and the files.

    Files are known by size and by the times of their last change of content and of status, which
    no program can set back.
    """
    folder = str(dataset.folder.resolve())
    described = {
        "protocol": asdict(protocol),
        "interpolation": interpolation,
        "software": _software(),
        "folder": folder,
    }
    digest = hashlib.sha256(json.dumps(described).encode())
    for image_id in dataset.ids:
        status = os.stat(f"{folder}/{image_id}")
        known = (image_id, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(known).encode())
    return digest.hexdigest()


def _software() -> list[str | None]:
    code = [Path(str(module.__file__)).read_bytes() for module in (images, transforms, corruptions)]
    return [
        *(hashlib.sha256(text).hexdigest() for text in code),
        *(_version(name) for name in (*_PACKAGES, *_PACKAGES_OF_CORRUPTIONS)),
        torch.backends.cpu.get_cpu_capability(),
    ]


@functools.cache
def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None
