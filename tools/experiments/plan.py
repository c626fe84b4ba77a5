"""Before compute is spent: what a study will be able to tell, and what it costs; and a plan that is fixed.

planned = compare_cells(cells, images, noise)
lock(cells, output)         # then `check_lock` refuses other cells than these
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from backbones import files
from backbones.config import Count, NonNegative, WholeNumber
from tools.experiments.networks import network_label
from tools.experiments.probe import Cost
from tools.experiments.run import describe_settings_network
from tools.experiments.status import PlannedCell, plans_near, read_plan, read_states, write_plan
from tools.experiments.study import Cell, Looks
from tools.experiments.tasks import TASKS
from tools.experiments.typed_json import read_typed
from tools.statistics import planning
from tools.statistics.differences import CONFIDENCE

_MOST_IMAGES = 10_000_000
_LARGEST_LOCK = 2**26  # bytes


_Points = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the difference in one pair of runs on `images` images, in points."""

    seed_sd: _Points  # of the networks' true metric
    churn_sd: _Points  # seed x image
    image_sd: _Points  # which images there are
    images: Count
    source: str
    pairs: WholeNumber = 0  # of runs that churn and images are known from; 0: assumed
    degrees: WholeNumber = 0  # of freedom that the spread of seeds is known on; 0: assumed
    varies: NonNegative = 0.1  # relative, over pairs: the share of images on which one disagrees

    def on(self, images: int) -> Noise:
        """The same on a set of another size."""
        shrink = math.sqrt(self.images / images)
        return replace(
            self, churn_sd=self.churn_sd * shrink, image_sd=self.image_sd * shrink, images=images
        )


# Where nothing was recorded. Of one run: 0.08 points of true accuracy and the churn that makes what is
# seen on the set 0.13 (ImageNet), 0.17 (CIFAR-10) and 0.19 (Places365) points, in the range of Jordan,
# "On the variance of neural network training with respect to test sets and distributions", ICLR 2024,
# and Picard, arXiv 2109.08203. A fifth of the images on which twins disagree is the networks' own. AP:
# 0.15 points of one run, and a standard error of 0.37 over val2017's images, are assumptions.
_ASSUMED = "assumed: nothing of its kind is recorded"
_DEFAULTS = {
    "cifar10": Noise(0.113, 0.210, 0.105, 10_000, _ASSUMED),
    "places365": Noise(0.113, 0.243, 0.122, 36_500, _ASSUMED),
    "AP": Noise(0.15, 0.15, 0.34, 5_000, _ASSUMED),
    "": Noise(0.113, 0.144, 0.072, 50_000, _ASSUMED),
}


@dataclass(frozen=True)
class PlannedComparison:
    """What twins in a study will tell, in points of their headline metric."""

    entry: str
    task: str
    metric: str
    plain: str
    candidate: str
    seeds: Count
    noise: Noise  # on the images that it will be measured on
    half_width: NonNegative  # of the 95 % interval, as expected; with one seed about the weights
    detectable: NonNegative  # seen in 80 % of such studies
    wanted: NonNegative | None = None  # a difference asked for
    seeds_needed: Count | None = None  # to see it in 80 %; None: no number of seeds does
    images_needed: Count | None = None  # with these seeds; None: no number of images does
    half_width_range: tuple[NonNegative, NonNegative] | None = None  # of 80 % of such studies

    @property
    def images(self) -> int:
        """Of the reported split."""
        return self.noise.images


def default_noise(task: str, dataset: str) -> Noise:
    """What is assumed of a task's headline metric where nothing is recorded."""
    return _DEFAULTS.get(TASKS[task].headline[0]) or _DEFAULTS.get(dataset, _DEFAULTS[""])


def compare_cells(
    cells: Sequence[Cell],
    images: Mapping[str, int],
    recorded: Mapping[tuple[str, str], Noise],
    wanted: float | None = None,
    looks: Looks | None = None,
) -> list[PlannedComparison]:
    """What each candidate of a study and its plain twin will tell, in the order of the cells.

    Args:
        images: reported images of each entry.
        recorded: noise of earlier studies, by task and data set.
        wanted: a difference to be seen, points.
        looks: of the study; what is expected is then of the last one, at its level.
    """
    level = 1 - CONFIDENCE if looks is None else planning.look_levels(looks.looks)[-1]
    by_network: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        key = (cell.entry, _key(describe_settings_network(cell.experiment.config.backbone)))
        by_network.setdefault(key, []).append(cell)
    planned = []
    for (entry, _), candidates in by_network.items():
        first = candidates[0].experiment
        twin = describe_settings_network(first.config.backbone)["twin"]
        plain = by_network.get((entry, _key(twin))) if twin else None
        if plain is None:
            continue
        seeds = {cell.experiment.config.seed for cell in plain}
        shared = sum(cell.experiment.config.seed in seeds for cell in candidates)
        data = first.config.data.name
        noise = recorded.get((first.task, data)) or default_noise(first.task, data)
        if shared:
            names = (_label(plain[0]), _label(candidates[0]))
            noise = noise.on(images.get(entry, noise.images))
            planned.append(_compare(entry, first.task, names, shared, noise, wanted, 1 - level))
    return planned


def _key(network: Mapping[str, Any]) -> str:
    return json.dumps([network["name"], network["options"]], sort_keys=True, default=str)


def _label(cell: Cell) -> str:
    backbone = cell.experiment.config.backbone
    return network_label(backbone.name, backbone.options)


def _compare(
    entry: str,
    task: str,
    names: tuple[str, str],
    seeds: int,
    noise: Noise,
    wanted: float | None,
    confidence: float,
) -> PlannedComparison:
    seeds_needed = images_needed = None
    if wanted:
        parts = (noise.seed_sd, noise.churn_sd, noise.image_sd)
        seeds_needed = planning.seeds_needed(wanted, *parts, confidence=confidence)
        images_needed = _images_needed(wanted, seeds, noise, confidence)
    return PlannedComparison(
        *(entry, task, TASKS[task].headline[0], *names, seeds, noise),
        *expect(seeds, noise, confidence),
        wanted,
        seeds_needed,
        images_needed,
        expect_range(seeds, noise, confidence),
    )


def expect(seeds: int, noise: Noise, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Half-width and detectable difference; with one seed of two sets of weights, by the images."""
    parts = (noise.seed_sd, noise.churn_sd, noise.image_sd)
    if seeds > 1:
        return (
            planning.expected_half_width(seeds, *parts, confidence),
            planning.detectable_with_seeds(seeds, *parts, confidence=confidence),
        )
    return planning.expected_of_one_pair(math.hypot(noise.churn_sd, noise.image_sd))


def expect_range(
    seeds: int, noise: Noise, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Between which half-widths 80 % of such studies find theirs; None: the noise is only assumed."""
    if seeds > 1 and noise.degrees:
        parts = (noise.seed_sd, noise.churn_sd, noise.image_sd)
        return planning.half_width_range(seeds, *parts, confidence, noise.degrees)
    if seeds == 1 and noise.pairs:
        of_pair = math.hypot(noise.churn_sd, noise.image_sd)
        return planning.one_pair_range(of_pair, noise.images, noise.pairs, noise.varies)
    return None


def _images_needed(wanted: float, seeds: int, noise: Noise, confidence: float) -> int | None:
    """The smallest set, to a hundredth, on which these seeds show a difference."""
    low, high = 1, _MOST_IMAGES
    if expect(seeds, noise.on(high), confidence)[1] > wanted:
        return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if expect(seeds, noise.on(middle), confidence)[1] > wanted:
            low = middle
        else:
            high = middle
    return high


# A plan that is fixed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Amendment:
    """A change of a plan after it was fixed."""

    made: str  # ISO 8601
    why: str
    added: list[str]
    removed: list[str]
    changed: list[str]
    sha256_before: str = ""  # of the file, which records of before name


@dataclass(frozen=True)
class Lock:
    """Content of the file: what was planned, and what was expected of it."""

    made: str  # ISO 8601
    cells: dict[str, str]  # name -> hash of the settings, as amended last
    comparisons: list[PlannedComparison]
    costs: dict[str, Cost]  # by ENTRY/NETWORK, of one run
    amendments: list[Amendment] = field(default_factory=list)
    looks: Looks | None = None


def read_lock(output: Path) -> Lock | None:
    """The plan that was fixed for a study, if it was.

    Raises:
        ValueError: the file is damaged.
    """
    path = output / files.PLAN_LOCK
    if not path.is_file():
        return None
    try:
        return read_typed(path, Lock, _LARGEST_LOCK)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no plan can be read from it: {error}") from None


def check_lockable(output: Path, why: str | None) -> None:
    """Raise a ValueError where a plan is fixed already and no reason is given, or none is to be amended."""
    before = read_lock(output)
    if before is None and why is not None:
        raise ValueError(f"--amend: {output} has no fixed plan; fix one with --lock")
    if before is not None and why is None:
        raise ValueError(
            f"{output / files.PLAN_LOCK} is fixed since {before.made}; change it with --amend WHY"
        )


def lock(
    cells: Sequence[Cell],
    output: Path,
    looks: Looks | None,
    comparisons: Sequence[PlannedComparison],
    costs: Mapping[str, Cost],
    why: str | None = None,
) -> Path:
    """Fix the plan of a study, or with `why` change one that is fixed.

    Raises:
        ValueError: as `check_lockable`.
    """
    check_lockable(output, why)
    before, now = read_lock(output), datetime.now(timezone.utc).isoformat(timespec="seconds")
    planned = _hashes(cells)
    locked = Lock(now, planned, list(comparisons), dict(costs), looks=looks)
    if before is not None:
        sha256 = files.sha256(output / files.PLAN_LOCK)
        amendment = Amendment(now, why or "", *_changes(before.cells, planned), sha256)
        locked = replace(
            locked,
            made=before.made,
            costs={**before.costs, **costs},
            amendments=[*before.amendments, amendment],
        )
    output.mkdir(parents=True, exist_ok=True)
    path = output / files.PLAN_LOCK
    files.write_whole(path, json.dumps(asdict(locked), indent=1))
    write_plan(cells, output)
    return path


def check_lock(cells: Sequence[Cell], output: Path, looks: Looks | None = None) -> None:
    """Refuse to run anything else than the plan that was fixed.

    Raises:
        ValueError: cells or looks are others, which are named; or a study with looks has no fixed plan.
    """
    locked = read_lock(output)
    if locked is None:
        if looks is not None:
            raise ValueError(
                "seeds.looks count only in a plan that is fixed before the first run: "
                f"sebench plan STUDY -o {output} --lock"
            )
        return
    named = zip(
        ("added", "removed", "changed"), _changes(locked.cells, _hashes(cells)), strict=True
    )
    told = [
        f"{what}: {', '.join(names[:3])}{'...' if len(names) > 3 else ''}"
        for what, names in named
        if names
    ]
    if locked.looks != looks:
        told.append(f"looks: {_in_words(locked.looks)} there, {_in_words(looks)} here")
    if told:
        raise ValueError(
            f"this is not the plan that was fixed on {locked.made} ({'; '.join(told)}); run that, or "
            f"say why it changes: sebench plan STUDY -o {output} --amend WHY"
        )


def beyond_look(output: Path, cells: Iterable[PlannedCell], recorded: Container[str]) -> set[str]:
    """Names of the cells after a look that has everything it needs: the study may have ended there."""
    try:
        locked = read_lock(output)
    except ValueError:
        return set()
    cells = list(cells)
    for look in locked.looks.looks if locked and locked.looks else ():
        later = {cell.name for cell in cells if cell.seed >= look}
        if all((cell.name in recorded) != (cell.name in later) for cell in cells):
            return later
    return set()


def describe_missing(paths: Iterable[str | Path]) -> list[str]:
    """What the studies that some runs or folders of runs belong to lack yet, a line each."""
    lines = []
    for output in (plan.parent for plan in plans_near(paths)):
        try:
            states = read_states(read_plan(output), output)
        except ValueError as error:
            lines.append(str(error))
            continue
        missing: dict[str, list[str]] = {}
        done_names = {state.cell.name for state in states if state.state == "done"}
        later = beyond_look(output, (state.cell for state in states), done_names)
        for state in states:
            if state.state != "done" and state.cell.name not in later:
                kind = "failed" if state.state == "failed" else "to come"
                missing.setdefault(kind, []).append(state.cell.name)
        if missing:
            parts = [f"{len(names)} {kind}: {_some(names)}" for kind, names in missing.items()]
            lines.append(
                f"the study is not complete: {len(done_names)} of {len(states)} cells are recorded; "
                + "; ".join(parts)
            )
    return lines


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _in_words(looks: Looks | None) -> str:
    return "none" if looks is None else f"{looks.looks} until {looks.stop}"


def _hashes(cells: Iterable[Cell]) -> dict[str, str]:
    return {cell.name: _hash(cell) for cell in cells}


def _hash(cell: Cell) -> str:
    """Of what can change a cell's result and is known before anything ran.

    Wherever its folder lies, with the files that settings name, but for weights that the study itself
    has yet to make.
    """
    experiment = cell.experiment
    contents = {} if cell.source else dict(experiment.contents())
    contents.pop(experiment.config.data.root, None)  # synthetic data may still be to make
    identity = experiment.identity(contents)
    if cell.source is not None:
        identity["backbone"]["weights"] = f"{cell.source.parent.name}/{cell.source.name}"
    text = json.dumps(identity, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def _changes(
    before: Mapping[str, str], now: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Names that were added, removed and changed."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    return [n for n in now if n not in before], [n for n in before if n not in now], changed
