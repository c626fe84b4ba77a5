"""Folders of runs kept under a URL, for nodes that share no file system: s3://, gs://, file:// ..."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import files

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between looks at what has changed
# What is put first is never behind what follows: a checkpoint finds all points of its curve.
_LAST = (files.CHECKPOINT, files.WEIGHTS, files.RECORD)


@dataclass(frozen=True)
class Store:
    """A place for the folders of a study's runs; it can be pickled.

    Attributes:
        url: of any file system that fsspec knows.
    """

    url: str

    def __post_init__(self) -> None:
        self._open()

    def _open(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"store={self.url}: {error}") from None

    def fetch(self, directory: Path, output: Path) -> None:
        """Bring the files kept of a run's folder, or of the study's own, here; each file whole."""
        system, root = self._open()
        place = _place(root, directory, output)
        system.invalidate_cache()
        if not system.exists(place):
            return
        directory.mkdir(parents=True, exist_ok=True)
        for name in sorted(system.ls(place, detail=False), key=_order):
            target = directory / Path(name).name
            if target.name[0] != "." and target.name != files.HEARTBEAT and system.isfile(name):
                _get(system, name, target)

    def fetch_heartbeat(self, directory: Path, output: Path) -> None:
        """Bring what a run that goes on elsewhere tells of itself, if it does."""
        system, root = self._open()
        name = f"{_place(root, directory, output)}/{files.HEARTBEAT}"
        with suppress(FileNotFoundError):
            directory.mkdir(parents=True, exist_ok=True)
            _get(system, name, directory / files.HEARTBEAT)

    @contextmanager
    def kept(self, directory: Path, output: Path) -> Iterator[None]:
        """Fetch a run's folder, and put back what changes in it, also at the end of the block."""
        self.fetch(directory, output)
        done = threading.Event()
        seen: dict[str, tuple[int, int]] = {}
        put = threading.Thread(target=self._put_while, args=(directory, output, done, seen))
        put.start()
        try:
            yield
        finally:
            done.set()
            put.join()
            self.put(directory, output, seen)

    def _put_while(self, directory: Path, output: Path, done: threading.Event, seen: dict) -> None:
        while not done.wait(EVERY):
            try:
                self.put(directory, output, seen)
            except OSError as error:  # the next look tries again, and the last one must succeed
                logger.warning("store=%s: %s", self.url, error)

    def put(self, directory: Path, output: Path, seen: dict[str, tuple[int, int]]) -> None:
        """Put the files of a folder, without those below it, that have changed since they were seen."""
        if not directory.is_dir():
            return
        system, root = self._open()
        place = _place(root, directory, output)
        system.makedirs(place, exist_ok=True)
        held: list[tuple[str, Path]] = []
        try:
            # Links hold the files as they are now: each is replaced as a whole while it is copied.
            for name in sorted((p.name for p in directory.iterdir()), key=_order, reverse=True):
                path = directory / name
                state = _state(path)
                if name.startswith(".") or state is None or seen.get(name) == state:
                    continue
                link = directory / f".{name}.{os.getpid()}.put.partial"
                with suppress(FileNotFoundError):
                    os.link(path, link)
                    held.append((name, link))
                    seen[name] = state
            for name, link in reversed(held):
                partial = f"{place}/.{name}.partial"
                system.put_file(str(link), partial)
                system.mv(partial, f"{place}/{name}")
            checkpoint = f"{place}/{files.CHECKPOINT}"
            is_over = (directory / files.RECORD).is_file()
            if (
                is_over
                and not (directory / files.CHECKPOINT).exists()
                and system.exists(checkpoint)
            ):
                system.rm(checkpoint)
        except BaseException:
            for name, _ in held:
                seen.pop(name, None)
            raise
        finally:
            for _, link in held:
                link.unlink(missing_ok=True)


def _place(root: str, directory: Path, output: Path) -> str:
    return "/".join((root, *directory.relative_to(output).parts))


def _get(system: Any, name: str, target: Path) -> None:
    files.write_whole(target, lambda partial: system.get_file(name, str(partial)))


def _order(name: str) -> tuple[int, str]:
    name = name.rpartition("/")[2]
    return (_LAST.index(name) if name in _LAST else -1, name)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_mtime_ns, found.st_size) if path.is_file() else None
