"""What may be said of a run beside a published number.

A published number belongs to a row: a network with its options, trained by one recipe on one data
set from one kind of initial weights, and evaluated by one protocol. Every setting that can change a
result is compared with the recipe's, whatever the run calls its recipe, except for ``MAY_DIFFER``
and what the table says that its publication does not state.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.config import flatten
from backbones.files import RECORD
from backbones.registry import EXTERNAL
from backbones.result import WeightsFile
from backbones.zoo import PAIRS
from classification.protocols import PROTOCOLS
from tools.experiments.experiment import load_experiment
from tools.experiments.record import Network, Record, read_record
from tools.experiments.tasks import TASKS, settings_class
from tools.references.tables import Reference, Row, Table, load_references
from tools.statistics.published import (
    NOT_COMPARABLE,
    UNDECIDED,
    Verdict,
    judge_released,
    judge_trained,
    prediction_interval,
)

# Settings that cannot change a result, or whose effect is compared elsewhere.
MAY_DIFFER = {
    "seed": "repetitions differ in it",
    "data.name": "the data set and its split are compared",
    "data.skip_bad_images": "skipped images are counted, and compared",
    "data.accept_bad_boxes": "boxes left out are counted, and compared",
    "train.accumulate": "the same batch, computed in parts",
    "train.channels_last": "the order of numbers in memory",
}
_COMPARED_ELSEWHERE = ("backbone.", "evaluate.")  # the network; the protocol
_STILL_COMPARED = "backbone.allow_missing"
# What an option is where a table or a run does not name it. Biases are unknown for most tables.
DEFAULT_OPTIONS = {
    "reduction": 16,
    "squeeze": "avg",
    "excitation": "sigmoid",
    "se_stages": [2, 3, 4, 5],
    "placement": "standard",
    "attention": "se",
    "stem_pool": "padded",
}
_COCO_VAL = ("minival", "minival2014", "val2017")  # the same 5,000 images


@dataclass(frozen=True)
class Published:
    """A published number with the row and table it stands in."""

    table: Table
    row: Row
    reference: Reference


def references_of(record: Record, training: Record | None = None) -> list[Published]:
    """Find published numbers of the network of a run, whether or not they may be compared with it.

    Args:
        training: of an evaluation, the run that trained its weights, where it is known.
    """
    backbone = (training or record).backbone
    found = []
    for table in load_references().values():
        if table.task != record.task:
            continue
        for row in table.rows:
            same_network = row.backbone is not None and _same_network(row, backbone)
            if same_network or is_released(row, record.weights):
                found += [Published(table, row, r) for r in row.references]
    return [published for published in found if published.reference.metric in record.metrics]


def training_of(record: Record, trainings: Mapping[str, Record]) -> Record | None:
    """Find the run that trained the weights that ``record`` evaluated.

    Args:
        trainings: known training runs by the SHA-256 of the weights they wrote. Where it is not
            among them, a record beside the file of weights is looked for.
    """
    sha256 = record.weights.sha256
    if record.experiment.action != "evaluate" or not sha256:
        return None
    if sha256 in trainings:
        return trainings[sha256]
    beside = _record_beside(record.weights.path)
    return beside if beside is not None and beside.weights.sha256 == sha256 else None


def judge(
    runs: Sequence[Record],
    published: Published,
    margin: float,
    trainings: Sequence[Record | None] = (),
    run_sd: float | None = None,
) -> Verdict:
    """Say what runs tell of a published number.

    Args:
        runs: of one network, a seed each.
        margin: a difference that does not matter, in the unit of the metric.
        trainings: of evaluations, the runs that trained their weights, where they are known.

        run_sd: standard deviation over seeds, in that unit, stated for a single run.

    Released weights are held to rounding and decoder; networks trained anew to the noise of
    training, which one run does not tell: there it must be stated.
    """
    reference, values = published.reference, []
    for run, training in zip(runs, trainings or [None] * len(runs), strict=True):
        metric = run.metrics[reference.metric]
        if reason := not_comparable(run, published, training):
            return Verdict(NOT_COMPARABLE, reason)
        if metric.value is None:
            return Verdict(NOT_COMPARABLE, f"not measured: {metric.reason}")
        values.append(metric.value)
    mean, digits = sum(values) / len(values), digits_of(reference)
    if published.table.initial == "released":
        return judge_released(mean, reference.value, digits)
    if len(values) > 1:
        return judge_trained(values, reference.value, margin, digits=digits)
    if run_sd is None:
        return Verdict(
            UNDECIDED,
            f"differs by {mean - reference.value:+.2f}: one run does not tell the noise of training;"
            " state it by --run-sd",
        )
    verdict = judge_trained(values, reference.value, margin, digits=digits, sd=run_sd)
    low, high = prediction_interval(values, run_sd, digits)
    return Verdict(
        verdict.word,
        f"{verdict.reason}; the next is expected at {low:.2f} to {high:.2f}; one run,"
        f" {run_sd:g} points over seeds stated",
    )


def digits_of(reference: Reference) -> int:
    """How many decimal digits a number was printed with."""
    return len(reference.printed.partition(".")[2])


def not_comparable(
    record: Record, published: Published, training: Record | None = None
) -> str | None:
    """Say what forbids to compare a run with a published number; None where nothing does."""
    table, row = published.table, published.row
    protocol = str(record.protocol.name)
    expected = published.reference.protocol
    if record.synthetic or (training is not None and training.synthetic):
        return "synthetic data"
    if reason := _other_data(record, table):
        return reason
    if record.weights.ensemble:
        members = 1 + len(record.weights.ensemble)
        return f"an ensemble of {members} networks; published of one"
    if _canonical(protocol, table) != _canonical(expected, table):
        return f"other protocol: {protocol}, published with {expected}"
    if table.initial == "released":
        return _other_weights(record, row)
    trained = record if record.experiment.action == "train" else training
    if trained is None:
        return "weights of unknown training: no record of the run that wrote them was found"
    if reason := _other_initial(trained, table) or _other_training(trained, table):
        return reason
    if record is not trained and (added := _added_keys(record, trained)):
        return f"evaluated with other settings: {', '.join(added[:3])}"
    return _other_recipe(trained, table, row)


# Data and protocol -------------------------------------------------------------------------------


def _other_data(record: Record, table: Table) -> str | None:
    data, wanted = record.dataset, table.dataset
    same = data.name == wanted["name"] and data.split == wanted["split"]
    if wanted["name"] == "coco":
        same = str(data.name).startswith("coco") and data.split in _COCO_VAL
    if not same:
        return (
            f"other data: {data.name} {data.split}, published on {wanted['name']} {wanted['split']}"
        )
    if data.images != wanted["images"]:
        return f"other data: {data.images} of {wanted['images']} images"
    return None


def _other_training(trained: Record, table: Table) -> str | None:
    """Whether the training saw other images than the published network."""
    data, wanted = trained.dataset, table.dataset["train_images"]
    seen = data.train_images
    if wanted is not None:
        if seen is None:
            return f"the record does not say that {wanted} images were trained on"
        seen += data.held_out_images or 0
        if seen != wanted:
            return f"other data: {seen} images of training, published with {wanted}"
    for key, what in (("skipped_train_images", "images"), ("bad_boxes", "boxes")):
        left_out = getattr(data, key) or 0
        if left_out > (10 if key == "bad_boxes" else 0):  # COCO's own boxes without height
            return f"other data: {left_out} {what} were left out"
    return None


def _canonical(protocol: str, table: Table) -> tuple[str, frozenset[str]]:
    """A protocol's name and its changes, without those that repeat what it says anyway."""
    base, *changes = protocol.split("+")
    known = PROTOCOLS.get(base)
    unstated = {f"evaluate.{key}" for key in ("resize", "crop")} & {*table.may_differ}
    kept = set()
    for change in changes:
        found = re.fullmatch(r"(resize|crop)(\d+)", change)
        if found and f"evaluate.{found[1]}" in unstated:
            continue
        if known and change in (*(f"resize{side}" for side in known.resize), f"crop{known.crop}"):
            continue
        kept.add(change)
    return base, frozenset(kept)


# Weights -----------------------------------------------------------------------------------------


def is_released(row: Row, weights: WeightsFile) -> bool:
    """Whether weights are those of a row, by the name a library has them by or their SHA-256."""
    if row.download is not None and weights.path == row.download:
        return True
    begins = row.weights.rsplit("-", 1)[-1] if row.weights else None
    return begins is not None and str(weights.sha256 or "").startswith(begins)


def _other_weights(record: Record, row: Row) -> str | None:
    if record.experiment.action == "train":
        return "other training: the published weights were trained elsewhere"
    if not is_released(row, record.weights):
        return f"other weights than the released {row.weights or row.network}"
    return None


def _other_initial(trained: Record, table: Table) -> str | None:
    """Whether a training started from other weights than the published one."""
    initial = trained.weights.initial
    given = _leaves(trained.experiment.settings).get("backbone.weights")
    if table.initial == "scratch":
        path = initial.path if initial is not None else given
        return f"started from {path}, published from scratch" if path else None
    if initial is None or not initial.sha256:
        return "trained from scratch, published from ImageNet weights"
    if missing := initial.missing:
        return f"{len(missing)} tensors were not in the initial weights"
    if _knows_imagenet(initial):
        return None
    return (
        f"initial weights of unknown training: {initial.path}; known are released files,"
        " names of timm and torchvision, and weights with the record of their training beside them"
    )


def _knows_imagenet(initial: WeightsFile) -> bool:
    """Whether weights are known to be those of an ImageNet classifier."""
    path = initial.path
    if path.startswith(EXTERNAL):
        return "in1k" in path.lower() or "imagenet1k" in path.lower()
    tables = load_references().values()
    released = [row for t in tables if t.initial == "released" for row in t.rows]
    if any(is_released(row, initial) for row in released):
        return True
    training = _record_beside(path)
    return (
        training is not None
        and training.weights.sha256 == initial.sha256
        and training.dataset.name == "imagenet"
        and training.dataset.classes == 1000
        and not training.synthetic
    )


@functools.lru_cache(maxsize=4096)
def _record_beside(path: str | None) -> Record | None:
    """The record of the run that a file of weights lies in."""
    file = Path(path).expanduser().parent / RECORD if path else None
    try:
        return read_record(file) if file and file.is_file() else None
    except (ValueError, OSError):
        return None


# Settings ----------------------------------------------------------------------------------------


def _other_recipe(trained: Record, table: Table, row: Row) -> str | None:
    if not row.recipes:
        return "no recipe of this suite trains as the published network was trained"
    used, asked = _leaves(trained.experiment.settings), json.dumps(row.settings, default=float)
    changes = {
        name: list(_changed(used, table, *_expected(trained.task, name, asked)))
        for name in row.recipes
    }
    if not all(changes.values()):
        return None
    named = trained.experiment.recipe
    if named not in changes:
        return f"other recipe: {named}, the row's is {' or '.join(row.recipes)}"
    return f"the recipe was changed: {', '.join(changes[named][:3])}"


@functools.cache
def _expected(
    task: str, recipe: str, changes: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings that a recipe comes to, those of them that can change a result, and the defaults."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in json.loads(changes).items()]
    experiment = load_experiment(task, recipe, overrides)
    defaults = dataclasses.asdict(settings_class(TASKS[task])())
    everything, matters = _leaves(experiment.settings), _leaves(experiment.identity())
    kept = {key: value for key, value in everything.items() if key in matters}
    return everything, kept, _leaves(defaults)


def _changed(
    used: Mapping[str, Any],
    table: Table,
    expected: Mapping[str, Any],
    matters: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Iterator[str]:
    """Settings in which a run departs from what is expected."""
    for key in dict.fromkeys((*used, *matters)):
        elsewhere = key.startswith(_COMPARED_ELSEWHERE) and key != _STILL_COMPARED
        free = key in expected and key not in matters
        if elsewhere or free or key in MAY_DIFFER or key in table.may_differ:
            continue
        default = defaults.get(key)
        ours, theirs = used.get(key, default), matters.get(key, default)
        if not _equal(ours, theirs):
            yield f"{key}={json.dumps(ours)}, in the recipe {json.dumps(theirs)}"


def _added_keys(record: Record, trained: Record) -> list[str]:
    """Keys of Detectron2 that an evaluation sets otherwise than the training."""
    here, there = (_leaves(r.experiment.settings) for r in (record, trained))
    keys = sorted(key for key in {*here, *there} if key.startswith("detectron2."))
    return [f"{key}={here.get(key)}" for key in keys if not _equal(here.get(key), there.get(key))]


def _equal(one: Any, other: Any) -> bool:
    """Equal as settings are: a tuple is a list, 1 is 1.0, and a truth value is no number."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(a, b) for a, b in pairs)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _leaves(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted names; an empty group has none."""
    return {key: value for key, value in flatten(settings).items() if value != {}}


# Networks ----------------------------------------------------------------------------------------


def _same_network(row: Row, backbone: Network) -> bool:
    if row.backbone != backbone.name:
        return False
    ours, published = backbone.options, row.options
    names = set(DEFAULT_OPTIONS) | set(published) | set(ours)
    if "se_bias" not in published:
        names.discard("se_bias")
    pair = next((pair for pair in PAIRS if row.backbone in (pair.plain, pair.se)), None)
    in_1x1 = pair.arguments.get("stride_in_1x1", True) if pair else True
    defaults = DEFAULT_OPTIONS | {"stride_in_1x1": in_1x1}
    return all(
        _equal(*(_sorted(side.get(name, defaults.get(name))) for side in (published, ours)))
        for name in names
    )


def _sorted(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, (list, tuple)) else value
