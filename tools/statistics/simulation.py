"""How often the suite's own verdicts err: made studies, each compared as a report compares runs.

A study draws new images and new training runs of two networks and calls ``compare_accuracy`` or
``compare_coco_metrics`` (or, for many seeds of detectors, what that ends in) on the first one, two
to ten seeds of them. Of many such studies, of networks that do not differ and of networks that do,
one counts how often a difference is called clear (size and power), how often the interval holds the
true one (coverage), and whether interval and p-value ever disagree.

With one seed the truth is that of the two sets of weights, with several that of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from detection.annotations import Annotations, Results
from tools.statistics.accuracy import compare_accuracy
from tools.statistics.coco_metrics import compare_coco_metrics
from tools.statistics.differences import (
    CONFIDENCE,
    Difference,
    differences_over_seeds,
    noise_of_resamples,
)
from tools.statistics.planning import look_levels

SEEDS = tuple(range(1, 11))
LOOKS = (3, 5, 8, 10)
MOST_SIZE, LEAST_SIZE = 0.07, 0.02  # of a 5 % test; the least from three seeds on
# Images whose answer depends on the run; the rest are right (or wrong) in nearly every run.
_OPEN, _EASY, _EASY_RIGHT, _HARD_RIGHT = 0.3, 0.6, 0.98, 0.04
_OWN = 0.15  # images that a network has its own way with
_AP_IMAGE_SD, _AP_CHURN_SD, _AP_IMAGES = 0.30, 0.15, 5000  # points on COCO's val2017
_AP_RESAMPLES = 200
_BEGIN, _END = "<!-- simulated: begin -->", "<!-- simulated: end -->"


@dataclass(frozen=True)
class Setting:
    """A kind of study: metric, images, standard deviation of a run and true gain, in points.

    ``metric``: "top-k", "AP" (values and resamples drawn from their model) or "boxes" (detections
    scored in full). ``same``: the same network on both sides, which differs by churn alone.
    """

    metric: str
    images: int
    run_sd: float
    gain: float
    same: bool = False


@dataclass(frozen=True)
class Rates:
    """What came of the studies of a setting, shares (0 to 1), one for each number of seeds.

    ``clear``: p-value below 5 %; ``covered``: the interval holds the truth; ``at_odds``: interval
    and p-value disagree; ``looks``: clear at any of LOOKS by its level, None where not all were
    simulated.
    """

    setting: Setting
    studies: int
    seeds: tuple[int, ...]
    clear: tuple[float, ...]
    covered: tuple[float, ...]
    at_odds: float
    looks: float | None

    @property
    def wrong(self) -> tuple[float, ...]:
        """Size: false alarms, and with one seed intervals that miss the weights' own difference."""
        first = 1 - self.covered[0] if self.seeds[0] == 1 else self.clear[0]
        return (first, *self.clear[1:])


def settings_of_table() -> dict[Setting, int]:
    """The kinds of study that the table of README.md shows, and how many of each it takes."""
    wanted: dict[Setting, int] = {}
    for images, gain, studies in ((500, 4.0, 2000), (5000, 1.2, 2000), (50_000, 0.6, 600)):
        wanted[Setting("top-k", images, 0.0, 0.0, same=True)] = studies
        for run_sd in (0.0, 0.1, 0.2, 0.4):
            wanted[Setting("top-k", images, run_sd, 0.0)] = studies
            wanted[Setting("top-k", images, run_sd, gain)] = studies
    for images, gain in ((500, 3.0), (5000, 1.0), (50_000, 0.6)):
        for run_sd in (0.0, 0.1, 0.2, 0.4):
            wanted[Setting("AP", images, run_sd, 0.0)] = 1500
            wanted[Setting("AP", images, run_sd, gain)] = 1500
    wanted[Setting("boxes", 100, 0.0, 0.0)] = 400
    wanted[Setting("boxes", 100, 0.0, 20.0)] = 200
    return wanted


def simulate(setting: Setting, studies: int, seed: int = 0) -> Rates:
    """Draw ``studies`` of a setting and count.

    Raises:
        ValueError: a metric that is not simulated.
    """
    return _count(setting, [_draw((setting, studies, seed))])


def simulate_all(settings: dict[Setting, int], workers: int = 2) -> list[Rates]:
    """Every setting with its number of studies, in parts on ``workers`` processes."""
    parts = [
        (setting, min(200, studies - start), start)
        for setting, studies in sorted(settings.items(), key=lambda item: -item[0].images)
        for start in range(0, studies, 200)
    ]
    with ProcessPoolExecutor(workers) as pool:
        done = list(zip(parts, pool.map(_draw, parts), strict=True))
    return [_count(s, [found for (of, *_), found in done if of == s]) for s in settings]


def _draw(part: tuple[Setting, int, int]) -> dict[int, np.ndarray]:
    """Studies of a setting by their seeds: p-value, interval's ends and truth, (studies, 4)."""
    setting, studies, seed = part
    draws = {"top-k": _draw_accuracies, "AP": _draw_precisions, "boxes": _draw_detectors}
    if setting.metric not in draws:
        raise ValueError(f"metric {setting.metric!r}: expected one of {', '.join(draws)}")
    rng = np.random.default_rng([seed, setting.images, round(1000 * setting.run_sd)])
    rows: dict[int, list[list[float | None]]] = {}
    for _ in range(studies):
        compared, weights, networks = draws[setting.metric](setting, rng)
        for seeds, found in compared.items():
            truth = weights if seeds == 1 else networks
            rows.setdefault(seeds, []).append([found.p_value, found.low, found.high, truth])
    return {seeds: np.array(row, dtype=float) for seeds, row in rows.items()}


def _count(setting: Setting, parts: Sequence[dict[int, np.ndarray]]) -> Rates:
    seeds = tuple(parts[0])
    drawn = np.stack([np.concatenate([part[s] for part in parts]) for s in seeds], axis=1)
    p_values, low, high, truth = np.moveaxis(drawn, 2, 0)  # (studies, seeds) each
    clear = p_values < 1 - CONFIDENCE
    odds = clear == ((low <= 0) & (high >= 0))
    covered = np.where(np.isnan(truth), np.nan, (low <= truth) & (truth <= high))
    looks = None
    if set(LOOKS) <= set(seeds):
        at = [seeds.index(look) for look in LOOKS]
        looks = float(np.mean((p_values[:, at] < look_levels(LOOKS)).any(axis=1)))
    return Rates(
        setting,
        len(drawn),
        seeds,
        tuple(clear.mean(axis=0).tolist()),
        tuple(covered.mean(axis=0).tolist()),
        float(odds.mean()),
        looks,
    )


def shortcomings(found: Iterable[Rates]) -> list[str]:
    """What of this breaks a promise: size, interval against p-value, power over seeds.

    Each with three standard errors of its own simulation to spare.
    """
    said = []
    for rates in found:
        where = _name(rates.setting)
        spare = 3 * np.sqrt(0.05 * 0.95 / rates.studies)
        if rates.at_odds:
            said.append(f"{where}: interval and p-value disagree in {rates.at_odds:.1%}")
        if rates.setting.gain:
            slack = 3 * np.sqrt(2 * 0.25 / rates.studies)
            several = [(s, p) for s, p in zip(rates.seeds, rates.clear, strict=True) if s > 1]
            for (_, before), (seeds, power) in pairwise(several):
                if power < before - slack:
                    said.append(f"{where}: power falls to {power:.1%} with {seeds} seeds")
            continue
        for seeds, size in zip(rates.seeds, rates.wrong, strict=True):
            if size > MOST_SIZE + spare:
                said.append(f"{where}: size {size:.1%} with {seeds} seeds")
            if seeds >= 3 and size < LEAST_SIZE - spare:
                said.append(f"{where}: size only {size:.1%} with {seeds} seeds")
        if rates.looks is not None and rates.looks > 0.05 + spare:
            said.append(f"{where}: looks at {LOOKS} err in {rates.looks:.1%}")
    return said


def as_markdown(found: Sequence[Rates]) -> str:
    """The tables of README.md: size, power and coverage in percent, by seeds."""
    columns = sorted({seeds for rates in found for seeds in rates.seeds})
    null = [rates for rates in found if not rates.setting.gain]
    real = [rates for rates in found if rates.setting.gain]
    lines = ["Size: a difference is called clear, and there is none (with one seed: the interval",
             "misses the weights' own difference). The last column: at any of the looks",
             f"{', '.join(map(str, LOOKS))}, each by its level.", ""]  # fmt: skip
    lines += _table(null, columns, lambda rates: rates.wrong, looks=True)
    lines += ["", "Power: a difference is called clear, and there is one.", ""]
    lines += _table(real, columns, lambda rates: rates.clear)
    lines += ["", "Coverage: the 95 % interval holds the true difference, of the weights with one",
              "seed, of the networks with several.", ""]  # fmt: skip
    known = [rates for rates in real if not np.isnan(rates.covered).all()]
    lines += _table(known, columns, lambda rates: rates.covered)
    return "\n".join(lines) + "\n"


def replace_tables(text: str, tables: str) -> str:
    """Put new tables between the two marks of a Markdown text.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= start < end:
        raise ValueError(f"no place for the tables: expected the lines {_BEGIN} and {_END}")
    return f"{text[: start + len(_BEGIN)]}\n\n{tables}\n{text[end:]}"


# One study ---------------------------------------------------------------------------------------


# By number of seeds what the suite says; the true difference, in points, of the first seed's two
# sets of weights; and that of the networks.
_Study = tuple[dict[int, Difference], float, float]


def _draw_accuracies(setting: Setting, rng: np.random.Generator) -> _Study:
    n, most = setting.images, SEEDS[-1]
    group = rng.random(n, dtype=np.float32)
    open_ = group < _OPEN
    base = np.where(open_, rng.uniform(0.2, 0.8, n), 0.0)
    own = np.zeros(n, bool) if setting.same else ~open_ & (rng.random(n) < _OWN / (1 - _OPEN))
    settled = np.where(group < _OPEN + _EASY, _EASY_RIGHT, _HARD_RIGHT)
    sides, shifts = [], []
    for gain in (0.0, setting.gain):
        draw = np.where(rng.random(n) < _EASY / (1 - _OPEN), _EASY_RIGHT, _HARD_RIGHT)
        chance = np.where(open_, base, np.where(own, draw, settled))
        runs = rng.normal(0, setting.run_sd, most)
        right = np.empty((most, n), bool)
        for row, run in enumerate(runs):
            shifted = chance + np.where(open_, (gain + run) / 100 / _OPEN, 0.0)
            right[row] = rng.random(n, dtype=np.float32) < shifted
        sides.append(right)
        shifts.append(gain + runs[0])
    compared = {s: compare_accuracy(sides[0][:s], sides[1][:s]) for s in SEEDS}
    return compared, shifts[1] - shifts[0], setting.gain


def _draw_precisions(setting: Setting, rng: np.random.Generator) -> _Study:
    scale = np.sqrt(_AP_IMAGES / setting.images)
    image_sd, churn_sd = scale * _AP_IMAGE_SD, scale * _AP_CHURN_SD / np.sqrt(2)
    most, images = SEEDS[-1], np.array([setting.images])
    values, boots, shifts = [], [], []
    for gain, sd in ((0.0, 0.0), (setting.gain, image_sd)):  # of the images' noise what differs
        runs = rng.normal(0, setting.run_sd, most)
        seen = 40 + gain + runs + rng.normal(0, sd) + rng.normal(0, churn_sd, most)
        drawn = rng.normal(0, sd, _AP_RESAMPLES) + rng.normal(0, churn_sd, (most, _AP_RESAMPLES))
        values.append(seen[:, None])
        boots.append(seen[:, None] + drawn)
        shifts.append(gain + runs[0])
    compared = {}
    for s in SEEDS:
        noise = noise_of_resamples(boots[0][:s], boots[1][:s], setting.images)
        sides = values[0][:s], values[1][:s]
        compared[s] = differences_over_seeds(sides[0], sides[1], noise, images, images)[0]
    return compared, shifts[1] - shifts[0], setting.gain


def _draw_detectors(setting: Setting, rng: np.random.Generator) -> _Study:
    """Boxes that detectors find, miss and invent; some boxes are hard for all of them."""
    truth = _draw_boxes(setting.images, rng)
    hard = rng.normal(0, 1, len(truth.box))
    sides = []
    for gain in (0.0, setting.gain):
        skill = gain / 100 * 2.5
        sides.append([_draw_detections(truth, hard, skill, rng) for _ in range(3)])
    compared = {
        s: compare_coco_metrics(truth, sides[0][:s], sides[1][:s], resamples=100)[0]["AP"]
        for s in (1, 3)
    }
    unknown = np.nan if setting.gain else 0.0  # what a gain in skill comes to in AP
    return compared, unknown, unknown


def _draw_boxes(images: int, rng: np.random.Generator) -> Annotations:
    image = np.repeat(np.arange(images), rng.integers(1, 6, images))
    n, categories = len(image), 3
    size = np.exp(rng.uniform(2.5, 5.0, (n, 2)))
    box = np.concatenate([rng.uniform(0, 300, (n, 2)), size], axis=1)
    return Annotations(
        Path(), "", np.arange(images), [str(i) for i in range(images)],
        np.full((images, 2), 640), np.arange(1, categories + 1),
        [f"category {k}" for k in range(categories)], np.arange(1, n + 1), image,
        rng.integers(0, categories, n), box, size.prod(axis=1), np.zeros(n, bool),
    )  # fmt: skip


def _draw_detections(
    truth: Annotations, hard: np.ndarray, skill: float, rng: np.random.Generator
) -> Results:
    n = len(truth.box)
    found = hard + rng.normal(0, 0.5, n) < 0.7 + skill
    shift = rng.normal(0, 0.07, (n, 4)) * np.tile(truth.box[:, 2:], 2)
    made = rng.integers(0, n, n // 2)  # false positives: boxes of other places
    moved = truth.box[made] + np.array([120.0, 90.0, 0.0, 0.0])
    rows = np.concatenate([np.flatnonzero(found), made])
    return Results(
        image=truth.image[rows],
        category=truth.category[rows],
        box=np.concatenate([(truth.box + shift)[found], moved]),
        score=np.concatenate([rng.beta(4, 2, found.sum()), rng.beta(2, 4, len(made))]),
    )


# Tables ------------------------------------------------------------------------------------------


def _name(setting: Setting) -> str:
    gain = f", gain {setting.gain:g}" if setting.gain else ""
    same = ", same network" if setting.same else ""
    return f"{setting.metric}, {setting.images:,} images, run sd {setting.run_sd:g}{same}{gain}"


def _table(
    rows: Sequence[Rates],
    columns: Sequence[int],
    pick: Callable[[Rates], tuple[float, ...]],
    looks: bool = False,
) -> list[str]:
    last = " looks |" if looks else ""
    lines = [f"| studies | {' | '.join(map(str, columns))} |{last}"]
    lines.append("|---|" + "--:|" * (len(columns) + looks))
    for rates in rows:
        values = dict(zip(rates.seeds, pick(rates), strict=True))
        shown = [
            "" if np.isnan(values.get(s, np.nan)) else f"{100 * values[s]:.1f}" for s in columns
        ]
        if looks:
            shown.append("" if rates.looks is None else f"{100 * rates.looks:.1f}")
        lines.append(f"| {_name(rates.setting)} | {' | '.join(shown)} |")
    return lines
