"""From a difference to a word, each with the test that allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import computed_field

from tools.statistics.differences import CONFIDENCE, Difference

BETTER, WORSE = "better", "worse"
EQUIVALENT, UNDECIDED, UNTESTED = "equivalent", "undecided", "not tested"
MARGIN_TOP_K, MARGIN_AP = 0.3, 0.5


def margin_of(metric: str) -> float:
    """A difference in a metric that does not matter, percent points, for want of a reader's own."""
    return MARGIN_TOP_K if metric.startswith("top") else MARGIN_AP


@dataclass(frozen=True)
class Outcome:
    """What a comparison says, and within what it says it.

    ``word``: better or worse (the corrected p-value is below 0.05), equivalent (the 90 % interval
    lies within ``margin`` either way: two one-sided tests at 5 %), undecided, or not tested.
    ``detectable`` and ``compatible`` go with every "undecided": the smallest difference that such
    a study sees in 80 % of cases, and the largest, of either sign, that is still possible.
    ``about_weights``: one seed; it is about two sets of weights, not about the networks.
    """

    word: str
    margin: float
    about_weights: bool
    detectable: float | None = None
    compatible: float | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def phrase(self) -> str:
        """With its numbers, as in "undecided (would show 0.42, could still be 0.61)"."""
        if self.word == EQUIVALENT:
            return f"{EQUIVALENT} within ±{self.margin:g}"
        if self.word == UNDECIDED and self.detectable is not None and self.compatible is not None:
            return (
                f"{UNDECIDED} (shows {_points(self.detectable)} or more in 80 % of studies;"
                f" up to {_points(self.compatible)} is still possible)"
            )
        return self.word


def decide(
    difference: Difference,
    *,
    higher_is_better: bool,
    margin: float,
    p_value: float | None,
) -> Outcome:
    """Put a difference into a word.

    Args:
        margin: a difference that does not matter, in the unit of the metric, above 0.
        p_value: corrected for the number of comparisons; None or NaN where nothing was tested.

    A clear difference is called better or worse even where it is smaller than ``margin``.

    Raises:
        ValueError: ``margin`` is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: a difference that does not matter is above 0")
    about = difference.about_weights
    change = difference.difference
    if p_value is None or math.isnan(p_value) or change is None or difference.low is None:
        return Outcome(UNTESTED, margin, about)
    numbers = (difference.detectable, difference.compatible)
    if p_value < 1 - CONFIDENCE and change != 0:
        word = BETTER if (change > 0) == higher_is_better else WORSE
        return Outcome(word, margin, about, *numbers)
    if difference.compatible is not None and difference.compatible <= margin:
        return Outcome(EQUIVALENT, margin, about, *numbers)
    return Outcome(UNDECIDED, margin, about, *numbers)


def _points(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
