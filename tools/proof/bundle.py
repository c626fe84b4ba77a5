"""Runs into one file that carries what their numbers were made from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from backbones import files
from detection.annotations import Annotations, read_annotations, read_results
from tools.experiments.archive import (
    FORMAT,
    REPORT,
    RUNS,
    Entry,
    Manifest,
    Member,
    annotations_name,
    open_runs,
    write_archive,
)
from tools.experiments.record import Record, find_files
from tools.report import document
from tools.report.compared import file_of
from tools.report.planned import read_plans
from tools.report.table import build_table


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    path: Path
    sha256: str  # of the file: published, it makes every later change visible
    bytes: int
    runs: int
    notes: list[str]  # records that could not be read, and what is missing
    unfinished: list[str]  # runs that were begun and not recorded


def write_bundle(
    paths: Iterable[str | Path],
    output: str | Path,
    *,
    allow_unequal: bool = False,
    margin: float | None = None,
) -> Bundle:
    """Write the runs in or under ``paths`` into one zip, with the report of them.

    Args:
        paths: folders of runs, records, or other bundles.
        output: the file to write, whole or not at all; it ends in ``.zip``.
        allow_unequal, margin: of the report.

    Raises:
        ValueError: there is no run, or a file that a record names is gone or has changed.
    """
    sources, output = list(map(Path, paths)), Path(output)
    if output.suffix != ".zip":
        raise ValueError(f"{output}: a bundle's name ends in .zip")
    options: dict[str, Any] = {"allow_unequal": allow_unequal, "margin": margin}
    with open_runs(sources) as found:
        records, warnings = found.records, found.warnings
        if not records:
            raise ValueError(f"no record.json in or under {', '.join(map(str, sources))}")
        members = _members(records)
        locks = {plan.with_name(files.PLAN_LOCK): name for plan, name in found.plans.items()}
        unread = {file for file in found.costs if any(str(file) in text for text in warnings)}
        for file, folder in {**found.plans, **locks, **found.costs}.items():
            if file.is_file() and file not in unread:
                members["/".join(filter(None, [RUNS, folder, file.name]))] = file
        plans = read_plans(found.plans)
        table = build_table(records, warnings, **options, measured=found.measured, plans=plans)
        members[REPORT] = document.as_json(table).encode()
        unfinished = _unfinished(sources)
        version = metadata.version("sebench")

        def describe(entries: dict[str, Entry]) -> bytes:
            return manifest_text(Manifest(FORMAT, version, entries, options, warnings, unfinished))

        output.parent.mkdir(parents=True, exist_ok=True)
        write_archive(output, members, describe)
    told = list(warnings)
    if not found.plans and any(record.plan for record in records):
        told.append("cells of a study without its plan: bundle the whole folder of the study")
    digest = files.sha256(output)
    return Bundle(output, digest, output.stat().st_size, len(records), told, unfinished)


def manifest_text(manifest: Manifest) -> bytes:
    """The content of `bundle.json`."""
    return json.dumps(asdict(manifest), indent=1, ensure_ascii=False).encode() + b"\n"


def _members(records: Iterable[Record]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    truths: dict[str, Annotations] = {}  # a file is read once for all its detectors
    for record in records:
        assert record.directory is not None  # it was read from a file
        run = f"{RUNS}/{record.name}"
        names = [files.RECORD, *filter(None, (record.files.samples, record.files.curve))]
        if (record.directory / files.SETTINGS).is_file():
            names.append(files.SETTINGS)
        for name in names:
            path = record.directory / name
            if not path.is_file():
                raise ValueError(f"{path} is gone: without it the numbers cannot be shown")
            members[f"{run}/{name}"] = path
        if record.files.detections:
            name = annotations_name(record)
            truth = truths[name] = truths.get(name) or _annotations(record)
            members[name] = truth.path
            members[f"{run}/{files.PACKED_DETECTIONS}"] = partial(_pack, record, truth)
    return members


def _annotations(record: Record) -> Annotations:
    path = Path(record.annotations or record.dataset.annotations or "")
    truth = read_annotations(path)
    if truth.sha256 != (record.dataset.reported_sha256 or record.dataset.sha256):
        raise ValueError(
            f"{path} is not the file that the detections of {record.name} were scored against: it "
            "has changed, or the record is of an earlier version (evaluate the weights again)"
        )
    return truth


def _pack(record: Record, truth: Annotations) -> bytes:
    """The detections of a run as columns."""
    with tempfile.TemporaryDirectory(prefix="sebench-") as folder:
        path = Path(folder) / files.PACKED_DETECTIONS
        read_results(file_of(record, "detections"), truth).write_table(truth, path)
        return path.read_bytes()


def _unfinished(paths: Iterable[Path]) -> list[str]:
    """Folders with settings and no record."""
    folders = [path for path in paths if path.is_dir()]
    begun = find_files(folders, files.SETTINGS) if folders else {}
    return [name for file, name in begun.items() if not (file.parent / files.RECORD).exists()]
