"""A study's runs looked at without a report: the noise for the next plan, and whether a look ends it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from backbones import files
from tools.experiments.archive import open_runs
from tools.experiments.plan import Noise, default_noise
from tools.experiments.study import Looks
from tools.report.planned import ends, read_plans
from tools.report.table import build_table
from tools.statistics import Difference, planning


def read_noise(paths: Iterable[str | Path]) -> dict[tuple[str, str], Noise]:
    """The noise of earlier studies, by task and data set: means of the variances over their pairs.

    Raises:
        ValueError: there is no record in a path, or none of twins.
    """
    paths = list(paths)
    groups: dict[tuple[str, str], list[Noise]] = {}
    with open_runs(paths) as found:
        for compared in build_table(found.records, found.warnings).comparisons:
            difference, images = compared.headline.difference, compared.images
            if difference.image_sd is None:
                continue
            data, seeds = compared.pair.plain[0].dataset.name, difference.seeds
            told = (difference.seed_sd or 0.0, difference.churn_sd or 0.0, difference.image_sd)
            if seeds == 1:  # churn is in what the images tell: parted as where all is assumed
                assumed = default_noise(compared.task, data).on(images)
                share = difference.image_sd / math.hypot(assumed.churn_sd, assumed.image_sd)
                told = (assumed.seed_sd, share * assumed.churn_sd, share * assumed.image_sd)
            source = f"recorded, {seeds} seed{'s' if seeds > 1 else ''}"
            known = (seeds, planning.seed_degrees(seeds), _varies(difference))
            noise = Noise(*told, images, source, *known)
            groups.setdefault((compared.task, data), []).append(noise)
    if not groups:
        where = ", ".join(map(str, paths))
        raise ValueError(f"--from {where}: no recorded twins there whose images can be compared")
    return {key: _mean(rows) for key, rows in groups.items()}


def _varies(found: Difference) -> float:
    """Relative spread, over pairs of runs, of the share of images on which a pair disagrees.

    It follows the twins' errors: pairs with more of them disagree more often. Where those are alike it is
    still 5 to 6 % (twins on 10,000 pictures of CIFAR-10 and 1,500 of scenes, six seeds each).
    """
    total = (found.plain or 0.0) + (found.candidate or 0.0)
    if found.seeds == 1 or not total:
        return 0.1  # assumed: between those and twins that are hardly trained
    return math.hypot(0.05, math.hypot(found.plain_sd or 0.0, found.candidate_sd or 0.0) / total)


def _mean(rows: Sequence[Noise]) -> Noise:
    images = rows[0].images
    rows = [row.on(images) for row in rows]

    def mean(name: str) -> float:
        return math.sqrt(sum(getattr(row, name) ** 2 for row in rows) / len(rows))

    source = f"{rows[0].source}, {len(rows)} pair{'s' if len(rows) > 1 else ''}"
    known = (sum(row.pairs for row in rows), sum(row.degrees for row in rows), mean("varies"))
    return Noise(mean("seed_sd"), mean("churn_sd"), mean("image_sd"), images, source, *known)


def take_look(output: Path, runs: Sequence[Path], looks: Looks) -> tuple[bool, list[str]]:
    """Whether a study ends after the runs so far, and a line on each comparison.

    Args:
        output: the study's folder, with its fixed plan.
        runs: the directories of the runs.
    """
    with open_runs(runs) as found:
        plans = read_plans([output / files.PLAN])
        comparisons = build_table(found.records, found.warnings, plans=plans).comparisons
    lines = [
        f"{c.benchmark}: {c.candidate} {c.headline.outcome.phrase} ({'; '.join(c.marks[-1:])})"
        for c in comparisons
    ]
    return bool(comparisons) and all(ends(looks, c) for c in comparisons), lines
