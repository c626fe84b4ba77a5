"""Images that are both trained on and reported, found by their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from backbones.files import sha256, size_of

COMPARED_UP_FRONT = 20_000  # files of a set: more are compared by their paths alone


Files = tuple[Path, Sequence[str]]  # a folder, and names in it


def find_shared_files(
    train: Sequence[Files], reported: Files, thorough: bool = False
) -> tuple[str, list[str]]:
    """Names of reported files that are trained on, and how that is known: by "path" or "content".

    Args:
        thorough: compare what large sets hold too, which reads the files of equal sizes.
    """
    shared = _same_paths(train, reported)
    largest = max(len(reported[1]), sum(len(names) for _, names in train))
    if not shared and (thorough or largest <= COMPARED_UP_FRONT):
        return "content", _equal_files(train, reported)
    return "path", shared


def describe_shared(shared: Sequence[str], how: str, images: int, of: str) -> list[str]:
    """A line on shared images, if there are any; ``of`` names the set."""
    if not shared:
        return []
    named = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    return [
        f"{len(shared)} of the {images} {of} are among those trained on, by their {how} ({named}): "
        "their numbers measure memory"
    ]


def _same_paths(train: Sequence[Files], reported: Files) -> list[str]:
    """Reported files which, links to folders resolved, are some of train's."""
    trained = {path for part in train for path in _real_paths(*part)}
    pairs = zip(reported[1], _real_paths(*reported), strict=True)
    return [name for name, path in pairs if path in trained]


def _real_paths(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Directory and name of each file; one look at the disk a directory."""
    real: dict[str, str] = {}
    paths = []
    for each in names:
        directory, _, name = each.rpartition("/")
        if directory not in real:
            real[directory] = os.path.realpath(folder / directory)
        paths.append((real[directory], name))
    return paths


def _equal_files(train: Sequence[Files], reported: Files) -> list[str]:
    """Reported files which have the bytes of one of train's."""
    by_size: dict[int, list[Path]] = {}
    for folder, names in train:
        for name in names:
            by_size.setdefault(size_of(folder / name), []).append(folder / name)
    hashes: dict[int, set[str]] = {}
    shared = []
    folder, names = reported
    for name in names:
        path = folder / name
        size = size_of(path)
        if not size or size not in by_size:
            continue
        if size not in hashes:
            hashes[size] = {sha256(other) for other in by_size[size] if other.is_file()}
        if path.is_file() and sha256(path) in hashes[size]:
            shared.append(name)
    return shared
