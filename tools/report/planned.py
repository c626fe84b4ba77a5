"""A plan that was fixed before its study ran, beside what was found; and the level of each look."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy import stats

from backbones import files
from backbones.config import printable
from tools.experiments.plan import (
    Lock,
    PlannedComparison,
    expect,
    expect_range,
    read_lock,
)
from tools.experiments.record import Record
from tools.experiments.study import Looks
from tools.report.comparison import Comparison
from tools.statistics import Difference, planning
from tools.statistics.differences import CONFIDENCE, detectable_difference
from tools.statistics.outcomes import BETTER, EQUIVALENT, WORSE


@dataclass(frozen=True)
class PlannedRow:
    """One comparison of a fixed plan, foreseen and found; None: not known."""

    candidate: str
    benchmark: str
    half_width_planned: float  # of the 95 % interval, points
    half_width_range: tuple[float, float] | None  # of 80 % of such studies; None: noise was assumed
    half_width: float | None
    seconds_planned: float | None  # of one run of the candidate, training and evaluation
    seconds: float | None  # mean over its runs


@dataclass(frozen=True)
class FixedPlan:
    """A plan that was fixed before its study ran, and what became of it."""

    sha256: str
    made: str
    cells: int
    amendments: tuple[str, ...]  # when, what and why
    rows: tuple[PlannedRow, ...]
    runs: int  # that are compared here
    before: int  # of them, recorded before the plan was as it is now
    looks: str = ""  # which look ended the study, or what is next

    @property
    def sentence(self) -> str:
        """The plan in a sentence, its amendments and looks after it."""
        amended = "".join(f"; amended {text}" for text in self.amendments)
        under = f"{self.runs - self.before} of {self.runs} runs name it"
        if self.before:
            under += f", {self.before} were recorded before it was fixed or amended"
        text = f"The plan was fixed on {self.made}: {self.cells} cells, SHA-256 {self.sha256[:16]}{amended}; {under}."
        return f"{text} {self.looks}".strip()


def read_plans(paths: Iterable[Path]) -> list[tuple[str, Lock]]:
    """The plans that were fixed beside some plans' files, with their SHA-256; damaged ones are none."""
    found = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            locked = read_lock(folder)
        except ValueError:
            continue
        if locked is not None:
            found[files.sha256(folder / files.PLAN_LOCK)] = locked
    return list(found.items())


def set_beside(
    plans: Iterable[tuple[str, Lock]], comparisons: Sequence[Comparison]
) -> tuple[FixedPlan, ...]:
    """Each plan beside the comparisons that came of it."""
    found = []
    for digest, locked in plans:
        names = ("added", "removed", "changed")
        amendments = tuple(
            f"{printable(each.made)} ("
            + (
                ", ".join(f"{len(getattr(each, n))} {n}" for n in names if getattr(each, n))
                or "no cell"
            )
            + f"): {printable(each.why)}"
            for each in locked.amendments
        )
        rows = tuple(_rows(digest, locked, comparisons))
        made = printable(locked.made)
        of_plan = [c for c in comparisons if _plan_of(digest, locked, c)]
        named = [record.locked_plan for c in of_plan for record in c.pair.runs]
        before = sum(name != digest for name in named)
        told = _which_look(locked.looks, of_plan)
        found.append(
            FixedPlan(digest, made, len(locked.cells), amendments, rows, len(named), before, told)
        )
    return tuple(found)


def _rows(digest: str, locked: Lock, comparisons: Sequence[Comparison]) -> Iterable[PlannedRow]:
    for compared in comparisons:
        planned = _plan_of(digest, locked, compared)
        if planned is None:
            continue
        difference = compared.headline.difference
        known = difference.low is not None and difference.high is not None
        noise, confidence = planned.noise.on(compared.images), 1 - _level(locked.looks, compared)
        yield PlannedRow(
            compared.candidate,
            compared.benchmark,
            expect(len(compared.seeds), noise, confidence)[0],
            expect_range(len(compared.seeds), noise, confidence),
            (difference.high - difference.low) / 2 if known else None,  # type: ignore[operator]
            _planned_seconds(locked, planned.entry, compared.pair.candidate[0]),
            _seconds(compared.pair.candidate),
        )


def _plan_of(digest: str, locked: Lock, c: Comparison) -> PlannedComparison | None:
    """What was planned of a comparison: by the folder of its runs, unless they name another plan."""
    named = {record.locked_plan for record in c.pair.runs} - {None}
    if named and not named & {digest, *(each.sha256_before for each in locked.amendments)}:
        return None
    folder = c.pair.candidate[0].directory
    wanted = (folder.parent.name if folder else "", c.task, c.plain, c.candidate)
    for each in locked.comparisons:
        if (each.entry, each.task, each.plain, each.candidate) == wanted:
            return each
    return None


# Looks before the end ----------------------------------------------------------------------------


def at_its_look(comparison: Comparison, plans: Iterable[tuple[str, Lock]]) -> Comparison:
    """A comparison of a study with looks, at the level of the look that its seeds are.

    p-values are scaled so that 0.05 stands for the level, intervals are those of the level. What is none
    of the planned looks is not tested.
    """
    c = comparison
    for digest, locked in plans:
        if locked.looks is None or _plan_of(digest, locked, c) is None:
            continue
        looks, seeds = locked.looks.looks, len(c.seeds)
        if seeds not in looks:
            why = f"{seeds} seeds are no look of the fixed plan ({', '.join(map(str, looks))})"
            metrics = [replace(m, difference=_untested(m.difference, why)) for m in c.metrics]
            return replace(c, metrics=tuple(metrics), marks=(*c.marks, why))
        number = looks.index(seeds)
        level = _level(locked.looks, c)
        metrics = [replace(m, difference=_at_level(m.difference, level)) for m in c.metrics]
        mark = f"look {number + 1} of {len(looks)}, level {level:.2g}"
        return replace(c, metrics=tuple(metrics), marks=(*c.marks, mark))
    return comparison


def _level(looks: Looks | None, c: Comparison) -> float:
    """What p-values are held against: that of the look, where the seeds are those of one."""
    if looks is None or len(c.seeds) not in looks.looks:
        return 1 - CONFIDENCE
    return planning.look_levels(looks.looks)[looks.looks.index(len(c.seeds))]


def ends(looks: Looks, c: Comparison) -> bool:
    """Whether a comparison shows what ends a study."""
    ending = (BETTER, WORSE) if looks.stop == "significant" else (EQUIVALENT,)
    return c.headline.verdict in ending


def _which_look(looks: Looks | None, comparisons: Sequence[Comparison]) -> str:
    """Which look ended a study, in a sentence."""
    if looks is None or not comparisons:
        return ""
    listed = ", ".join(map(str, looks.looks))
    text = f"Looks at {listed} seeds until every comparison is {looks.stop}:"
    seeds = max(len(c.seeds) for c in comparisons)
    if any(len(c.seeds) not in looks.looks for c in comparisons):
        return f"{text} {seeds} seeds are none of them, and nothing is tested."
    number = looks.looks.index(seeds) + 1
    if all(ends(looks, c) for c in comparisons):
        return f"{text} look {number} of {len(looks.looks)}, at {seeds} seeds, ended it."
    if number == len(looks.looks):
        return f"{text} it went on to the last, and is not."
    return f"{text} look {number} did not end it; the next is at {looks.looks[number]} seeds."


def _untested(difference: Difference, why: str) -> Difference:
    nothing: dict[str, Any] = dict.fromkeys(
        ("low", "high", "p_value", "low_90", "high_90", "detectable", "on_these_images")
    )
    return replace(difference, **nothing, reason=why)


def _at_level(difference: Difference, level: float) -> Difference:
    error, change = difference.standard_error, difference.difference
    if error is None or change is None or difference.p_value is None:
        return difference
    degrees = difference.degrees_of_freedom or math.inf
    half = float(stats.t.ppf(1 - level / 2, degrees)) * error
    inner = float(stats.t.ppf(1 - level, degrees)) * error
    return replace(
        difference,
        p_value=min(1.0, difference.p_value * (1 - CONFIDENCE) / level),
        low=change - half,
        high=change + half,
        low_90=change - inner,
        high_90=change + inner,
        detectable=float(detectable_difference(error, degrees, confidence=1 - level)),
        on_these_images=None,  # of 95 %, whatever the look
        p_value_method=f"{difference.p_value_method}, times {(1 - CONFIDENCE) / level:.3g} for its look",
        interval_method=f"{difference.interval_method}, at the level of its look",
    )


def _planned_seconds(locked: Lock, entry: str, record: Record) -> float | None:
    folder = record.directory.name if record.directory else ""
    cost = locked.costs.get(f"{entry}/{folder.rpartition('-seed')[0]}")
    return None if cost is None else cost.train_seconds + cost.evaluate_seconds


def _seconds(records: Sequence[Record]) -> float | None:
    times = [(r.timing.train_seconds, r.timing.evaluate_seconds) for r in records]
    known = [
        train + evaluate for train, evaluate in times if train is not None and evaluate is not None
    ]
    return sum(known) / len(known) if known else None
