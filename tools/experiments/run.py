"""Running experiments: a directory for each, locked and logged, and its record, written last."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from backbones import files
from backbones.config import BackboneSettings, flatten, printable
from backbones.device import processor_name
from backbones.heartbeat import keep_heartbeat
from backbones.registry import describe_backbone, load_user_module, twin_of
from backbones.result import Result
from tools.experiments.experiment import Experiment
from tools.experiments.failure import StartAgain
from tools.experiments.fetch import require_fetched
from tools.experiments.memory import fit, give_back, make_fit, read_fitted
from tools.experiments.record import (
    METRICS,
    SCHEMA,
    Git,
    Metric,
    MetricKind,
    Record,
    describe_versions,
    read_git,
    read_record,
    record_from,
    write_record,
)
from tools.experiments.settings import read_yaml

# Packages whose log belongs to a run.
LOGGERS = ("backbones", "classification", "scene", "detection", "detectron2", "fvcore")


def run_experiment(
    experiment: Experiment,
    directory: Path,
    *,
    resume: bool = False,
    command: str | None = None,
    git: Git | None = None,
) -> Record | None:
    """Run, evaluate and record an experiment; the record is written last and whole.

    Returns the record, or None in every process but the first one. Where the directory holds the
    record of this experiment already, that record is returned and nothing is run. Started anew by
    torchrun after a failure, it goes on from the checkpoint, if there is one.

    Raises:
        ValueError: bad input, found before any compute; or the directory belongs to another
            experiment.
    """
    recorded = read_recorded(experiment, directory)
    if recorded is not None:
        return recorded if is_first_process() else None
    require_fetched([experiment], command or typed_command())
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        resume = (directory / files.CHECKPOINT).exists()
    result, is_over = None, False
    while not is_over:
        result, is_over = _attempt(experiment, directory, resume)
        resume = (directory / files.CHECKPOINT).exists()
    return _record(experiment, result, directory, command, git)


def _record(experiment: Experiment, result: Any, directory: Path, *origin: Any) -> Record | None:
    """Write the record of a result; None in every process but the first one."""
    if not is_first_process() or result is None:
        return None
    record = build_record(experiment, result, directory, *origin)
    write_record(record, directory)
    # Nothing goes on from it any more, and it is twice as large as the weights.
    (directory / files.CHECKPOINT).unlink(missing_ok=True)
    return record


def _attempt(experiment: Experiment, directory: Path, resume: bool) -> tuple[Any, bool]:
    """The task's result, and whether it is one: otherwise memory was short, and the next needs less."""
    with _run_in(experiment, directory, resume) as module:
        config = fit(experiment.config, read_fitted(directory))
        try:
            if experiment.action == "train":
                return module.train(config, directory, resume=resume), True
            return module.evaluate(config, directory), True
        except (RuntimeError, MemoryError) as error:
            if not make_fit(config, error, directory):
                raise
            if "WORLD_SIZE" in os.environ:  # the other processes wait for this one
                raise StartAgain(
                    f"{read_fitted(directory)}: start it again (--resume, where there is a checkpoint)"
                ) from None
    give_back()
    return None, False


def evaluate_experiments(runs: Mapping[Path, Experiment]) -> Iterator[Record | None]:
    """Evaluate several weights, each into its own directory, and record every result.

    Classifiers that differ in network and weights alone share one pass: every image is read once.
    Where a directory holds the record already, nothing is run.

    Yields:
        Records as they come; None in every process but the first one.

    Raises:
        ValueError: as ``run_experiment``; of a pass, before any of its weights is evaluated.
    """
    require_fetched(runs.values(), typed_command())
    passes: dict[tuple[str, str], list[Path]] = {}
    for directory, experiment in runs.items():
        shared = hasattr(experiment.entry_points(), "evaluate_together")
        alone = not shared or read_recorded(experiment, directory) is not None
        key = (experiment.comparison_hash, str(directory) if alone else "")
        passes.setdefault(key, []).append(directory)
    for directories in passes.values():
        if len(directories) == 1:
            yield run_experiment(runs[directories[0]], directories[0])
            continue
        with ExitStack() as stack:
            for directory in directories:
                module = stack.enter_context(_run_in(runs[directory], directory))
            configs = [(runs[directory].config, directory) for directory in directories]
            results = module.evaluate_together(configs)
        for index, directory in enumerate(directories):
            yield _record(runs[directory], results and results[index], directory)


@contextmanager
def _run_in(experiment: Experiment, directory: Path, resume: bool = False) -> Iterator[Any]:
    """A directory ready for a run, which is logged there; gives the module that runs the task."""
    for path in experiment.config.backbone.imports:
        load_user_module(path)
    module = experiment.entry_points()
    if not is_first_process():
        yield module
        return
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock_directory(directory):
            prepare_directory(experiment, directory, resume)
            try:
                with files.log_to(directory / files.LOG, LOGGERS), keep_heartbeat(directory):
                    yield module
            except ValueError:
                # Bad input, found before anything was computed: leave no trace of the attempt.
                if _names_in(directory) <= {files.SETTINGS, files.LOG}:
                    for name in (files.SETTINGS, files.LOG):
                        (directory / name).unlink(missing_ok=True)
                raise
    finally:
        with suppress(OSError):
            directory.rmdir()  # only if it is empty


def typed_command() -> str:
    """The command line of this process, as a person would type it."""
    return shlex.join(["sebench", *sys.argv[1:]])


def is_first_process() -> bool:
    """Of those that torchrun started: the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def read_recorded(experiment: Experiment, directory: Path) -> Record | None:
    """The record of this very experiment in ``directory``, if it is there and sound."""
    path = directory / files.RECORD
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None
    return record if record.hash == experiment.hash else None


def prepare_directory(experiment: Experiment, directory: Path, resume: bool = False) -> None:
    """Make ``directory``, clean it of files that were half written, and write the settings into it.

    Raises:
        ValueError: the directory holds something else, another experiment, or this one
            interrupted while ``resume`` is not asked for; or there is nothing to resume.
    """
    directory = Path(directory)
    path = directory / files.SETTINGS
    started = (directory / files.CHECKPOINT).exists()
    if path.is_file():
        found = read_yaml(path)
        if found.get("experiment") != experiment.hash:
            raise ValueError(
                f"{directory} holds another experiment ({_difference(found, experiment)}); "
                "choose another --output, or delete it"
            )
        if started and not resume:
            raise ValueError(
                f"{directory} holds this experiment, interrupted; go on with --resume, "
                "or delete it to start anew"
            )
    elif directory.exists() and (not directory.is_dir() or _names_in(directory)):
        raise ValueError(f"{directory} is not empty and holds no experiment; choose another")
    if resume and not started:
        raise ValueError(f"nothing to resume: {directory / files.CHECKPOINT} does not exist")
    content = {
        "task": experiment.task,
        "action": experiment.action,
        "recipe": experiment.recipe,
        "experiment": experiment.hash,
        "comparison_hash": experiment.comparison_hash,
        "config": experiment.settings,
    }
    directory.mkdir(parents=True, exist_ok=True)
    # A record there is damaged, or it would have been taken; it speaks of other weights.
    (directory / files.RECORD).unlink(missing_ok=True)
    files.remove_partial_files(directory)
    files.write_whole(path, yaml.safe_dump(content, sort_keys=False))


def _names_in(directory: Path) -> set[str]:
    """What is in a run directory, but for its lock and what a writer that was killed left."""
    names = {path.name for path in directory.iterdir()}
    passing = {files.LOCK, files.HEARTBEAT}
    return {name for name in names - passing if not files.is_partial(name)}


def _difference(found: Mapping[str, Any], experiment: Experiment) -> str:
    """The first settings in which a directory's experiment differs, for a message."""
    config, told = found.get("config"), ("task", "action")
    theirs = {key: found.get(key) for key in told}
    theirs |= flatten(config) if isinstance(config, dict) else {}
    ours = {key: getattr(experiment, key) for key in told} | flatten(experiment.settings)
    ours = json.loads(json.dumps(ours, default=list))
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    shown = [f"{key}: there {theirs.get(key)!r}, here {ours[key]!r}" for key in differing[:3]]
    return printable("; ".join(shown)) or "its data or weights differ"


# The record --------------------------------------------------------------------------------------


def build_record(
    experiment: Experiment,
    result: Result,
    directory: Path,
    command: str | None = None,
    git: Git | None = None,
) -> Record:
    """Check what a task's entry point returned and join it with where it came from.

    ``command`` and ``git`` are this process's and this moment's unless given.

    Raises:
        ValueError: an unknown, infinite or unexplained metric, or images that do not add up.
    """
    content = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "experiment": {
            **{key: getattr(experiment, key) for key in _TOLD},
            "settings": experiment.settings,
            "contents": experiment.contents(),
        },
        "backbone": describe_settings_network(experiment.config.backbone),
        "seed": experiment.config.seed,
        "metrics": _metrics(result),
        "files": {kind: getattr(result, kind) for kind in ("samples", "detections", "curve")},
        "command": command or typed_command(),
        "git": git or read_git(),
        "versions": describe_versions(),
        "device": _device(experiment.config.device),
        "plan": _sha256_above(Path(directory), files.PLAN),
        "locked_plan": _sha256_above(Path(directory), files.PLAN_LOCK),
        "memory": read_fitted(Path(directory)),
        **{key: getattr(result, key) for key in _TAKEN},
    }
    record = record_from(content, Path(directory))
    _check_rows(record)
    return record


def describe_settings_network(settings: BackboneSettings) -> dict[str, Any]:
    """What a record says of the network of some settings.

    Raises:
        ValueError: it is not registered.
    """
    info = describe_backbone(settings.name)
    twin = twin_of(settings.name, settings.options)
    if settings.twin:
        twin = (settings.twin, settings.twin_options)
    return {
        "name": settings.name,
        "options": settings.options,
        "family": info.family,
        "is_se": info.is_se,
        "twin": {"name": twin[0], "options": twin[1]} if twin else None,
    }


_TAKEN = (
    *("dataset", "protocol", "weights", "per_class", "cost", "timing", "selection"),
    *("input_format", "chance", "steps"),
)
_TOLD = ("hash", "comparison_hash", "task", "action", "recipe")


def _sha256_above(directory: Path, name: str) -> str | None:
    """Of a file in the folder of the study that a run belongs to, if it does."""
    path = directory.resolve().parent.parent / name
    return files.sha256(path) if path.is_file() else None


def _metrics(result: Result) -> dict[str, Metric]:
    metrics, images = {}, result.dataset.images
    for name, value in result.metrics.items():
        kind = METRICS.get(name, MetricKind(name, "", True))  # unknown ones are refused with all
        reason = result.missing.get(name)
        metrics[name] = Metric(value, kind.unit, kind.higher_is_better, images, reason)
    return metrics


def _check_rows(record: Record) -> None:
    samples = record.file("samples")
    if samples is not None:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_metadata(samples).num_rows
        if rows != record.dataset.images:
            raise ValueError(f"{samples} has {rows} rows for {record.dataset.images} images")


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
