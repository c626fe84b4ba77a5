"""A difference between twins: estimate, interval, p-value, and where its noise comes from.

A metric of network a, trained with seed s and measured on a set of images, is taken to be

    mean of the network + images (shared by all seeds) + seed + churn (seed x image).

The variance of a mean difference over S seeds is then that of the images plus (seed + churn) / S.
Seeds cannot vary less than churn alone makes them, and the churn of one set of images is known from
its images: that is the floor under the variance between seeds, without which two or three seeds
that agree by luck would look like certainty. Interval and p-value come from one t-distribution, so
they cannot disagree. It is the analysis of readers and cases (readers: seeds, cases: images).

Source: Obuchowski and Rockette, "Hypothesis testing of diagnostic accuracy for multiple readers and
multiple tests", 1995; degrees of freedom after Hillis, "A comparison of denominator degrees of
freedom methods for multiple observer ROC analysis", 2007, and Satterthwaite, 1946.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 1000
PAIR_SEEDS_FROM = 5  # fewer seeds are compared as independent: pairing would halve the few df
_MOST_DEGREES = 1e9  # a t-distribution of so many degrees of freedom is the normal one
_INNER_TAIL = 0.05  # of each end of the interval that tests equivalence (two one-sided tests)


@dataclass(frozen=True)
class Bounds:
    """Where a difference lies: ends of the ``CONFIDENCE`` interval, p-value of "none"."""

    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Candidate minus plain, in the unit of the metric (percent points for percent).

    ``low``, ``high`` and the two-sided ``p_value`` are about new images (and, with several seeds,
    new seeds); ``on_these_images`` is about new seeds on the very images of the set. With one seed
    all is about these two sets of weights, not about the networks. What is unavailable is None and
    ``reason`` says why.
    """

    plain: float | None
    candidate: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    interval_method: str | None = None
    p_value_method: str | None = None
    n: int | None = None  # images
    seeds: int = 1
    plain_sd: float | None = None  # over seeds
    candidate_sd: float | None = None
    plain_interval: tuple[float, float] | None = None  # of the value itself, not paired
    candidate_interval: tuple[float, float] | None = None
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    low_90: float | None = None  # inside a margin: equivalent, by two one-sided tests at 5 %
    high_90: float | None = None
    detectable: float | None = None  # what such a study sees in POWER of cases
    on_these_images: Bounds | None = None  # several seeds only
    seed_sd: float | None = None  # standard deviations of the difference in one pair of runs:
    churn_sd: float | None = None  # seed x image; with one seed part of image_sd
    image_sd: float | None = None
    reason: str | None = None

    @property
    def compatible(self) -> float | None:
        """The largest difference, of either sign, that is not ruled out at 5 %."""
        if self.low_90 is None or self.high_90 is None:
            return None
        return max(abs(self.low_90), abs(self.high_90))

    @property
    def about_weights(self) -> bool:
        """Whether it is about two sets of weights only, and not about the networks."""
        return self.seeds == 1

    def mirrored(self, total: float = 100.0) -> Difference:
        """The same of ``total`` minus the metric: of an error, where this is of an accuracy."""
        there = self.on_these_images
        return replace(
            self,
            plain=None if self.plain is None else total - self.plain,
            candidate=None if self.candidate is None else total - self.candidate,
            difference=_negative(self.difference),
            low=_negative(self.high),
            high=_negative(self.low),
            low_90=_negative(self.high_90),
            high_90=_negative(self.low_90),
            plain_interval=_mirror(self.plain_interval, total),
            candidate_interval=_mirror(self.candidate_interval, total),
            on_these_images=there and Bounds(-there.high, -there.low, there.p_value),
        )


@dataclass(frozen=True)
class Noise:
    """Variances that the images alone cause in K metrics, squared units of the metric, (K,) each.

    ``image``: of the mean difference over the seeds, churn / S included. ``churn``: of the
    difference in one pair of runs, seed x image alone; ``paired_churn``: the same where the runs
    of a pair share their seed. ``plain``, ``plain_churn`` and so on: of one side.
    """

    image: np.ndarray
    plain: np.ndarray
    candidate: np.ndarray
    plain_churn: np.ndarray
    candidate_churn: np.ndarray
    paired_churn: np.ndarray


def effect_sizes(
    difference: float | None,
    plain: float | None,
    added_parameters: int | None,
    added_multiply_adds: int | None,
) -> dict[str, float | None]:
    """The difference absolute, relative, and for what it cost.

    ``relative`` is in percent of the plain value, the others in the unit of the metric: per
    million added parameters and per million added multiply-adds. None where nothing was added.
    """

    def per_million(added: int | None) -> float | None:
        return None if difference is None or not added else difference / (added / 1e6)

    return {
        "absolute": difference,
        "relative": None if difference is None or not plain else 100 * difference / plain,
        "per_million_parameters": per_million(added_parameters),
        "per_million_multiply_adds": per_million(added_multiply_adds),
    }


def noise_of_resamples(plain: np.ndarray, candidate: np.ndarray, images: int) -> Noise:
    """Of one metric (K = 1), from its values in the same B resamples of the images, (S, B) each.

    ``images``: m, those that can matter to the metric; the bootstrap's variance is m / (m - 1) too
    small. Resamples with NaN, which could not be scored, are left out.
    """
    scored = ~np.isnan(plain + candidate).any(axis=0)
    if scored.sum() < 2:
        return Noise(*6 * [np.array([np.nan])])
    plain, candidate = plain[:, scored], candidate[:, scored]
    scale = images / max(images - 1, 1)

    def image(values: np.ndarray) -> np.ndarray:
        return scale * np.var(values.mean(axis=0), ddof=1, keepdims=True)

    def churn(values: np.ndarray) -> np.ndarray:
        rest = values - values.mean(axis=0)
        rest -= rest.mean(axis=1, keepdims=True)
        degrees = max((len(values) - 1) * (values.shape[1] - 1), 1)
        return scale * np.sum(rest**2, keepdims=True)[0] / degrees

    change = candidate - plain
    return Noise(
        image(change), image(plain), image(candidate),
        churn(plain), churn(candidate), churn(change),
    )  # fmt: skip


def differences_over_seeds(
    plain: np.ndarray,
    candidate: np.ndarray,
    noise: Noise,
    images: np.ndarray,
    n: np.ndarray,
    limits: tuple[float, float] = (0.0, 100.0),
) -> list[Difference]:
    """Sum up K metrics of a pair of twins.

    Args:
        plain, candidate: the metrics of each seed, (S, K).
        noise: what the images alone do to them.
        images: how many can matter to each metric, (K,); at least two, for a variance.
        n: how many there are in the set or class, (K,).
        limits: values that the metrics can take; the sides' own intervals end there.

    One seed: normal theory on the images, t with images - 1 degrees of freedom, about these
    weights. Several: the components of this module's docstring. Seeds are independent of each other
    and of the other side's up to four a side, and paired from ``PAIR_SEEDS_FROM`` on; images are
    always paired.
    """
    estimates = (_one_seed if len(plain) == 1 else _several_seeds)(plain, candidate, noise, images)
    change = candidate.mean(axis=0) - plain.mean(axis=0)
    found = []
    for k in range(plain.shape[1]):
        shared: dict[str, Any] = {
            "plain": float(plain[:, k].mean()),
            "candidate": float(candidate[:, k].mean()),
            "difference": float(change[k]),
            "n": int(n[k]),
            "seeds": len(plain),
        }
        if len(plain) > 1:
            shared["plain_sd"] = float(np.std(plain[:, k], ddof=1))
            shared["candidate_sd"] = float(np.std(candidate[:, k], ddof=1))
        found.append(Difference(**shared, **estimates.of_metric(k, int(images[k]), limits)))
    return found


@dataclass(frozen=True)
class _Estimates:
    """Of K metrics: t's bounds of the difference, of the sides and for these very images, (K,) each."""

    difference: dict[str, np.ndarray]
    plain: dict[str, np.ndarray]
    candidate: dict[str, np.ndarray]
    here: dict[str, np.ndarray] | None  # None: one seed
    components: dict[str, np.ndarray]  # standard deviations of the difference in one pair of runs
    method: str

    def of_metric(self, k: int, images: int, limits: tuple[float, float]) -> dict[str, Any]:
        """What a `Difference` says of metric ``k``, or the reason why it says nothing."""
        found, here = self.difference, self.here
        if images < 2:
            return {"reason": "fewer than two images matter to it: no variance to judge by"}
        if np.isnan(found["standard_error"][k]):
            return {"reason": "no resample of the images could be scored"}
        if np.isnan(found["p_value"][k]):
            return {"reason": "no spread over images or seeds to judge by"}
        told = {name: float(values[k]) for name, values in (found | self.components).items()}
        on_these_images = None
        if here is not None and not np.isnan(here["p_value"][k]):
            bounds = (float(here[name][k]) for name in ("low", "high", "p_value"))
            on_these_images = Bounds(*bounds)
        return {
            **told,
            "interval_method": self.method,
            "p_value_method": self.method,
            "plain_interval": _within(self.plain, k, limits),
            "candidate_interval": _within(self.candidate, k, limits),
            "on_these_images": on_these_images,
        }


def _one_seed(
    plain: np.ndarray, candidate: np.ndarray, noise: Noise, images: np.ndarray
) -> _Estimates:
    degrees = np.maximum(images - 1.0, 1.0)
    return _Estimates(
        _bounds(candidate[0] - plain[0], noise.image, degrees),
        _bounds(plain[0], noise.plain, degrees),
        _bounds(candidate[0], noise.candidate, degrees),
        None,
        {"image_sd": np.sqrt(noise.image)},
        "t-test on the images' variance, about these weights",
    )


def _several_seeds(
    plain: np.ndarray, candidate: np.ndarray, noise: Noise, images: np.ndarray
) -> _Estimates:
    seeds = len(plain)
    change = candidate.mean(axis=0) - plain.mean(axis=0)
    between, churn, degrees = variance_between_seeds(plain, candidate, noise)

    def of_change(image: np.ndarray | None) -> dict[str, np.ndarray]:
        return _bounds(change, *variance_of_mean(between, churn, image, seeds, degrees, images))

    def of_side(side: np.ndarray, churn: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
        spread = np.var(side, axis=0, ddof=1)
        return _bounds(
            side.mean(axis=0),
            *variance_of_mean(spread, churn, image, seeds, seeds - 1, images),
        )

    pairing = "paired" if seeds >= PAIR_SEEDS_FROM else "unpaired"
    return _Estimates(
        of_change(noise.image),
        of_side(plain, noise.plain_churn, noise.plain),
        of_side(candidate, noise.candidate_churn, noise.candidate),
        of_change(None),
        {
            "seed_sd": np.sqrt(np.maximum(0.0, between - churn)),
            "churn_sd": np.sqrt(churn),
            "image_sd": np.sqrt(np.maximum(0.0, noise.image - churn / seeds)),
        },
        f"variance components: seeds ({pairing}), churn, images",
    )


def variance_between_seeds(
    plain: np.ndarray, candidate: np.ndarray, noise: Noise
) -> tuple[np.ndarray, np.ndarray, int]:
    """Variance of the difference in one pair of runs as seeds show it, and what of it is churn.

    (K,) each, churn as the images know it; and the degrees of freedom of the first.
    """
    seeds = len(plain)
    if seeds < PAIR_SEEDS_FROM:
        between = np.var(plain, axis=0, ddof=1) + np.var(candidate, axis=0, ddof=1)
        return between, noise.plain_churn + noise.candidate_churn, 2 * (seeds - 1)
    return np.var(candidate - plain, axis=0, ddof=1), noise.paired_churn, seeds - 1


def variance_of_mean(
    between: np.ndarray,
    churn: np.ndarray,
    image: np.ndarray | None,
    seeds: int,
    seed_degrees: int,
    images: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of a mean over seeds, and its degrees of freedom, (K,) each.

    Args:
        between: variance between seeds as seen, churn included, on ``seed_degrees`` degrees.
        churn: what the images alone say that churn is.
        image: variance of the mean over seeds by the images alone; None for these very images.
        seeds, images: S, and how many images the image-based parts are known from, (K,).

    Satterthwaite's ratio, as Hillis has it, but for two things. The variance between seeds counts as
    seen, and less where it lies below its floor, which itself is known from all images: by the fourth
    power of the ratio, the first on two degrees of freedom. And on two the whole ratio's power is 1.5
    instead of 2. The size of a 5 % test, integrated over all shares of the three parts, is then 2.2 to
    6.8 % with two seeds and 2.5 to 5.9 % with more;
    without either it is 0.0 to 7.7 % and 0.4 to 5.9 %.
    """
    floored = np.maximum(between, churn) / seeds
    by_images = churn / seeds if image is None else image
    shared = np.zeros_like(churn) if image is None else np.maximum(0.0, image - churn / seeds)
    variance = floored + shared
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(churn > 0, np.minimum(1.0, between / churn), 1.0)
        counted = between * below ** (4 if seed_degrees > 2 else 1) / seeds
        ratio = np.where(counted > 0, variance / counted, np.inf)
        share = np.where(variance > 0, np.minimum(1.0, by_images / variance), 0.0)
        inverse = 1 / (seed_degrees * ratio ** (2 if seed_degrees > 2 else 1.5))
        inverse = inverse + share**2 / np.maximum(images - 1.0, 1.0)
        degrees = np.where(inverse > 0, 1 / inverse, _MOST_DEGREES)
    return variance, np.minimum(degrees, _MOST_DEGREES)


def detectable_difference(
    standard_error: np.ndarray | float,
    degrees: np.ndarray | float,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> np.ndarray:
    """The difference that a two-sided t-test at 1 - ``confidence`` sees in ``power`` of cases.

    In the unit of ``standard_error``. Source: the noncentral t-distribution.
    """
    degrees = np.minimum(degrees, _MOST_DEGREES)
    critical = special.stdtrit(degrees, (1 + confidence) / 2)
    return np.asarray(special.nctdtrinc(degrees, 1 - power, critical) * standard_error)


def _bounds(
    estimate: np.ndarray, variance: np.ndarray, degrees: np.ndarray
) -> dict[str, np.ndarray]:
    """Interval and p-value of t, (K,) each; p is NaN where nothing varies but something differs."""
    error = np.sqrt(variance)
    half = special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * error
    inner = special.stdtrit(degrees, 1 - _INNER_TAIL) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = 2 * special.stdtr(degrees, -np.abs(estimate) / error)
    p_value = np.where(error > 0, p_value, np.where(estimate == 0, 1.0, np.nan))
    return {
        "low": estimate - half,
        "high": estimate + half,
        "p_value": np.minimum(p_value, 1.0),
        "standard_error": error,
        "degrees_of_freedom": degrees,
        "low_90": estimate - inner,
        "high_90": estimate + inner,
        "detectable": detectable_difference(error, degrees),
    }


def _within(
    side: dict[str, np.ndarray], k: int, limits: tuple[float, float]
) -> tuple[float, float]:
    return max(float(side["low"][k]), limits[0]), min(float(side["high"][k]), limits[1])


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _mirror(interval: tuple[float, float] | None, total: float) -> tuple[float, float] | None:
    return None if interval is None else (total - interval[1], total - interval[0])
