"""One line over several data sets: random effects of the headline differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tools.report import wording
from tools.report.comparison import Comparison
from tools.statistics import Pooled, pool_tasks


@dataclass(frozen=True)
class Across:
    """The mean gain in one metric over data sets, each of which counts once."""

    metric: str
    label: str
    synthetic: bool
    equal_cost: bool  # against plain networks of equal cost, not of equal depth
    datasets: tuple[str, ...]
    one_seed: int  # how many of them are known from one seed only
    pooled: Pooled  # of gains: more is better, whatever the metric's direction
    sentence: str = ""  # the whole in words


def pool_datasets(comparisons: Sequence[Comparison]) -> tuple[Across, ...]:
    """Pool what may be compared: one metric, on at least two data sets.

    Real and synthetic data stand apart, as do equal depth and equal cost.
    Several pairs of a data set share its images: their mean counts once, with their mean variance,
    as if they were one pair. Results that say little are left out.
    """
    groups: dict[tuple[str, bool, bool], dict[str, list[Comparison]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for c in comparisons:
        if not c.not_counted and not c.unequal and c.headline.difference.standard_error:
            groups[c.headline.name, c.synthetic, bool(c.pair.equal)][c.dataset].append(c)
    found = []
    for (metric, synthetic, equal_cost), datasets in groups.items():
        if len(datasets) < 2:
            continue
        rows = [[c.headline for c in pairs] for pairs in datasets.values()]
        gains = [sum(row.gain or 0.0 for row in pairs) / len(pairs) for pairs in rows]
        variances = [
            sum((row.difference.standard_error or 0.0) ** 2 for row in pairs) / len(pairs)
            for pairs in rows
        ]
        found.append(
            Across(
                metric,
                rows[0][0].label,
                synthetic,
                equal_cost,
                tuple(datasets),
                sum(all(row.outcome.about_weights for row in pairs) for pairs in rows),
                pool_tasks(gains, variances),
            )
        )
    word = wording.candidate_word(comparisons)
    return tuple(replace(each, sentence=wording.across_sentence(each, word)) for each in found)
