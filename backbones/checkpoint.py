"""Checkpoints, written whole with their SHA-256 and read without running anything, and what asks for one."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from zipfile import BadZipFile

import torch

from backbones.config import first_line
from backbones.files import sha256, write_whole

# torch.save writes a zip archive, and an archive may end with a comment: there stands the SHA-256 of
# all that comes before it. The two bytes before the comment are its length.
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write tensors and plain values with a checksum, whole, or leave what was there.

    `torch.load(path, weights_only=True)` reads the file too.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_whole(path, lambda partial: _save(dict(state), partial))


def load_checkpoint(path: str | Path, task: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU, without executing anything in the file.

    Args:
        task: whose checkpoint it must be, for messages.
        kinds: the keys it must have, and the types of their values.

    Raises:
        ValueError: the file is not what was written: a single changed bit is found. Or it is no
            checkpoint of `task`.
    """
    try:
        _verify(Path(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        BadZipFile,
    ) as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({first_line(error)}); remove it to train from the "
            "start"
        ) from None
    if not isinstance(state, dict) or not kinds.keys() <= state.keys():
        raise ValueError(
            f"{path} is no checkpoint of {task}, or one of another version; remove it to train from "
            "the start"
        )
    for key, kind in kinds.items():
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise ValueError(
                f"{path} is no checkpoint of this suite: its {key} is a "
                f"{type(state[key]).__name__}; remove it to train from the start"
            )
    return state


@contextmanager
def taking_over(path: str | Path, what: str) -> Iterator[None]:
    """Say of whatever does not fit inside the `with` block that it is of another `what`.

    Raises:
        ValueError: naming the checkpoint at `path`.
    """
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is of another {what}, or damaged: {first_line(error)}") from None


def _save(state: dict[str, Any], path: Path) -> None:
    with open(path, "w+b") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch words a full disk
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little"))
    digest = sha256(path)
    with open(path, "ab") as file:
        file.write(_MARK + digest.encode())


def _verify(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell() - _COMMENT
        if size < 0:
            raise ValueError("it is too short")
        file.seek(size)
        comment = file.read()
    if not comment.startswith(_MARK):
        raise ValueError("it lacks its checksum")
    if comment != _MARK + sha256(path, size).encode():
        raise ValueError("its checksum is wrong")


class StopRequest:
    """While entered, SIGTERM, SIGHUP and Ctrl-C are noted in `asked` instead of ending the process."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread may set handlers; elsewhere none is needed
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
