"""Runs in one file, `study.zip`, that anyone may have made.

    bundle.json                  what is in it, with sizes and hashes (`Manifest`)
    report.json                  the report of its runs
    runs/cells.json, plan.json   the cells of a study, and its plan where that was fixed
    runs/NAME.cost.json          costs of networks measured side by side
    runs/NAME/record.json        and the files that the record names (detections as columns), and
                                 settings.yaml
    annotations/SHA256/FILE      COCO files that detections are scored against

An archive is written whole, and the same runs give the same bytes. It is read as a stranger's:
sizes are bounded before anything is unpacked, a name leads nowhere else, and nothing is run.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import printable
from tools.experiments.measured import SUFFIX, Measured, load_measured
from tools.experiments.plan import describe_missing
from tools.experiments.record import Record, find_files, load_records
from tools.experiments.typed_json import read_typed

MANIFEST, REPORT, RUNS, ANNOTATIONS = "bundle.json", "report.json", "runs", "annotations"
FORMAT = 1
# Bytes that a member may have, by the name of its file; further ones are refused.
LARGEST = {
    MANIFEST: 64 << 20, REPORT: 128 << 20, files.RECORD: 64 << 20, files.SETTINGS: 4 << 20,
    files.PLAN: 64 << 20, files.PLAN_LOCK: 64 << 20, files.CURVE: 256 << 20, files.SAMPLES: 1 << 30, files.PACKED_DETECTIONS: 1 << 30,
}  # fmt: skip
_LARGEST_COSTS = 1 << 20
_LARGEST_ANNOTATIONS = 512 << 20  # train2017 has 448 MB
_LARGEST_IN_ALL, _LARGEST_ZIP, _MOST_FILES = 4 << 30, 1 << 30, 60_000
_LARGEST_RATIO = 200  # of unpacked to packed; JSON and rows of real results have under 50
_HASH = re.compile("[0-9a-f]{64}")
_END = struct.Struct("<4s4H2LH")  # the last 22 bytes of a zip without a comment


@dataclass(frozen=True)
class Entry:
    """A file of the archive."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`."""

    format: int
    sebench: str  # version that made it
    files: dict[str, Entry]  # all others, by their names in the archive
    report: dict[str, Any]  # options of the report in it
    skipped: list[str] = field(default_factory=list)  # records that could not be read, and why
    unfinished: list[str] = field(default_factory=list)  # runs that were begun and not recorded


Member = bytes | Path | Callable[[], bytes]  # the content of a file, or where it comes from


def is_archive(path: str | Path) -> bool:
    """Whether a path is read as a bundle."""
    return Path(path).suffix == ".zip" and Path(path).is_file()


def write_archive(
    path: Path,
    members: Mapping[str, Member],
    describe: Callable[[dict[str, Entry]], bytes] | None = None,
) -> None:
    """Write a zip whole, the same for the same members: in order of names, without times.

    Args:
        members: by their names.
        describe: makes `bundle.json`, which then comes last, from what was written.

    Raises:
        ValueError: a name is none that a bundle may have, or a file or their number is too large.
    """
    if len(members) >= _MOST_FILES:
        raise ValueError(f"{len(members)} files: a bundle holds {_MOST_FILES}; make several")

    def write(partial: Path) -> None:
        entries: dict[str, Entry] = {}
        with zipfile.ZipFile(partial, "w") as archive:
            for name, member in sorted(members.items()):
                content = member.read_bytes() if isinstance(member, Path) else member
                content = content() if callable(content) else content
                _write_member(archive, name, content)
                entries[name] = Entry(hashlib.sha256(content).hexdigest(), len(content))
            if describe is not None:
                _write_member(archive, MANIFEST, describe(entries))

    files.write_whole(path, write)


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    largest = _largest(name)
    if largest is None:
        raise ValueError(f"{name!r} cannot stand in a bundle: give the run an ordinary name")
    if len(content) > largest:
        raise ValueError(
            f"{name}: {len(content)} bytes, more than the {largest} of a bundle's file"
        )
    info = zipfile.ZipInfo(name)  # of 1980
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    archive.writestr(info, content, zipfile.ZIP_DEFLATED, compresslevel=9)


@contextmanager
def unpacked(path: str | Path) -> Iterator[Path]:
    """The files of an archive in a temporary folder, for the length of a `with` block.

    Raises:
        ValueError: it is damaged, or holds what no bundle holds: other names, more or larger files.
    """
    with tempfile.TemporaryDirectory(prefix="sebench-") as name:
        folder = Path(name)
        (folder / RUNS).mkdir()
        try:
            _check_end(Path(path))
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                _check_members(members)
                for member in members:
                    _unpack(archive, member, folder)
        except (
            *(zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error),
            *(OSError, UnicodeError, ValueError),
        ) as error:
            raise ValueError(f"{path}: not a sound bundle: {printable(str(error))}") from None
        yield folder


def read_manifest(folder: Path, where: str = "") -> Manifest:
    """Read `bundle.json` of an unpacked archive, which messages name after ``where``.

    Raises:
        ValueError: it is missing, or of another form.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{where}no {MANIFEST}: sebench bundle makes it")
    try:
        manifest: Manifest = read_typed(folder / MANIFEST, Manifest, LARGEST[MANIFEST])
    except ValueError as error:
        raise ValueError(f"{where}{MANIFEST}: {error}") from None
    if manifest.format != FORMAT:
        raise ValueError(
            f"{where}{MANIFEST}: format {manifest.format}; this version reads {FORMAT}"
        )
    return manifest


@dataclass(frozen=True)
class Collected:
    """What lay in or under some paths."""

    records: list[Record]  # oldest first
    warnings: list[str]  # what was skipped, and what is missing
    plans: dict[Path, str]  # of studies, with the names of their folders
    measured: list[Measured]  # costs of networks side by side, oldest first
    costs: dict[Path, str]  # their files, with the names of their folders


@contextmanager
def open_runs(paths: Iterable[str | Path]) -> Iterator[Collected]:
    """What lies in or under folders, record files and bundles, for the length of a `with` block.

    Raises:
        ValueError: a path does not exist, or a bundle is not sound.
    """
    paths = list(map(Path, paths))
    with ExitStack() as stack:
        bundles = {path: stack.enter_context(unpacked(path)) for path in paths if is_archive(path)}
        places = [bundles[path] / RUNS if path in bundles else path for path in paths]
        records, warnings = load_records(places, paths)
        for path, folder in bundles.items():
            warnings = [text.replace(f"{folder}/", f"{path}: ") for text in warnings]
            warnings += read_manifest(folder, f"{path}: ").skipped
            records = [with_annotations(record, folder) for record in records]
        folders = [path for path in paths if path not in bundles]
        warnings = [*describe_missing(folders), *warnings]
        found = find_files(places, files.PLAN, paths).items()
        plans = {file: name for file, name in found if file.name == files.PLAN}
        measured, skipped = load_measured(places)
        found = find_files(places, f"*{SUFFIX}", paths).items()
        costs = {file: name for file, name in found if file.name.endswith(SUFFIX)}
        yield Collected(records, [*warnings, *skipped], plans, measured, costs)


def with_annotations(record: Record, folder: Path) -> Record:
    """A record of an unpacked archive with the annotation file there; none elsewhere is read."""
    if not record.dataset.annotations or folder not in (record.directory or folder).parents:
        return record
    return replace(record, annotations=folder / annotations_name(record))


def annotations_name(record: Record) -> str:
    """The name in an archive of the annotation file that a record's detections are scored against."""
    data = record.dataset
    digest = data.reported_sha256 or data.sha256 or ""
    if not _HASH.fullmatch(digest):  # a stranger's record may hold any text
        digest = "0" * 64
    return f"{ANNOTATIONS}/{digest}/{Path(data.annotations or '').name}"


# A stranger's zip ---------------------------------------------------------------------------------


def _check_end(path: Path) -> None:
    """Bound the list of members, which `zipfile` reads whole, by what the last bytes say of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - 20))
        tail = file.read()
    if size > _LARGEST_ZIP:
        raise ValueError(f"larger than {_LARGEST_ZIP >> 20} MB")
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise ValueError("no zip, or one that sebench bundle did not make")
    *_, count, length, _, _ = _END.unpack(tail[-_END.size :])
    if count > _MOST_FILES or length > _MOST_FILES * 1000 or tail.startswith(b"PK\6\7"):
        raise ValueError(f"more than {_MOST_FILES} files")


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MOST_FILES:
        raise ValueError(f"more than {_MOST_FILES} files")
    names: set[str] = set()
    for member in members:
        if member.filename in names:
            raise ValueError(f"{printable(member.filename)} is in the bundle twice")
        names.add(member.filename)
        if fault := _fault(member):
            raise ValueError(f"{printable(member.filename)[:200]}: {fault}")
    total = sum(member.file_size for member in members)
    if total > _LARGEST_IN_ALL:
        raise ValueError(f"unpacks to {total} bytes, more than {_LARGEST_IN_ALL}")


def _fault(member: zipfile.ZipInfo) -> str | None:
    """What keeps a member from being unpacked."""
    largest, size = _largest(member.filename), member.file_size
    if largest is None or member.orig_filename != member.filename:
        return "is no file of a bundle"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "not a plain file"
    if member.flag_bits & 1:
        return "encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packed in a way that bundles are not"
    if size > largest:
        return f"unpacks to {size} bytes, more than {largest}"
    if size > _LARGEST_RATIO * member.compress_size + (1 << 20):
        return f"unpacks to {size} bytes, far more than it has"
    return None


def _largest(name: str) -> int | None:
    """Bytes that a member of this name may have; None: no bundle has one."""
    first, *inside = name.split("/")
    if len(name) > 2000 or any(
        part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in inside
    ):
        return None
    if printable(name) != name or "\\" in name:
        return None
    if not inside:
        return LARGEST[name] if name in (MANIFEST, REPORT) else None
    if first == ANNOTATIONS and len(inside) == 2 and _HASH.fullmatch(inside[0]):
        return _LARGEST_ANNOTATIONS
    if first == RUNS and inside[-1].endswith(SUFFIX):
        return _LARGEST_COSTS
    if len(inside) == 1 and inside[0] in (files.PLAN, files.PLAN_LOCK):
        return LARGEST[inside[0]] if first == RUNS else None
    if first == RUNS and len(inside) > 1 and inside[-1] not in (MANIFEST, REPORT):
        return LARGEST.get(inside[-1])
    return None


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    path = folder / member.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as packed, path.open("xb") as file:
        while chunk := packed.read(min(1 << 20, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise ValueError(f"{member.filename}: larger than the bundle says")
            file.write(chunk)
    if left:
        raise ValueError(f"{member.filename}: shorter than the bundle says")
