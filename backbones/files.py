"""Files of a run: their names, written whole, hashed, logged to, and locked to one process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

SETTINGS = "settings.yaml"  # the resolved experiment, written first
CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"
LOG = "log.txt"
WEIGHTS = "weights.safetensors"  # the network that is evaluated
SAMPLES = "samples.parquet"  # one row per image
DETECTIONS = "detections.json"  # COCO's results format
PACKED_DETECTIONS = "detections.parquet"  # the same as columns, in a bundle
RECORD = "record.json"  # written last
PLAN = "cells.json"  # of a study: its cells, in the folder above those of its entries
SYNTHETIC = "SYNTHETIC"  # marks a folder of synthetic data, and says how they were made
LOCK = ".lock"
HEARTBEAT = "heartbeat.json"  # while a run lives: how far it is
PLAN_LOCK = "plan.json"  # of a study: what was planned, fixed before it ran; beside `PLAN`
MEMORY = "memory.json"  # of a run that did not fit: how it was made to

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")  # PIL's names
DECODED_UP_FRONT = 2**28  # bytes: every image of a set up to this size is decoded by its check

_PARTIAL = ".partial"


def write_whole(path: str | Path, content: str | bytes | Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all, with the mode that the umask gives.

    Args:
        path: its folder must exist.
        content: text (written as UTF-8), bytes, or a function that writes the path it is given,
            a temporary name in the same folder.

    Raises:
        OSError: the disk is full or not writable; what stood at `path` is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        if callable(content):
            partial.touch()  # else some writers make a file that only its owner can read
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cut_curve(path: str | Path, step: int) -> None:
    """Drop the points of a curve that lie after the step that training goes on from."""
    path, kept = Path(path), []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                is_kept = json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # a kill may have cut the last line
            if is_kept:
                kept.append(line + "\n")
    write_whole(path, "".join(kept))


def remove_partial_files(directory: str | Path) -> None:
    """Delete what writers that were killed left behind. Call it with the directory locked."""
    for path in Path(directory).glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def is_partial(name: str) -> bool:
    """Whether a file's name is one that `write_whole` gives while it writes."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def sha256(path: str | Path, size: int | None = None) -> str:
    """The SHA-256 of a file, or of its first `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    left = sys.maxsize if size is None else size
    with open(path, "rb") as file:
        while chunk := file.read(min(left, 1 << 20)):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it cannot be looked at."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def sha256_of_list(names: Sequence[str], labels: Any) -> str:
    """The SHA-256 of image names (N,) and their labels, a NumPy array (N,), in order."""
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def log_to(path: str | Path, loggers: Iterable[str]) -> Iterator[None]:
    """Append what the loggers of some packages say, from INFO on, to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


@contextmanager
def lock_directory(
    directory: str | Path, *, reenter: bool = False, wait: float = 0.0
) -> Iterator[None]:
    """Keep other processes out of an existing directory for the length of a `with` block.

    The lock is the operating system's and ends with the process, however it ends: a lock file that
    was left behind locks nothing. Workers forked inside the block do not hold it.

    Args:
        reenter: a lock that this process holds already is enough.
        wait: seconds to wait for another process to give the lock up.

    Raises:
        ValueError: another process, which is named, holds the lock, or this process does already.
    """
    path = Path(directory) / LOCK
    key = (os.getpid(), str(path.resolve()))  # a forked process holds nothing
    if key in _held and reenter:
        yield
        return
    if key in _held:
        raise ValueError(f"{directory} is already in use by this process")
    with _open_locked(path, time.monotonic() + wait) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            path.unlink(missing_ok=True)


def _open_locked(path: Path, until: float) -> TextIO:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - its lock ends when it is closed
        try:
            # Record locks belong to the process; flock's would be shared with forked workers.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            if time.monotonic() < until:
                time.sleep(0.5)
                continue
            raise ValueError(
                f"{path.parent} is in use by {holder}; "
                "wait for it, stop it, or choose another --output"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its last holder deleted it meanwhile: what was locked is no file any more


_held: set[tuple[int, str]] = set()  # record locks do not exclude a second lock in the same process
