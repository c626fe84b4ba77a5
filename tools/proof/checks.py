"""What must agree within a record, and between the records of one study."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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

_WHOLE = "bundle the whole folder of its study"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be."""

    where: str
    what: str


def check_record(record: Record) -> tuple[list[str], list[Finding]]:
    """Check one run: what could not be looked at, and what is wrong."""
    notes = []
    if _contents(record) is None:
        notes.append(f"{record.name}: of a version that did not keep what its hash was made from")
    if record.dataset.reported_sha256 is None:
        notes.append(f"{record.name}: of a version that did not keep the hash of its images alone")
    if record.git.dirty:
        notes.append(f"{record.name}: made with uncommitted changes to the suite")
    checks = (_identity, _network, _protocol, _weights_of, _kinds, _numbers)
    return notes, [Finding(record.name, text) for check in checks for text in check(record)]


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
    told = {
        "task": setup.task,
        "action": setup.action,
        "experiment": setup.hash,
        "comparison_hash": setup.comparison_hash,
    }
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
    paths = [
        path if isinstance(path, str) else None
        for path in (
            settings.get("backbone", {}).get("weights"),
            *(others if isinstance(others, list) else ()),
        )
    ]
    first = weights.initial if record.experiment.action == "train" else weights
    yield from zip(paths, (first, *weights.ensemble), strict=False)


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


def check_together(records: Sequence[Record]) -> Iterator[Finding]:
    """Find what records of one study say of each other that cannot be."""
    yield from _same_rows(records)
    yield from _one_training_each(records)


def _check_fixed(path: Path, recorded: Sequence[Record]) -> list[Finding]:
    """Whether the fixed plan that runs name is the one that is there, or was amended to it."""
    named = [record for record in recorded if record.locked_plan]
    try:
        locked = read_lock(path.parent)
    except ValueError:
        return [Finding(path.name, "is damaged")]
    known = {each.sha256_before for each in locked.amendments} if locked else set()
    known |= {files.sha256(path)} if locked else set()
    return [
        Finding(record.name, "names a fixed plan that is not here, or was changed since")
        for record in named
        if record.locked_plan not in known
    ]


def check_plans(
    plans: Mapping[Path, str], records: Sequence[Record]
) -> tuple[list[str], list[Finding]]:
    """Check that every planned cell is there: what could not be looked at, and what is wrong.

    Args:
        plans: files of plans, with the names of their folders.
    """
    notes: list[str] = []
    findings: list[Finding] = []
    by_name = {record.name: record for record in records}
    for path, folder in plans.items():
        where = "/".join(filter(None, [folder, files.PLAN]))
        digest = files.sha256(path)
        try:
            cells = read_plan(path.parent)
        except ValueError:
            findings.append(Finding(where, "is damaged"))
            continue
        recorded = []
        found = {c.name: by_name.get("/".join(filter(None, [folder, c.name]))) for c in cells}
        later = beyond_look(path.parent, cells, {name for name, one in found.items() if one})
        for cell in cells:
            record = found[cell.name]
            if cell.name in later:
                continue
            if record is None:
                findings.append(
                    Finding(where, f"{printable(cell.name)} is planned and not recorded")
                )
                continue
            recorded.append(record)
            if (record.task, record.backbone.name, record.seed) != (
                cell.task,
                cell.backbone,
                cell.seed,
            ):
                findings.append(Finding(record.name, "is not the run that was planned"))
        findings += _check_fixed(path.with_name(files.PLAN_LOCK), recorded)
        others = sum(record.plan != digest for record in recorded)
        if recorded and others == len(recorded):
            findings.append(Finding(where, "is not the plan of any run: it was changed since"))
        elif others:
            notes.append(f"{where}: {others} runs were recorded under an earlier plan")
    lost = [record.name for record in records if record.plan and not plans]
    findings += [Finding(name, f"was planned, and its plan is not here: {_WHOLE}") for name in lost]
    if not plans and not lost:
        notes.append("no plan: nothing says which runs there should be")
    return notes, findings


def check_end(plans: Mapping[Path, str], table: Table) -> Iterator[Finding]:
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
        last, inside = locked.looks.looks[-1], f"{folder}/" if folder else ""
        own = [c for c in table.comparisons if all(r.name.startswith(inside) for r in c.pair.runs)]
        early = [c for c in own if len(c.seeds) < last]
        if early and not all(ends(locked.looks, c) for c in own):
            where = "/".join(filter(None, [folder, files.PLAN_LOCK]))
            text = f"ended before {last} seeds, and not every comparison is {locked.looks.stop}"
            yield Finding(where, text)


def _same_rows(records: Sequence[Record]) -> Iterator[Finding]:
    """The same data have the same images and labels in every run."""
    groups: dict[tuple[str | None, tuple[str, ...]], list[Record]] = defaultdict(list)
    for record in records:
        data = record.dataset
        if record.file("samples"):
            groups[data.sha256, tuple(data.skipped_images)].append(record)
    for group in groups.values():
        first = None
        for record in group:
            path = record.file("samples")
            assert path is not None
            try:
                rows = statistics.load_predictions(path, record.dataset.images)
            except ValueError:
                continue  # `check_record` has said so
            if first is None:
                first = record, rows
            elif not np.array_equal(rows.image, first[1].image):
                yield Finding(record.name, f"its rows name other images than {first[0].name}")
            elif not np.array_equal(rows.label, first[1].label):
                yield Finding(record.name, f"its rows have other labels than {first[0].name}")


def _one_training_each(records: Sequence[Record]) -> Iterator[Finding]:
    """Weights come from one training, and are evaluated as the network that was trained."""
    trained: dict[str, Record] = {}
    for record in records:
        digest = record.weights.sha256
        if record.experiment.action != "train" or not digest:
            continue
        first = trained.setdefault(digest, record)
        if first.hash != record.hash:
            yield Finding(record.name, f"its weights are those of {first.name}, another experiment")
    for record in records:
        first = trained.get(record.weights.sha256 or "", record)
        if (first.backbone.name, first.backbone.options) != (
            record.backbone.name,
            record.backbone.options,
        ):
            yield Finding(
                record.name,
                f"evaluates the weights that {first.name} trained as "
                f"{describe_network(first.backbone)}",
            )
