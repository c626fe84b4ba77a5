"""A stranger's bundle checked: every number made anew, and everything that must agree compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import printable
from tools.experiments.archive import (
    MANIFEST,
    REPORT,
    RUNS,
    Manifest,
    read_manifest,
    unpacked,
    with_annotations,
)
from tools.experiments.measured import load_measured
from tools.experiments.record import Record, find_files, load_records
from tools.proof.checks import (
    Verification,
    check_end,
    check_plans,
    check_record,
    check_together,
)
from tools.report import document
from tools.report.planned import read_plans
from tools.report.table import build_table

_SUFFIXES = {".safetensors", ".pth", ".pt", ".pkl", ".npz", ".npy", ".bin", ".ckpt", ".json"}
_TOLERANCE = 1e-6  # relative, of numbers of a report: machines differ in rounding


def verify_bundle(
    path: str | Path, *, weights: Path | None = None, sha256: str | None = None
) -> Verification:
    """Check a bundle.

    Args:
        weights: a folder of weights, whose hashes are compared with those in the records.
        sha256: what the hash of the bundle must be, as its makers published it.

    A bundle that cannot be read is a finding too.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    found = Verification(files.sha256(path))
    if sha256 is not None:
        found.checked.append("the bundle's SHA-256 against the given one")
        if sha256.lower() != found.sha256:
            found.add(str(path), f"its SHA-256 is {found.sha256}")
    try:
        with unpacked(path) as folder:
            _verify(folder, found, weights)
    except ValueError as error:
        found.add(str(path), printable(str(error)))
    return found


def _verify(folder: Path, found: Verification, weights: Path | None) -> None:
    manifest = read_manifest(folder)
    _check_files(folder, manifest, found)
    found.checked.append(f"{len(manifest.files)} files against their hashes")
    records, damaged = load_records([folder / RUNS])
    records = [with_annotations(record, folder) for record in records]
    for text in damaged:
        found.add(RUNS, text.replace(f"{folder}/", ""))
    found.notes += map(printable, manifest.skipped)
    found.notes += [f"begun and not recorded: {printable(name)}" for name in manifest.unfinished]
    for record in records:
        check_record(record, found)
    found.checked.append(f"settings, metrics and classes of {len(records)} runs, computed anew")
    check_together(records, found)
    found.checked.append("images, labels and weights of all runs against each other")
    plans = find_files([folder / RUNS], files.PLAN)
    check_plans(plans, records, found)
    if weights is None:
        found.notes.append("hashes of weights are those of the records; --weights DIR checks files")
    else:
        _check_weights(records, weights, found)
    _check_report(folder, records, manifest, plans, found)


def _check_files(folder: Path, manifest: Manifest, found: Verification) -> None:
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(there - set(manifest.files) - {MANIFEST}):
        found.add(name, "is not listed in the bundle")
    for name, entry in manifest.files.items():
        if name not in there:
            found.add(printable(name), "is listed and not in the bundle")
        elif files.sha256(folder / name) != entry.sha256:
            found.add(name, "was changed after the bundle was made")


def _check_weights(records: list[Record], folder: Path, found: Verification) -> None:
    """Look for the weights of runs in ``folder``, and for others where theirs should be."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
    hashes = {path: files.sha256(path) for path in paths if path.is_file()}
    known = 0
    for record in records:
        beside = hashes.get(folder / record.name / files.WEIGHTS)
        if record.weights.sha256 in hashes.values():
            known += 1
        elif beside is not None and record.experiment.action == "train":
            found.add(record.name, "its weights there are not those of its record")
    found.checked.append(f"weights of {known} of {len(records)} runs")


# The report --------------------------------------------------------------------------------------


def _check_report(
    folder: Path,
    records: list[Record],
    manifest: Manifest,
    plans: Mapping[Path, str],
    found: Verification,
) -> None:
    try:
        stored = json.loads((folder / REPORT).read_bytes())
        measured, _ = load_measured([folder / RUNS])
        table = build_table(
            records,
            manifest.skipped,
            allow_unequal=bool(manifest.report.get("allow_unequal")),
            margin=manifest.report.get("margin"),
            measured=measured,
            plans=read_plans(plans),
        )
        anew = json.loads(document.as_json(table))
    except ImportError as error:
        found.notes.append(
            f"{REPORT} was not computed anew: {error}; pip install sebench[detection]"
        )
        return
    except (OSError, ValueError, TypeError, RecursionError) as error:
        found.add(REPORT, f"cannot be made anew: {printable(str(error))}")
        return
    version = metadata.version("sebench")
    if manifest.sebench != version:
        found.notes.append(
            f"the report was made by sebench {printable(manifest.sebench)}, and is compared with one "
            f"by {version}: in what both have"
        )
    check_end(plans, table, found)
    differing = list(_differences(stored, anew, manifest.sebench == version))
    for place, text in differing[:10]:
        found.add(f"{REPORT} {place}", text)
    if len(differing) > 10:
        found.add(REPORT, f"{len(differing) - 10} more differences")
    found.checked.append(f"{_count(anew)} values of the report, computed anew")


def _differences(old: Any, new: Any, same_version: bool, at: str = "") -> Iterator[tuple[str, str]]:
    """Where two documents differ, by more than rounding."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys() if same_version else old.keys() & new.keys()
        for key in sorted(keys):
            there = old.get(key), new.get(key)
            yield from _differences(*there, same_version, f"{at}.{printable(key)}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, same_version, f"{at}[{place}]")
    elif _is_number(old) and _is_number(new):
        if not math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=1e-9):
            yield at, f"says {old:.10g}, computed {new:.10g}"
    elif old != new and (same_version or not isinstance(old, str)):
        yield at, f"says {_short(old)}, computed {_short(new)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"{len(value)} entries"
    return printable(repr(value))[:80]


def _count(value: Any) -> int:
    """How many single values a document holds."""
    inside = value.values() if isinstance(value, dict) else value
    return sum(map(_count, inside)) if isinstance(value, (dict, list)) else 1
