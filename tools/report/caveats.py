"""What a reader must know beside the numbers: how rows differ, and which results say little."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from backbones.config import describe_settings, flatten
from tools.experiments.record import METRICS, Metric, Record
from tools.experiments.tasks import TASKS, settings_class
from tools.report.pairs import Pair

NEAR_CHANCE = 2.0  # percent of the way from guessing to all right
FEW_STEPS = 10
_SHOWN = 3  # settings


def marks_of(pair: Pair, trained: Sequence[Record]) -> tuple[str, ...]:
    """What stands beside a pair's numbers.

    Args:
        trained: for every run of the pair, the run that trained its weights: itself, or another.
    """
    runs = [*pair.plain, *pair.candidate]
    marks = [f"unequal twins: {text}" for text in pair.unequal]
    if len(pair.candidate) == 1:
        marks.append("one seed: the noise of training is not in the interval")
    if any(record.git.dirty for record in runs):
        marks.append("made with uncommitted changes to the suite")
    if any(not str(record.selection).startswith("last") for record in runs):
        marks.append(f"selection: {runs[0].selection}")
    for name, side in (("plain", pair.plain), ("candidate", pair.candidate)):
        found = [near_chance(record) for record in side]
        if all(found):
            marks.append(f"the {name} network is near chance: {found[0]}")
    for record in {id(run): run for run in (*runs, *trained)}.values():
        if record.memory is not None and record.memory.accumulate is not None:
            marks.append(
                f"memory was short: {record.backbone.name}, seed {record.seed}, was trained with "
                f"{record.memory.accumulate} parts a batch"
            )
    short = next(filter(None, map(very_short, trained)), None)
    if short:
        marks.append(f"hardly trained: {short}")
    return tuple(marks)


def says_little(runs: Sequence[Record], trained: Sequence[Record]) -> tuple[str, ...]:
    """Why the runs of a pair cannot tell twins apart; nothing where they can."""
    found = []
    if all(reasons := [near_chance(record) for record in runs]):
        found.append(f"near chance: {reasons[0]}")
    if any(reasons := [very_short(record) for record in trained]):
        found.append(f"hardly trained: {next(filter(None, reasons))}")
    return tuple(found)


def near_chance(record: Record) -> str | None:
    """What guessing would give, where the result is hardly better or not at all."""
    name = TASKS[record.task].headline[0]
    metric = record.metrics.get(name)
    if metric is None or metric.value is None:
        return None
    best = 100.0 if metric.higher_is_better else 0.0
    chance = _chance(record, metric)
    points = metric.value - chance if metric.higher_is_better else chance - metric.value
    # Guesses themselves vary from one set of images to another.
    share = chance / 100
    noise = 200 * math.sqrt(share * (1 - share) / metric.n)
    if points > max(NEAR_CHANCE / 100 * abs(best - chance), noise):
        return None
    label = METRICS[name].label
    return f"guessing gives {label} {chance:.4g} %" if chance else f"{label} is near 0"


def _chance(record: Record, metric: Metric) -> float:
    """The headline metric of guessing, percent; of records that do not tell it by the classes."""
    if record.chance is not None:
        return record.chance
    return 0.0 if metric.higher_is_better else 100 * (1 - 1 / record.dataset.classes)


def very_short(record: Record) -> str | None:
    """How long a training was, where that was hardly any."""
    train = record.experiment.settings.get("train")
    if record.experiment.action != "train" or not isinstance(train, dict):
        return None
    steps = record.steps if record.steps is not None else train.get("iterations")
    batch, images = train.get("batch_size"), record.dataset.train_images
    if not (isinstance(steps, int) and isinstance(batch, int) and images):
        return None
    passes = steps * batch / images
    # An epoch leaves out the images that do not fill a batch.
    if steps >= FEW_STEPS and passes > 1 - batch / images:
        return None
    iterations = f"{steps} iteration{'s' if steps != 1 else ''}"
    return f"{iterations}, {passes:.2g} passes over the training images"


# What tells rows apart ---------------------------------------------------------------------------


def variants(records: Sequence[Record]) -> list[str]:
    """For each run, in what it differs from the others of its network and data; "" where in nothing.

    Seeds are repetitions, and settings that cannot change a result do not count.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        data, network = record.dataset, record.backbone
        key = (record.task, data.name, data.split, data.images, record.synthetic)
        groups[key, network.name, str(network.options)].append(place)
    found = [""] * len(records)
    for places in groups.values():
        conditions = {
            (r.comparison_hash, r.protocol.name, r.experiment.action)
            for r in (records[place] for place in places)
        }
        if len(conditions) > 1:
            described = [_describe(records[place]) for place in places]
            keys = dict.fromkeys(key for one in described for key in one)
            differing = [k for k in keys if len({str(one.get(k)) for one in described}) > 1]
            for place, one in zip(places, described, strict=True):
                found[place] = _in_words(one, differing)
    return found


def _describe(record: Record) -> dict[str, Any]:
    free = _free_settings(record.task)
    settings = {
        key: value
        for key, value in flatten(record.experiment.settings).items()
        if key not in free and not key.startswith(("backbone.", "evaluate.")) and value != {}
    }
    return {
        "protocol": record.protocol.name,
        "action": record.experiment.action,
        "recipe": record.experiment.recipe,
        **settings,
        "commit": str(record.git.commit or "none")[:9],
    }


@functools.cache
def _free_settings(task: str) -> frozenset[str]:
    infos = describe_settings(settings_class(TASKS[task]))
    return frozenset({"seed"} | {info.name for info in infos if not info.identity})


def _in_words(described: dict[str, Any], differing: list[str]) -> str:
    said = {
        "protocol": str(described["protocol"]),
        "recipe": str(described["recipe"]),
        "action": "as trained" if described["action"] == "train" else "evaluated",
        "commit": f"commit {described['commit']}",
    }
    words = [said.get(key, f"{key}={described.get(key)}") for key in differing]
    more = f", and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{', '.join(words[:_SHOWN])}{more}"
