"""The record of one experiment: what was run, on what, how, and what came out.

A record is written last and whole, so a run directory with a ``record.json`` is a finished run. The
types say what every key of the file means; ``record.schema.json`` is made from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from backbones import files
from backbones.config import Count, WholeNumber, check_choice, printable
from backbones.result import (
    ClassScore,
    Cost,
    Dataset,
    Percent,
    PlainValue,
    Protocol,
    Timing,
    Weights,
)
from tools.experiments.memory import Fitted
from tools.experiments.tasks import ACTIONS, find_task
from tools.experiments.typed_json import as_type, json_schema, read_json

SCHEMA = 3
_LARGEST_FILE = 64 << 20  # bytes of a record
PLACE = ("directory", "name", "annotations")  # fields of a record that say where it was read from


@dataclass(frozen=True)
class MetricKind:
    """What a metric is, whoever measured it."""

    label: str  # for people
    unit: str
    higher_is_better: bool


# fmt: off
METRICS = {
    "top1_error": MetricKind("top-1 error", "percent", False),
    "top5_error": MetricKind("top-5 error", "percent", False),
    "top1_accuracy": MetricKind("top-1 accuracy", "percent", True),
    "top5_accuracy": MetricKind("top-5 accuracy", "percent", True),
    "AP": MetricKind("AP (IoU 0.50:0.95)", "percent", True),
    "AP50": MetricKind("AP at IoU 0.50", "percent", True),
    "AP75": MetricKind("AP at IoU 0.75", "percent", True),
    "APs": MetricKind("AP of small objects", "percent", True),
    "APm": MetricKind("AP of medium objects", "percent", True),
    "APl": MetricKind("AP of large objects", "percent", True),
    "AR1": MetricKind("AR, 1 detection an image", "percent", True),
    "AR10": MetricKind("AR, 10 detections an image", "percent", True),
    "AR100": MetricKind("AR, 100 detections an image", "percent", True),
    "ARs": MetricKind("AR of small objects", "percent", True),
    "ARm": MetricKind("AR of medium objects", "percent", True),
    "ARl": MetricKind("AR of large objects", "percent", True),
}
# fmt: on


@dataclass(frozen=True)
class Metric:
    """One measured number, or why there is none."""

    value: Annotated[float, Field(allow_inf_nan=False)] | None  # None: unavailable, see reason
    unit: str  # "percent": 0 to 100
    higher_is_better: bool
    n: Count  # images it was measured on: all of the split
    reason: str | None = None  # why there is no value


@dataclass(frozen=True)
class Setup:
    """Which experiment this is the record of."""

    hash: str  # equal for experiments that must give the same result
    comparison_hash: str  # as `hash`, without backbone and seed: twins and repetitions share it
    task: str
    action: str  # "train" or "evaluate"
    recipe: str
    settings: dict[str, Any]  # all of them, nested as in a recipe
    # What stood for files in `hash`, by path: the SHA-256 of those that settings name, and how
    # synthetic data were made; None: recorded before it was kept.
    contents: dict[str, str] | None = None


@dataclass(frozen=True)
class Network:
    """A backbone by name, with the options that are not its defaults."""

    name: str
    options: dict[str, PlainValue]


@dataclass(frozen=True)
class Backbone(Network):
    """The network, and the plain one it is compared with."""

    family: str
    is_se: bool  # whether it holds SE or another attention
    twin: Network | None  # None: it is plain itself


@dataclass(frozen=True)
class Files:
    """Names of files beside the record; None: the run has no such file."""

    samples: str | None = None  # parquet, one row per image
    detections: str | None = None  # COCO's results format
    curve: str | None = None  # JSON lines of the training


@dataclass(frozen=True)
class Git:
    """The checkout of this suite that ran; None where there is none."""

    commit: str | None = None
    dirty: bool | None = None  # whether files differed from the commit


@dataclass(frozen=True)
class Device:
    """The machine."""

    type: str  # "cpu" or "cuda"
    name: str
    threads: Count
    processes: Count


@dataclass(frozen=True)
class Record:
    """One finished run. Plain values throughout, so that it is equal to its JSON file."""

    created: str  # UTC, ISO 8601
    experiment: Setup
    dataset: Dataset
    protocol: Protocol
    backbone: Backbone
    weights: Weights
    seed: WholeNumber
    metrics: dict[str, Metric]  # keys of METRICS
    per_class: list[ClassScore]
    cost: Cost
    timing: Timing
    selection: str  # the rule by which the weights were chosen, e.g. "last epoch"
    files: Files
    command: str  # as typed
    git: Git
    versions: dict[str, str]  # Python and the packages that make the numbers
    device: Device
    input_format: dict[str, PlainValue] = field(default_factory=dict)  # channel order, mean, ...
    chance: Percent | None = None  # the headline metric of guessing
    steps: WholeNumber | None = None  # optimizer steps that were trained
    memory: Fitted | None = None  # how it was made to fit; None: as the settings have it
    plan: str | None = None  # SHA-256 of the plan of the study it was a cell of, as it was then
    locked_plan: str | None = None  # SHA-256 of the study's fixed plan, as it was then
    schema: int = SCHEMA
    # Where it was read from; not in the file.
    directory: Path | None = field(default=None, compare=False)
    name: str = field(default="", compare=False)  # of the directory, among those read together
    annotations: Path | None = field(default=None, compare=False)  # of its data, in a bundle

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.experiment.task

    @property
    def hash(self) -> str:
        """Of the experiment."""
        return self.experiment.hash

    @property
    def comparison_hash(self) -> str:
        """Of the experiment without backbone and seed, which twins share."""
        return self.experiment.comparison_hash

    @property
    def synthetic(self) -> bool:
        """Whether the numbers come from synthetic data: no real results."""
        return self.dataset.synthetic

    def file(self, kind: str) -> Path | None:
        """Path of the samples, detections or curve, if the run has such a file."""
        name = getattr(self.files, kind)
        if not name or not self.directory:
            return None
        names = [name, files.PACKED_DETECTIONS] if kind == "detections" else [name]
        paths = (self.directory / each for each in names)
        return next((path for path in paths if path.is_file()), None)


# The file ----------------------------------------------------------------------------------------


def write_record(record: Record, directory: Path) -> Path:
    """Write ``record.json`` into ``directory``, whole or not at all."""
    path = Path(directory) / files.RECORD
    files.write_whole(path, json.dumps(to_plain(record), indent=1, allow_nan=False) + "\n")
    return path


def read_record(path: Path) -> Record:
    """Read one record of this schema or an earlier one.

    Raises:
        ValueError: the file is damaged or of a later schema; the message names it.
    """
    path = Path(path)
    try:
        content = read_json(path, _LARGEST_FILE)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    try:
        return record_from(content, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: not a sound record: {error}") from None


def load_records(
    paths: Iterable[Path | str], named: Iterable[Path | str] | None = None
) -> tuple[list[Record], list[str]]:
    """Read every record in or under ``paths``, which are record files or folders.

    Args:
        named: paths that take their places in the names of the records.

    Returns:
        The records, oldest first, and one warning for each file that was skipped. Each is named by
        its folder, as `find_files` says.

    Raises:
        ValueError: a path does not exist.
    """
    found = find_files(paths, files.RECORD, named)
    records, warnings = read_all(read_record, found)
    for file, record in records.items():
        name = found[file] or file.resolve().parent.name
        records[file] = dataclasses.replace(record, name=name)
    return sorted(records.values(), key=lambda record: record.created), warnings


def read_all(
    read: Callable[[Path], Any], paths: Iterable[Path]
) -> tuple[dict[Path, Any], list[str]]:
    """What files hold, and a warning for each that was skipped, where `read` raised a ValueError."""
    found, warnings = {}, []
    for path in paths:
        try:
            found[path] = read(path)
        except ValueError as error:
            warnings.append(f"skipped {error}")
    return found, warnings


def find_files(
    paths: Iterable[Path | str], name: str, named: Iterable[Path | str] | None = None
) -> dict[Path, str]:
    """The files called ``name`` under folders, and those that are given themselves.

    Each with the name of its folder: from the given folder on, or, where several are given, from
    the folder in which all of these lie.

    Args:
        named: paths that take the places of ``paths`` in the names.

    Raises:
        ValueError: a path does not exist.
    """
    places = list(map(Path, paths))
    tops = [Path(os.path.abspath(path)) for path in named or places]
    common = os.path.commonpath([top.parent for top in tops]) if len(tops) > 1 else None
    found: dict[Path, str] = {}
    for place, top in zip(places, tops, strict=True):
        if not place.exists():
            raise ValueError(f"no such file or folder: {place}")
        outer = top.relative_to(common).parts if common else ()
        for file in sorted(place.rglob(name)) if place.is_dir() else [place]:
            inner = file.parent.relative_to(place).parts if place.is_dir() else ()
            found.setdefault(file, "/".join([*outer, *inner]))
    return found


def to_plain(record: Record) -> dict[str, Any]:
    """The content of the record's file."""
    content = dataclasses.asdict(record)
    for key in PLACE:
        del content[key]
    return {"schema": content.pop("schema"), **content}


def record_from(content: object, directory: Path | None = None) -> Record:
    """A record from the content of its file, of any schema so far; unknown keys are left out.

    Raises:
        ValueError: a key is missing or of the wrong type, or numbers do not add up.
    """
    if not isinstance(content, dict):
        raise ValueError("expected keys with values")
    content = _upgrade({key: value for key, value in content.items() if key not in PLACE})
    record = as_type(Record, content)
    _check(record)
    return dataclasses.replace(record, directory=directory)


def record_schema() -> dict[str, Any]:
    """The JSON schema of a record's file."""
    schema = json_schema(Record)
    for key in PLACE:
        del schema["properties"][key]
    schema["required"].append("schema")
    return schema


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Bring the content of a record of an earlier schema to this one."""
    schema = content.get("schema")
    if schema not in (1, 2, SCHEMA) or isinstance(schema, bool):
        raise ValueError(f"schema {schema!r}; this version reads 1 to {SCHEMA}")
    if schema == SCHEMA:
        return content
    content["schema"] = SCHEMA
    if schema == 1 and isinstance(content.get("cost"), dict):
        missing = {"median_ms": None, "reason": "records of schema 1 hold no latency"}
        content["cost"] = content["cost"] | {"latency": missing}
    if isinstance(setup := content.get("experiment"), dict) and "condition" in setup:
        content["experiment"] = setup | {"comparison_hash": setup["condition"]}
    if isinstance(protocol := content.get("protocol"), dict) and "settings" not in protocol:
        settings = {key: value for key, value in protocol.items() if key != "name"}
        names = {key: value for key, value in protocol.items() if key == "name"}
        content["protocol"] = names | {"settings": settings}
    if isinstance(rows := content.get("per_class"), list):
        content["per_class"] = [
            {
                "name": row.get("class"),
                "images": row.get("images"),
                "value": next((row[key] for key in ("top1_accuracy", "AP") if key in row), None),
                "reason": row.get("reason"),
            }
            if isinstance(row, dict) and "class" in row
            else row
            for row in rows
        ]
    return content


def _check(record: Record) -> None:
    """Raise a ValueError for what types cannot say."""
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        raise ValueError(f"created={record.created!r}: no date and time") from None
    for kind, name in dataclasses.asdict(record.files).items():
        # The name of a file beside the record: it must not lead to another folder.
        if name is not None and (not name or name == ".." or set(name) & set("/\\\0")):
            raise ValueError(f"files.{kind}={name!r}: must be the name of a file beside the record")
    find_task(record.task)
    check_choice("experiment.action", record.experiment.action, ACTIONS)
    for key in ("backbone", "data", "train", "evaluate"):
        if not isinstance(record.experiment.settings.get(key, {}), dict):
            raise ValueError(f"experiment.settings.{key}: expected keys with values")
    latency = record.cost.latency
    if latency.median_ms is None and not latency.reason:
        raise ValueError("cost.latency has neither a median nor a reason")
    if not record.metrics:
        raise ValueError("no metric")
    images = record.dataset.images
    for name, metric in record.metrics.items():
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise ValueError(f"unknown metric {printable(name)!r}; there are {known}")
        if metric.n != images:
            raise ValueError(f"metric {name} counts {metric.n} of {images} images")
        if metric.value is None:
            if not metric.reason:
                raise ValueError(f"metric {name} has neither a value nor a reason")
        elif metric.unit == "percent" and not 0 <= metric.value <= 100:
            raise ValueError(f"metric {name}={metric.value}: percent are from 0 to 100")


# Where it ran ------------------------------------------------------------------------------------

_PACKAGES = ("sebench", "torch", "torchvision", "timm", "numpy", "pillow", "pycocotools", "hotcoco")


def read_git() -> Git:
    """Commit of the checkout this package lies in; a foreign repository around it is not ours.

    An image has none: SEBENCH_COMMIT says there what it was made of.
    """
    home = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(home), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != home:
        return Git(os.environ.get("SEBENCH_COMMIT") or None)
    status = git("status", "--porcelain", "--untracked-files=no")
    return Git(git("rev-parse", "HEAD"), None if status is None else bool(status))


def describe_versions() -> dict[str, str]:
    """Python and the packages that make the numbers."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    # Detectron2 may have come without package metadata; where it was used it is imported.
    if "detectron2" in sys.modules:
        versions["detectron2"] = str(getattr(sys.modules["detectron2"], "__version__", "unknown"))
    return versions


if __name__ == "__main__":  # write the schema anew
    schema = json.dumps(record_schema(), indent=1) + "\n"
    Path(__file__).with_name("record.schema.json").write_text(schema, encoding="utf-8")
