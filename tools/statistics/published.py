"""A measured number beside a published one, each judged by what may differ between them.

Released weights, evaluated anew on the same images, differ by rounding and decoder only: image and
training noise is in both numbers alike. Runs trained anew differ by the noise of training, in the
published run as well as in ours; the images are the same, so their noise is in neither. Nothing
counts as reproduced for want of evidence: three words, and "undecided" is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tools.statistics.differences import CONFIDENCE, Difference

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
DECODER_TOLERANCE = 0.1  # percent points: what other decoders and resizers were seen to change
_TELESCOPE_POWER = 1 / 3
_KNOWN = 1e9  # degrees of freedom of a stated standard deviation
_UNEXPLAINED = "the noise of training does not explain it"


@dataclass(frozen=True)
class Judgement:
    """A word on a published number, and the numbers it stands on.

    ``difference``: measured minus published, in the unit of both; ``low`` and ``high`` the 90 %
    interval of it (equal to it for released weights); ``margin``: within what "reproduced" is
    said; ``next_low`` and ``next_high``: where one more run is expected in 95 % of cases.
    """

    word: str
    difference: float
    low: float
    high: float
    margin: float
    next_low: float | None = None
    next_high: float | None = None
    reason: str = ""


def rounding(digits: int) -> float:
    """Half of the last digit of a number printed with so many decimal digits."""
    return 0.5 * 10.0**-digits


def judge_released(
    measured: float, published: float, digits: int, tolerance: float = DECODER_TOLERANCE
) -> Judgement:
    """Judge released weights: "reproduced" within rounding and tolerance, else "not reproduced".

    Args:
        measured, published: of the same weights on the same images, in one unit.
        digits: decimal digits that the published number is printed with.
        tolerance: what another image decoder may change, in that unit.
    """
    difference = measured - published
    margin = rounding(digits) + tolerance
    inside = abs(difference) <= margin + 1e-9
    reason = (
        f"differs by {difference:+.2f}, {'within' if inside else 'beyond'} {margin:.2f}"
        " of rounding and decoder"
    )
    word = REPRODUCED if inside else NOT_REPRODUCED
    return Judgement(word, difference, difference, difference, margin, reason=reason)


def prediction_interval(
    values: Sequence[float], sd: float | None = None, digits: int | None = None
) -> tuple[float, float]:
    """Where one more run of the same kind is expected in ``CONFIDENCE`` of cases.

    Args:
        values: of the runs, a seed each, on one set of images.
        sd: standard deviation over seeds, where it is stated; needed for a single run.
        digits: decimal digits that the one more run is printed with.

    Raises:
        ValueError: no run, or one run without ``sd``.
    """
    error, degrees = _error_of_another(values, sd)
    half = special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * error
    half += 0.0 if digits is None else rounding(digits)
    mean = float(np.mean(values))
    return mean - float(half), mean + float(half)


def judge_trained(
    values: Sequence[float],
    published: float,
    margin: float,
    *,
    digits: int,
    sd: float | None = None,
    published_runs: int = 1,
) -> Judgement:
    """Judge runs trained anew against a published run, on the same images.

    Args:
        values: of our runs, a seed each.
        margin: a difference that does not matter, in the unit of the values.
        digits: decimal digits that the published number is printed with.
        sd: standard deviation over seeds, where it is stated; needed for a single run.
        published_runs: how many the published number is the mean of.

    "reproduced": the 90 % interval of the difference lies within ``margin`` (two one-sided tests).
    "not reproduced": the 95 % interval of the difference leaves out 0. Else "undecided".

    Raises:
        ValueError: no run, one run without ``sd``, or a margin that is not above 0.
    """
    _check_margin(margin)
    error, degrees = _error_of_another(values, sd, published_runs)
    difference = float(np.mean(values)) - published
    room = rounding(digits)
    inner = float(special.stdtrit(degrees, 0.95) * error) + room
    outer = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * error) + room
    if abs(difference) + inner <= margin:
        word, said = REPRODUCED, f"within ±{margin:g}"
    elif abs(difference) > outer:
        word, said = NOT_REPRODUCED, _UNEXPLAINED
    else:
        word, said = UNDECIDED, f"up to {abs(difference) + inner:.2f} is possible"
    low, high = difference - inner, difference + inner
    reason = f"differs by {difference:+.2f} [{low:+.2f}, {high:+.2f}]: {said}"
    expected = prediction_interval(values, sd, digits)
    return Judgement(word, difference, low, high, margin, *expected, reason)


def judge_effect(
    measured: Difference,
    published: float,
    margin: float,
    *,
    digits: int,
    published_error: float,
    sd: float | None = None,
) -> Judgement:
    """Judge the effect, candidate minus plain: what images and recipe do to both sides cancels.

    Args:
        measured: of our twins, in the unit of ``published``.
        published: the published candidate minus the published plain network.
        margin: a difference between the effects that does not matter.
        digits: decimal digits that the two published numbers are printed with.
        published_error: standard error of the published effect, from a stated noise of training.
        sd: standard deviation over seeds of one network, where it is stated; needed for one seed.

    "reproduced" and "not reproduced" as for ``judge_trained``. And where the measured effect is
    smaller than one that the original study could have seen in a third of cases (one-sided, 5 %):
    "not reproduced", after "small telescopes".

    Source: Simonsohn, "Small telescopes: detectability and the evaluation of replication results",
    2015.

    Raises:
        ValueError: the measured difference has no standard error and ``sd`` is not stated, or
            ``margin`` is not above 0.
    """
    _check_margin(margin)
    effect, own, degrees = _effect(measured, sd)
    error = float(np.hypot(own, published_error))
    difference = effect - published
    inner, outer = _half_widths(error, degrees, 2 * rounding(digits))
    telescope = _least_seen(published_error)
    toward = effect if published >= 0 else -effect
    highest = toward + float(special.stdtrit(degrees, 0.95)) * own
    if abs(difference) + inner <= margin:
        word, said = REPRODUCED, f"within ±{margin:g} of the published effect"
    elif highest < telescope:
        word, said = NOT_REPRODUCED, f"less than {telescope:.2f}, the least the original could see"
    elif abs(difference) > outer:
        word, said = NOT_REPRODUCED, _UNEXPLAINED
    else:
        word, said = UNDECIDED, f"effects may differ by up to {abs(difference) + inner:.2f}"
    low, high = difference - inner, difference + inner
    told = f"effect {effect:+.2f}, published {published:+.2f}"
    reason = f"{told}: {difference:+.2f} [{low:+.2f}, {high:+.2f}]; {said}"
    return Judgement(word, difference, low, high, margin, reason=reason)


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin {margin}: a difference that does not matter is above 0")


def _least_seen(error: float) -> float:
    """The effect that a study of this standard error saw in a third of cases."""
    z = special.ndtri((1 + CONFIDENCE) / 2) + special.ndtri(_TELESCOPE_POWER)
    return float(z) * error


def _half_widths(error: float, degrees: float, room: float) -> tuple[float, float]:
    """Of the 90 % and the 95 % interval."""
    inner = float(special.stdtrit(degrees, 0.95)) * error + room
    return inner, float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error + room


def _effect(measured: Difference, sd: float | None) -> tuple[float, float, float]:
    """A difference, its standard error and its degrees of freedom, on these images.

    Both studies measured on the same images: their noise is in neither effect.
    """
    if measured.difference is None:
        raise ValueError("no effect was measured")
    if sd is not None:
        return measured.difference, sd * float(np.sqrt(2 / max(measured.seeds, 1))), _KNOWN
    here, degrees = measured.on_these_images, measured.degrees_of_freedom
    if degrees is None or here is None:
        raise ValueError("the measured effect has one seed or none: training noise is unknown")
    half = (here.high - here.low) / 2
    own = half / float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2))
    return measured.difference, own, degrees


def _error_of_another(
    values: Sequence[float], sd: float | None, others: int = 1
) -> tuple[float, float]:
    """Standard error of the mean less that of ``others`` more runs, and its degrees of freedom."""
    count = len(values)
    if count == 0 or (count == 1 and sd is None):
        raise ValueError(
            f"{count} run and no stated standard deviation: the noise of training is unknown;"
            " give two seeds or more, or sd"
        )
    spread = float(np.std(values, ddof=1)) if sd is None else sd
    degrees = float(count - 1) if sd is None else _KNOWN
    return spread * float(np.sqrt(1 / count + 1 / others)), degrees
