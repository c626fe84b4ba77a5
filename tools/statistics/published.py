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
NOT_COMPARABLE = "not comparable"
DECODER_TOLERANCE = 0.1  # percent points: what other decoders and resizers were seen to change
_TELESCOPE_POWER = 1 / 3
_KNOWN = 1e9  # degrees of freedom of a stated standard deviation
_UNEXPLAINED = "the noise of training does not explain it"


@dataclass(frozen=True)
class Verdict:
    """``word``: reproduced, not reproduced, undecided or not comparable; ``reason`` in a sentence."""

    word: str
    reason: str


def rounding(digits: int) -> float:
    """Half of the last digit of a number printed with so many decimal digits."""
    return 0.5 * 10.0**-digits


def judge_released(measured: float, published: float, digits: int) -> Verdict:
    """Judge released weights: "reproduced" within rounding and what decoders change, else not.

    Args:
        measured, published: of the same weights on the same images, in one unit.
        digits: decimal digits that the published number is printed with.
    """
    difference = measured - published
    margin = rounding(digits) + DECODER_TOLERANCE
    inside = abs(difference) <= margin + 1e-9
    return Verdict(
        REPRODUCED if inside else NOT_REPRODUCED,
        f"differs by {difference:+.2f}, {'within' if inside else 'beyond'} {margin:.2f}"
        " of rounding and decoder",
    )


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
) -> Verdict:
    """Judge runs trained anew against a published run, on the same images.

    Args:
        values: of our runs, a seed each.
        margin: a difference that does not matter, in the unit of the values.
        digits: decimal digits that the published number is printed with.
        sd: standard deviation over seeds, where it is stated; needed for a single run.

    "reproduced": the 90 % interval of the difference lies within ``margin`` (two one-sided tests).
    "not reproduced": the 95 % interval of the difference leaves out 0. Else "undecided".

    Raises:
        ValueError: no run, one run without ``sd``, or a margin that is not above 0.
    """
    difference = float(np.mean(values)) - published
    word, interval, most = _decide(
        difference, *_error_of_another(values, sd), rounding(digits), margin
    )
    said = {
        REPRODUCED: f"within ±{margin:g}",
        NOT_REPRODUCED: _UNEXPLAINED,
        UNDECIDED: f"up to {most:.2f} is possible",
    }
    return Verdict(word, f"differs by {interval}: {said[word]}")


def judge_effect(
    measured: Difference | None,
    published: float,
    margin: float,
    *,
    digits: int,
    sd: float | None = None,
) -> Verdict:
    """Judge the effect, candidate minus plain: what images and recipe do to both sides cancels.

    Args:
        measured: of our twins, in the unit of ``published``.
        published: the published candidate minus the published plain network.
        margin: a difference between the effects that does not matter.
        digits: decimal digits that the two published numbers are printed with.
        sd: standard deviation over seeds of one network, stated for twins of one seed.

    The published effect is of one pair of runs: the noise of training in it is that of one of our
    pairs, or as stated. "reproduced" and "not reproduced" as for ``judge_trained``. And where the
    measured effect is smaller than one that the original study could have seen in a third of cases
    (one-sided, 5 %): "not reproduced", after "small telescopes".

    Source: Simonsohn, "Small telescopes: detectability and the evaluation of replication results",
    2015.

    Raises:
        ValueError: ``margin`` is not above 0.
    """
    if measured is None or measured.difference is None:
        return Verdict(NOT_COMPARABLE, "not measured in both twins")
    told = _noise_of_pairs(measured, sd)
    if told is None:
        return Verdict(UNDECIDED, "one seed: the noise of training is unknown")
    noise, own, degrees, stated = told
    effect, difference = measured.difference, measured.difference - published
    telescope = _least_seen(noise)
    toward = effect if published >= 0 else -effect
    too_small = toward + float(special.stdtrit(degrees, 0.95)) * own < telescope
    error = float(np.hypot(own, noise))
    word, interval, most = _decide(
        difference, error, degrees, 2 * rounding(digits), margin, too_small
    )
    unseen = f"less than {telescope:.2f}, the least the original could see"
    said = {
        REPRODUCED: f"within ±{margin:g} of the published effect",
        NOT_REPRODUCED: unseen if too_small else _UNEXPLAINED,
        UNDECIDED: f"effects may differ by up to {most:.2f}",
    }
    both = f"effect {effect:+.2f}, published {published:+.2f}"
    return Verdict(word, f"{both}: {interval}; {said[word]}{stated}")


def _noise_of_pairs(
    measured: Difference, sd: float | None
) -> tuple[float, float, float, str] | None:
    """Noise of training in one pair of runs; our standard error, its degrees of freedom; what is stated.

    Both studies measured on the same images: their noise is in neither effect.
    """
    here, degrees = measured.on_these_images, measured.degrees_of_freedom
    if measured.seed_sd is not None and measured.churn_sd is not None and here and degrees:
        own = (here.high - here.low) / 2
        own /= float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2))
        return float(np.hypot(measured.seed_sd, measured.churn_sd)), own, degrees, ""
    if sd is None:
        return None
    own = sd * float(np.sqrt(2 / max(measured.seeds, 1)))
    return sd * 2**0.5, own, _KNOWN, f"; one seed, {sd:g} points over seeds stated"


def _decide(
    difference: float,
    error: float,
    degrees: float,
    room: float,
    margin: float,
    too_small: bool = False,
) -> tuple[str, str, float]:
    """A word, the difference with its 90 % interval, and how large it may be.

    ``room``: what rounding adds to the intervals on either side.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: a difference that does not matter is above 0")
    inner = float(special.stdtrit(degrees, 0.95)) * error + room
    outer = float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error + room
    most = abs(difference) + inner
    word = UNDECIDED
    if most <= margin:
        word = REPRODUCED
    elif too_small or abs(difference) > outer:
        word = NOT_REPRODUCED
    interval = f"{difference:+.2f} [{difference - inner:+.2f}, {difference + inner:+.2f}]"
    return word, interval, most


def _least_seen(error: float) -> float:
    """The effect that a study of this standard error saw in a third of cases."""
    z = special.ndtri((1 + CONFIDENCE) / 2) + special.ndtri(_TELESCOPE_POWER)
    return float(z) * error


def _error_of_another(values: Sequence[float], sd: float | None) -> tuple[float, float]:
    """Standard error of the mean less one more run, and its degrees of freedom."""
    count = len(values)
    if count == 0 or (count == 1 and sd is None):
        raise ValueError(
            f"{count} run and no stated standard deviation: the noise of training is unknown;"
            " give two seeds or more, or sd"
        )
    spread = float(np.std(values, ddof=1)) if sd is None else sd
    degrees = float(count - 1) if sd is None else _KNOWN
    return spread * float(np.sqrt(1 / count + 1)), degrees
