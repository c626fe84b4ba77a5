"""Before compute is spent: what a study can see, and what it needs to see a stated difference.

Standard deviations are of the difference in one pair of runs, in the unit of the metric (percent
points), split as ``differences`` splits them: seed, churn (seed x image) and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import special

from tools.statistics.differences import (
    CONFIDENCE,
    PAIR_SEEDS_FROM,
    POWER,
    detectable_difference,
    variance_of_mean,
)

IN_RANGE = 0.8  # of studies find a half-width in the range that is planned
_MOST_SEEDS = 1000
_QUANTILES = 200  # of what seeds may tell of their spread
_SPENT_OF_LOOKS = 0.7
_GRID = 2001  # points of the density of a sum of looks; the levels are then right to 1e-5


def images_needed(
    difference: float, discordant: float, power: float = POWER, confidence: float = CONFIDENCE
) -> int:
    """Images on which one pair of weights shows a difference.

    Args:
        difference, discordant: shares of the images (0 to 1): gained less lost, gained and lost.

    Raises:
        ValueError: not 0 < abs(difference) <= discordant <= 1.

    Source: Miettinen, "The matched pairs design in the case of all-or-none responses", 1968.
    """
    if not 0 < abs(difference) <= discordant <= 1:
        raise ValueError(
            f"difference {difference} and discordant {discordant}: expected"
            " 0 < abs(difference) <= discordant <= 1, as shares of the images"
        )
    z, z_power = special.ndtri((1 + confidence) / 2), special.ndtri(power)
    spread = z * np.sqrt(discordant) + z_power * np.sqrt(discordant - difference**2)
    return int(np.ceil((spread / difference) ** 2))


def detectable_with_images(
    n: np.ndarray | int, discordant: np.ndarray | float, power: float = POWER
) -> np.ndarray:
    """The difference that one pair of weights shows on ``n`` images in ``power`` of cases.

    Shares of the images (0 to 1), as in ``images_needed``, which this inverts. Where it is more
    than ``discordant``, as many images as that are taken to differ.
    """
    n, discordant = np.asarray(n, dtype=float), np.asarray(discordant, dtype=float)
    z, z_power = special.ndtri((1 + CONFIDENCE) / 2), special.ndtri(power)
    difference = (z + z_power) * np.sqrt(discordant / n)
    for _ in range(40):
        share = np.maximum(discordant, difference)
        rest = np.sqrt(np.maximum(share - difference**2, 0.0))
        difference = np.minimum((z * np.sqrt(share) + z_power * rest) / np.sqrt(n), 1.0)
    return difference


def detectable_with_seeds(
    seeds: int,
    seed_sd: float,
    churn_sd: float,
    image_sd: float,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> float:
    """The difference that ``seeds`` runs a side show in ``power`` of cases, at the expected spread.

    ``image_sd`` 0: on this set of images; else about new ones.

    Raises:
        ValueError: fewer than two seeds, or a negative standard deviation.
    """
    variance, own = _expected_variance(seeds, (seed_sd, churn_sd, image_sd), np.ones(1))
    return float(detectable_difference(np.sqrt(variance), own, power, confidence)[0])


def expected_half_width(
    seeds: int,
    seed_sd: float,
    churn_sd: float,
    image_sd: float,
    confidence: float = CONFIDENCE,
) -> float:
    """Half of the interval that ``seeds`` runs a side lead to; arguments as ``detectable_with_seeds``.

    Few seeds tell their own spread badly, and what they tell makes the interval: this is the mean over
    all that they may tell (chi-squared), more than what their true spread would lead to.
    """
    parts = (seed_sd, churn_sd, image_sd)
    return float(np.mean(_half_widths(seeds, parts, confidence, None)))


def half_width_range(
    seeds: int,
    seed_sd: float,
    churn_sd: float,
    image_sd: float,
    confidence: float = CONFIDENCE,
    degrees: int | None = None,
) -> tuple[float, float]:
    """Between which half-widths ``IN_RANGE`` of such studies find theirs; at least two seeds a side.

    Args:
        degrees: of freedom that the seeds' spread is known on; None: it is known.
    """
    found = _half_widths(seeds, (seed_sd, churn_sd, image_sd), confidence, degrees)
    low, high = np.quantile(found, ((1 - IN_RANGE) / 2, (1 + IN_RANGE) / 2))
    return float(low), float(high)


def _half_widths(
    seeds: int, parts: tuple[float, float, float], confidence: float, known: int | None
) -> np.ndarray:
    """At quantiles of what the seeds may tell of their spread, of which ``known`` seeds told before."""
    degrees, shares = seed_degrees(seeds), (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    if known is None:
        told = special.chdtri(degrees, shares) / degrees
    else:
        told = special.fdtri(degrees, known, shares)
    variance, own = _expected_variance(seeds, parts, told)
    return special.stdtrit(own, (1 + confidence) / 2) * np.sqrt(variance)


def expected_of_one_pair(image_sd: float, power: float = POWER) -> tuple[float, float]:
    """Half-width, and difference seen in ``power`` of cases, of one pair of weights on many images."""
    z, z_power = special.ndtri((1 + CONFIDENCE) / 2), special.ndtri(power)
    return float(z * image_sd), float((z + z_power) * image_sd)


def one_pair_range(image_sd: float, images: int, pairs: int, varies: float) -> tuple[float, float]:
    """Between which half-widths ``IN_RANGE`` of single pairs of weights find theirs.

    Args:
        image_sd: of the difference on as many ``images``, points, as ``pairs`` of runs told it.
        varies: relative standard deviation, over pairs of runs, of the share of images on which they disagree.

    How many images that are varies as counts do besides.
    """
    disagree = max(1.0, (images * image_sd / 100) ** 2)
    spread = np.sqrt((1 / disagree + varies**2) * (1 + 1 / pairs)) / 2
    expected, _ = expected_of_one_pair(image_sd)
    off = np.exp(special.ndtri((1 + IN_RANGE) / 2) * spread)
    return float(expected / off), float(expected * off)


def seed_degrees(seeds: int) -> int:
    """Degrees of freedom on which ``seeds`` runs a side tell their spread; 0 of one."""
    return seeds - 1 if seeds >= PAIR_SEEDS_FROM else 2 * (seeds - 1)


def _expected_variance(
    seeds: int, parts: tuple[float, float, float], told: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean difference and its degrees of freedom, (K,) each.

    Args:
        parts: standard deviations of seed, churn and images.
        told: the variance between seeds as they tell it, over the true one, (K,).
    """
    if seeds < 2 or min(parts) < 0:
        raise ValueError(
            f"seeds {seeds} and standard deviations {parts[0]}, {parts[1]}, {parts[2]}: expected at"
            " least 2 seeds (one says nothing of the next) and none below 0"
        )
    seed, churn, images = (np.full(len(told), sd**2) for sd in parts)
    image = images + churn / seeds if parts[2] else None
    many = np.full(len(told), np.inf)
    between = (seed + churn) * told
    return variance_of_mean(between, churn, image, seeds, seed_degrees(seeds), many)


def seeds_needed(
    difference: float,
    seed_sd: float,
    churn_sd: float,
    image_sd: float,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> int | None:
    """Seeds a side that show ``difference`` in ``power`` of cases; None: no number of them does.

    Where the images alone hide the difference only more images help.

    Raises:
        ValueError: the difference is 0, or a standard deviation negative.
    """
    if difference == 0:
        raise ValueError("difference 0: a difference to be seen is not 0")
    for seeds in range(2, _MOST_SEEDS + 1):
        seen = detectable_with_seeds(seeds, seed_sd, churn_sd, image_sd, power, confidence)
        if seen <= abs(difference):
            return seeds
    return None


def look_levels(looks: Sequence[int] = (3, 5, 8, 10), level: float = 1 - CONFIDENCE) -> list[float]:
    """Levels below which the p-value of each look ends a study, so that all keep to ``level``.

    Args:
        looks: seeds a side at each look, rising; the last is the whole study.

    At each look ``level`` times the squared share of the seeds may be spent (Lan and DeMets,
    "Discrete sequential boundaries for clinical trials", 1983; integrated as by Armitage, McPherson
    and Rowe, 1969), and of several looks 0.7 of that: the integral is of normal noise, and t-tests
    of few seeds err more often in their tails. Simulated over shares of seed, churn and image noise
    all looks together err in 1.6 to 4.8 % at a level of 5 %, where the whole would err in up to 6.4 %.

    Raises:
        ValueError: looks that do not rise, or of fewer than two seeds.
    """
    if not looks or looks[0] < 2 or any(a >= b for a, b in pairwise(looks)):
        raise ValueError(f"looks {list(looks)}: expected seeds in rising order, from 2 on")
    share = np.array(looks, dtype=float) / looks[-1]
    grid = np.linspace(-8, 8, _GRID)
    step = grid[1] - grid[0]
    levels, spent, before = [], 0.0, 0.0
    kept = _SPENT_OF_LOOKS if len(looks) > 1 else 1.0
    density = np.zeros(_GRID)
    for now, budget in zip(share, kept * level * share**2, strict=True):
        if before == 0:
            density = _normal(grid, now)
        else:
            density = _normal(grid[:, None] - grid, now - before) @ density * step
        upper = grid >= 0
        beyond = 2 * step * (np.cumsum(density[::-1])[::-1] - density / 2)[upper]
        bound = np.interp(budget - spent, beyond[::-1], grid[upper][::-1])
        levels.append(float(2 * special.ndtr(-bound / np.sqrt(now))))
        density = np.where(np.abs(grid) < bound, density, 0.0)
        spent, before = float(budget), float(now)
    return levels


def _normal(x: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
