"""What must agree within a record, and between the records of one study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backbones import files
from backbones.config import BackboneSettings, flatten, printable
from backbones.result import WeightsFile
from tools import statistics
from tools.experiments.experiment import recompute_hashes
from tools.experiments.plan import beyond_look, read_lock
from tools.experiments.record import METRICS, Record
from tools.experiments.run import describe_settings_network
from tools.experiments.settings import build_settings, read_yaml
from tools.experiments.status import read_plan
from tools.experiments.tasks import find_task, load_function, settings_class
from tools.report.compared import explain
from tools.report.pairs import describe_network
from tools.report.planned import ends
from tools.report.table import Table


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be."""

    where: str
    what: str


@dataclass
class Verification:
    """What was looked at in a bundle, and what is wrong with it."""

    sha256: str  # of the bundle
    checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be looked at
    findings: list[Finding] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Note that something is not as it must be."""
        self.findings.append(Finding(where, what))


def check_record(record: Record, found: Verification) -> None:
    """Check one run."""
    for is_so, text in (
        (_contents(record) is None, "of a version that did not keep what its hash was made from"),
        (
            record.dataset.reported_sha256 is None,
            "of a version that did not keep the hash of its images alone",
        ),
        (record.git.dirty, "made with uncommitted changes to the suite"),
    ):
        if is_so:
            found.notes.append(f"{record.name}: {text}")
    for check in (_identity, _network, _protocol, _weights_of, _kinds, _numbers):
        for text in check(record):
            found.add(record.name, text)


def _identity(record: Record) -> Iterator[str]:
    """The settings are those of the hash, and of `settings.yaml`."""
    setup, contents = record.experiment, _contents(record)
    if contents is not None:
        try:
            hashes = recompute_hashes(setup.task, setup.action, setup.settings, contents)
            if hashes != (setup.hash, setup.comparison_hash):
                yield f"its settings give the experiment {hashes[0]}, recorded as {setup.hash}"
        except (ValueError, TypeError) as error:
            yield f"its settings are none of this version: {printable(str(error))}"
    path = record.directory / files.SETTINGS if record.directory else None
    if path is None or not path.is_file():
        yield f"has no {files.SETTINGS}"
        return
    try:
        written = read_yaml(path)
    except ValueError as error:
        yield printable(str(error).replace(str(path), files.SETTINGS))
        return
    told = {key: getattr(setup, key) for key in ("task", "action", "comparison_hash")}
    told["experiment"] = setup.hash
    config = written.get("config")
    ours = told | flatten(setup.settings)
    theirs = {key: written.get(key) for key in told}
    theirs |= flatten(config) if isinstance(config, dict) else {}
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if one != other:
            yield f"{printable(key)} is {_shown(one)} in the record, {_shown(other)} in its settings"


def _contents(record: Record) -> dict[str, str] | None:
    """What stood for files in the hash; of earlier versions, where the record tells it elsewhere."""
    setup, images = record.experiment, record.experiment.settings.get("evaluate", {}).get("images")
    if setup.contents is not None:
        return setup.contents
    if record.synthetic or images:
        return None
    named = {path: file and file.sha256 for path, file in _named_weights(record)}
    return {path: f"sha256:{digest}" for path, digest in named.items() if path and digest}


def _named_weights(record: Record) -> Iterator[tuple[str | None, WeightsFile | None]]:
    """The files of weights that settings name, as they are recorded."""
    settings, weights = record.experiment.settings, record.weights
    others = settings.get("evaluate", {}).get("ensemble")
    paths = [settings.get("backbone", {}).get("weights")]
    paths += others if isinstance(others, list) else ()
    first = weights.initial if record.experiment.action == "train" else weights
    named = [path if isinstance(path, str) else None for path in paths]
    yield from zip(named, (first, *weights.ensemble), strict=False)


def _network(record: Record) -> Iterator[str]:
    """Network, twin and seed are those of the settings."""
    settings = record.experiment.settings
    if record.seed != settings.get("seed"):
        yield f"its seed is {record.seed}, in its settings {_shown(settings.get('seed'))}"
    try:
        group = build_settings(BackboneSettings, [("", settings.get("backbone", {}))])
        expected = describe_settings_network(group)
    except ValueError:  # a network of somebody's own
        expected = {"name": settings.get("backbone", {}).get("name")}
    recorded = asdict(record.backbone)
    for key, value in expected.items():
        if recorded[key] != value:
            yield f"backbone.{key} is {_shown(recorded[key])}, by its settings {_shown(value)}"


def _protocol(record: Record) -> Iterator[str]:
    """Data set and protocol are those that the settings ask for."""
    settings, task = record.experiment.settings, find_task(record.task)
    if record.dataset.name != settings.get("data", {}).get("name"):
        yield f"its data are {printable(record.dataset.name)}, not those of its settings"
    try:
        config = build_settings(settings_class(task), [("its settings", settings)])
        asked = json.loads(json.dumps(asdict(load_function(task.protocol)(config))))
    except (ValueError, TypeError):  # of another version, or a package is missing here
        return
    name, values = record.protocol.name, record.protocol.settings
    if name != asked["name"] and not name.startswith(f"{asked['name']}+"):
        yield f"its protocol is {printable(name)}, by its settings {asked['name']}"
    for key in values.keys() & asked["settings"].keys():
        if values[key] != asked["settings"][key]:
            yield f"protocol.{key} is {_shown(values[key])}, not that of its settings"


def _weights_of(record: Record) -> Iterator[str]:
    """The hashes of files that settings name are those of the weights."""
    for path, file in _named_weights(record):
        content = (record.experiment.contents or {}).get(str(path))
        if content and (file is None or content != f"sha256:{file.sha256}"):
            yield f"the weights it names are {content}, recorded as {file and file.sha256}"


def _kinds(record: Record) -> Iterator[str]:
    """Units and directions are those of the metrics."""
    for name, metric in record.metrics.items():
        kind = METRICS[name]
        if (metric.unit, metric.higher_is_better) != (kind.unit, kind.higher_is_better):
            yield f"{name} is recorded with another unit or direction"


def _numbers(record: Record) -> Iterator[str]:
    """Metrics, and those of the classes, are what rows or detections give."""
    try:
        metrics, classes = load_function(find_task(record.task).recompute)(record)
    except ValueError as error:
        yield printable(explain(error, [record]))
        return
    for name in sorted(metrics.keys() | record.metrics.keys()):
        metric = record.metrics.get(name)
        yield from _compare(name, metric.value if metric else None, metrics.get(name))
    if len(classes) != len(record.per_class) or len(classes) != record.dataset.classes:
        yield f"{len(record.per_class)} classes are recorded, {len(classes)} computed"
        return
    names = record.dataset.class_names
    for row, name, value in zip(record.per_class, names, classes, strict=True):
        if row.name != name:
            yield f"class {row.name!r} stands where the data have {name!r}"
        yield from _compare(f"class {row.name!r}", row.value, value)


def _compare(name: str, recorded: float | None, computed: float | None) -> Iterator[str]:
    if recorded is not None and computed is not None:
        same = math.isclose(recorded, computed, abs_tol=1e-9)
    else:
        same = recorded == computed
    if not same:
        yield f"{printable(name)} is recorded as {_shown(recorded)}, computed {_shown(computed)}"


def _shown(value: Any) -> str:
    return printable(json.dumps(value, default=str))[:80]


# Between records ---------------------------------------------------------------------------------


def check_together(records: Sequence[Record], found: Verification) -> None:
    """Find what records of one study say of each other that cannot be."""
    _same_rows(records, found)
    _one_training_each(records, found)


def check_plans(plans: Mapping[Path, str], records: Sequence[Record], found: Verification) -> None:
    """Check that every planned cell is there.

    Args:
        plans: files of plans, with the names of their folders.
    """
    by_name = {record.name: record for record in records}
    for path, folder in plans.items():
        where = _inside(folder, files.PLAN)
        try:
            cells = read_plan(path.parent)
        except ValueError:
            found.add(where, "is damaged")
            continue
        runs = {cell.name: by_name.get(_inside(folder, cell.name)) for cell in cells}
        recorded = {name: record for name, record in runs.items() if record}
        later = beyond_look(path.parent, cells, set(recorded))
        recorded = {name: record for name, record in recorded.items() if name not in later}
        for cell in cells:
            run = recorded.get(cell.name)
            if run is None and cell.name not in later:
                found.add(where, f"{printable(cell.name)} is planned and not recorded")
            planned = (cell.task, cell.backbone, cell.seed)
            if run is not None and (run.task, run.backbone.name, run.seed) != planned:
                found.add(run.name, "is not the run that was planned")
        _check_fixed(path.with_name(files.PLAN_LOCK), recorded.values(), found)
        digest = files.sha256(path)
        others = sum(record.plan != digest for record in recorded.values())
        if recorded and others == len(recorded):
            found.add(where, "is not the plan of any run: it was changed since")
        elif others:
            found.notes.append(f"{where}: {others} runs were recorded under an earlier plan")
    lost = [record.name for record in records if record.plan and not plans]
    for name in lost:
        found.add(
            name, "was planned, and its plan is not here: bundle the whole folder of its study"
        )
    if not plans and not lost:
        found.notes.append("no plan: nothing says which runs there should be")


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _check_fixed(path: Path, recorded: Iterable[Record], found: Verification) -> None:
    """Whether the fixed plan that runs name is the one that is there, or was amended to it."""
    try:
        locked = read_lock(path.parent)
    except ValueError:
        found.add(path.name, "is damaged")
        return
    known: set[str | None] = {None}
    if locked:
        known |= {files.sha256(path), *(each.sha256_before for each in locked.amendments)}
    for record in recorded:
        if record.locked_plan not in known:
            found.add(record.name, "names a fixed plan that is not here, or was changed since")


def check_end(plans: Mapping[Path, str], table: Table, found: Verification) -> None:
    """Check that a study by looks that ended early did so by its own rule.

    Args:
        plans: files of plans, with the names of their folders.
    """
    for path, folder in plans.items():
        try:
            locked = read_lock(path.parent)
        except ValueError:
            continue  # `check_plans` has said so
        if locked is None or locked.looks is None:
            continue
        last, inside = locked.looks.looks[-1], _inside(folder, "")
        own = [c for c in table.comparisons if all(r.name.startswith(inside) for r in c.pair.runs)]
        if any(len(c.seeds) < last for c in own) and not all(ends(locked.looks, c) for c in own):
            found.add(
                _inside(folder, files.PLAN_LOCK),
                f"ended before {last} seeds, and not every comparison is {locked.looks.stop}",
            )


def _same_rows(records: Sequence[Record], found: Verification) -> None:
    """The same data have the same images and labels in every run."""
    firsts: dict[tuple[str | None, tuple[str, ...]], tuple[str, Any]] = {}
    for record in records:
        path = record.file("samples")
        if path is None:
            continue
        try:
            rows = statistics.load_predictions(path, record.dataset.images)
        except ValueError:
            continue  # `check_record` has said so
        data = (record.dataset.sha256, tuple(record.dataset.skipped_images))
        name, first = firsts.setdefault(data, (record.name, rows))
        if not np.array_equal(rows.image, first.image):
            found.add(record.name, f"its rows name other images than {name}")
        elif not np.array_equal(rows.label, first.label):
            found.add(record.name, f"its rows have other labels than {name}")


def _one_training_each(records: Sequence[Record], found: Verification) -> None:
    """Weights come from one training, and are evaluated as the network that was trained."""
    trained: dict[str | None, Record] = {}
    for record in records:
        if record.experiment.action == "train" and record.weights.sha256:
            first = trained.setdefault(record.weights.sha256, record)
            if first.hash != record.hash:
                found.add(record.name, f"its weights are those of {first.name}, another experiment")
    for record in records:
        first = trained.get(record.weights.sha256, record)
        ours, theirs = record.backbone, first.backbone
        if (ours.name, ours.options) != (theirs.name, theirs.options):
            told = describe_network(theirs)
            found.add(record.name, f"evaluates the weights that {first.name} trained as {told}")
