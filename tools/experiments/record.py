"""The record of one experiment: what was run, on what, how, and what came out.

A record is written last and whole, so a run directory with a ``record.json`` is a finished run.
`Record` explains every key of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones import files
from backbones.device import processor_name
from backbones.zoo import describe_backbone, twin_of

if TYPE_CHECKING:
    from tools.experiments.run import Experiment

SCHEMA = 2


@dataclass(frozen=True)
class MetricKind:
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

# The number a task is known by, first; the others stand beside it.
HEADLINE_METRICS = {
    "classification": ("top1_error", "top5_error"),
    "scene": ("top1_error", "top5_error"),
    "detection": ("AP", "AP50", "AP75"),
}


@dataclass(frozen=True)
class Metric:
    value: float | None  # None: cannot be had, see reason
    unit: str  # "percent": 0 to 100
    higher_is_better: bool
    n: int  # images it was measured on: all of the split
    reason: str | None = None  # why there is no value


@dataclass(frozen=True)
class Record:
    """One finished run. Plain values throughout, so that it is equal to its JSON file."""

    created: str  # UTC, ISO 8601
    experiment: dict[str, Any]  # hash, condition (twins share it), task, action, recipe, settings
    dataset: dict[
        str, Any
    ]  # name, split, images, classes, class_names, synthetic, root, sha256, ..
    protocol: dict[str, Any]  # name and settings of the evaluation
    backbone: dict[str, Any]  # name, options, family, is_se, twin: {name, options} or None
    weights: dict[str, Any]  # path, sha256 and format of what was evaluated; initial: started from
    seed: int
    metrics: dict[str, Metric]  # keys of METRICS
    per_class: list[dict[str, Any]]  # class, images, and top1_accuracy or AP in percent, or None
    # parameters, multiply_adds, input_size [3, H, W], scope; latency of one picture alone in
    # milliseconds: median_ms, fastest_ms, slowest_ms, repeats, or median_ms None and the reason
    cost: dict[str, Any]
    # seconds, images/s (of an evaluation by the networks_in_pass together), peak_memory_bytes
    timing: dict[str, Any]
    selection: str  # the rule by which the weights were chosen
    files: dict[str, str | None]  # samples, detections, curve: names in the run directory
    command: str  # as typed
    git: dict[str, Any]  # commit of this suite's checkout and dirty; None where there is none
    versions: dict[str, str]  # python and the packages that make the numbers
    device: dict[str, Any]  # type, name, threads, processes
    input_format: dict[str, Any] = field(default_factory=dict)  # channel order, mean, std, ...
    schema: int = SCHEMA
    # Where it was read from; not in the file.
    directory: Path | None = field(default=None, compare=False)

    @property
    def task(self) -> str:
        return self.experiment["task"]

    @property
    def hash(self) -> str:
        return self.experiment["hash"]

    @property
    def condition(self) -> str:
        return self.experiment["condition"]

    @property
    def synthetic(self) -> bool:
        """Whether the numbers come from made data, and say nothing of the world."""
        return bool(self.dataset["synthetic"])

    def file(self, kind: str) -> Path | None:
        """Path of the samples, detections or curve, if the run has such a file."""
        name = self.files.get(kind)
        path = self.directory / name if name and self.directory else None
        return path if path and path.is_file() else None


def build_record(
    experiment: Experiment,
    result: dict[str, Any],
    directory: Path,
    command: str | None = None,
    git: dict[str, Any] | None = None,
) -> Record:
    """Check what a benchmark returned and join it with where it came from.

    ``command`` and ``git`` are this process's and this moment's unless given.

    Raises:
        ValueError: an unknown, infinite or unexplained metric, or images that do not add up.
    """
    images = result["dataset"]["images"]
    missing = result.get("missing") or {}
    metrics = {}
    for name, value in result["metrics"].items():
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
        kind = METRICS[name]
        metrics[name] = Metric(value, kind.unit, kind.higher_is_better, images, missing.get(name))
    settings = experiment.config.backbone
    info = describe_backbone(settings.name)
    twin = twin_of(settings.name, settings.options)
    if settings.twin:
        twin = (settings.twin, settings.twin_options)
    record = Record(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        experiment={
            "hash": experiment.hash,
            "condition": experiment.condition,
            "task": experiment.task,
            "action": experiment.action,
            "recipe": experiment.recipe,
            "settings": experiment.settings,
        },
        dataset=result["dataset"],
        protocol=result["protocol"],
        backbone={
            "name": settings.name,
            "options": settings.options,
            "family": info.family,
            "is_se": info.is_se,
            "twin": {"name": twin[0], "options": twin[1]} if twin else None,
        },
        weights=result["weights"],
        seed=experiment.config.seed,
        metrics=metrics,
        per_class=result["per_class"],
        cost=result["cost"],
        timing=result["timing"],
        selection=result["selection"],
        files={kind: result.get(kind) for kind in ("samples", "detections", "curve")},
        command=command or shlex.join(["sebench", *sys.argv[1:]]),
        git=git or read_git(),
        versions=describe_versions(),
        device=_device(experiment.config.device),
        input_format=result.get("input_format") or {},
    )
    # A tuple becomes a list, so that what is returned equals what will be read back.
    record = _from_json(json.loads(json.dumps(_to_json(record))), Path(directory))
    _check(record)
    samples = record.file("samples")
    if samples is not None:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_metadata(samples).num_rows
        if rows != images:
            raise ValueError(f"{samples} has {rows} rows for {images} images")
    return record


def write_record(record: Record, directory: Path) -> Path:
    """Write ``record.json`` into ``directory``, whole or not at all."""
    path = Path(directory) / files.RECORD
    files.write_whole(path, json.dumps(_to_json(record), indent=1, allow_nan=False) + "\n")
    return path


def read_record(path: Path) -> Record:
    """Read one record of this schema or an earlier one.

    Raises:
        ValueError: the file is damaged or of a later schema; the message names it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    try:
        record = _from_json(_upgrade(content), path.parent)
        _check(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a sound record: {what}") from error
    return record


def load_records(paths: Iterable[Path | str]) -> tuple[list[Record], list[str]]:
    """Read every record in or under ``paths``, which are record files or folders.

    Returns the records, oldest first, and one warning for each file that was skipped.

    Raises:
        ValueError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        if path.is_dir():
            found.update(dict.fromkeys(sorted(path.rglob(files.RECORD))))
        else:
            found[path] = None
    records, warnings = [], []
    for path in found:
        try:
            records.append(read_record(path))
        except ValueError as error:
            warnings.append(f"skipped {error}")
    return sorted(records, key=lambda record: record.created), warnings


# The file ----------------------------------------------------------------------------------------


def _to_json(record: Record) -> dict[str, Any]:
    content = dataclasses.asdict(record)
    del content["directory"]
    return {"schema": content.pop("schema"), **content}


def _from_json(content: dict[str, Any], directory: Path) -> Record:
    """Keys that this version does not know are left out."""
    known = {item.name for item in dataclasses.fields(Record)} - {"directory"}
    values = {key: value for key, value in content.items() if key in known}
    values["metrics"] = {name: Metric(**metric) for name, metric in content["metrics"].items()}
    return Record(**values, directory=directory)


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Bring a record of an earlier schema to this one."""
    schema = content["schema"]
    if schema == 1:
        missing = {"median_ms": None, "reason": "records of schema 1 hold no latency"}
        content = content | {"schema": SCHEMA, "cost": content["cost"] | {"latency": missing}}
    elif schema != SCHEMA:
        raise ValueError(f"schema {schema!r}; this version reads 1 to {SCHEMA}")
    return content


def _check(record: Record) -> None:
    for key in ("hash", "condition", "task", "action", "recipe", "settings"):
        if key not in record.experiment:
            raise ValueError(f"experiment lacks {key!r}")
    for key in ("name", "split", "images", "classes", "synthetic"):
        if key not in record.dataset:
            raise ValueError(f"dataset lacks {key!r}")
    for key in ("name", "options", "family", "is_se", "twin"):
        if key not in record.backbone:
            raise ValueError(f"backbone lacks {key!r}")
    for kind, name in record.files.items():
        # The name of a file beside the record: it must not lead to another folder.
        if name is not None and (not name or name == ".." or set(name) & set("/\\\0")):
            raise ValueError(f"files.{kind}={name!r}: must be the name of a file beside the record")
    latency = record.cost["latency"]
    if latency["median_ms"] is None and not latency.get("reason"):
        raise ValueError("cost.latency has neither a median nor a reason")
    images = record.dataset["images"]
    if not isinstance(images, int) or images < 1:
        raise ValueError(f"dataset.images={images!r}: must be a whole number above 0")
    if not record.metrics:
        raise ValueError("no metric")
    for name, metric in record.metrics.items():
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}")
        if metric.n != images:
            raise ValueError(f"metric {name} counts {metric.n} of {images} images")
        if metric.value is None:
            if not metric.reason:
                raise ValueError(f"metric {name} has neither a value nor a reason")
        elif not (isinstance(metric.value, (int, float)) and math.isfinite(metric.value)):
            raise ValueError(f"metric {name}={metric.value!r}: must be a finite number")
        elif metric.unit == "percent" and not 0 <= metric.value <= 100:
            raise ValueError(f"metric {name}={metric.value}: percent are from 0 to 100")


# Where it ran ------------------------------------------------------------------------------------

_PACKAGES = ("sebench", "torch", "torchvision", "timm", "numpy", "pillow", "pycocotools", "hotcoco")


def read_git() -> dict[str, Any]:
    """Commit of the checkout this package lies in; a foreign repository around it is not ours."""
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
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


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


def _device(asked: str) -> dict[str, Any]:
    import torch

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if asked.startswith("cuda") or (asked == "auto" and torch.cuda.is_available()):
        index = int(asked.partition(":")[2] or 0)
        name, kind = torch.cuda.get_device_name(index), "cuda"
    else:
        name, kind = processor_name(), "cpu"
    threads = torch.get_num_threads()
    return {"type": kind, "name": name, "threads": threads, "processes": processes}
