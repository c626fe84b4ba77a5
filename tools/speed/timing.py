"""Comparing two ways to do the same thing: interleaved, the median of ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Measurement:
    """One number and how it was come by.

    Attributes:
        value: in the benchmark's unit: a ratio, seconds, or a share.
        low, high: the quartiles of the rounds.
        settings: batch, precision, device, sizes: whatever it depends on.
        difference: how far the outputs of the two were apart, as a share of the largest, and
            `allowed`, how far they could have been; None where there is nothing to compare.
    """

    value: float
    low: float
    high: float
    rounds: int
    settings: dict[str, Any] = field(default_factory=dict)
    difference: float | None = None
    allowed: float | None = None


def compare(
    over: Callable[[], Any],
    under: Callable[[], Any],
    settings: dict[str, Any],
    difference: tuple[float, float] | None = None,
    seconds: float = 90.0,
    least: int = 5,
    wall: bool = False,
) -> Measurement:
    """Measure time of `over` / time of `under`, each once a round, alternating which goes first.

    Rounds end after `seconds`, but there are `least` and at most 300. A slow moment of the machine
    hits both, and one that hits a single run is an outlier that the median does not see.

    Args:
        difference: of their outputs, with what is allowed; from `check_equal`.
        wall: go by the wall in any case.
    """
    clock, name = (_wall_seconds, "wall") if wall else choose_clock()
    settings = settings | {"clock": name}
    rounds = interleave(partial(clock, over), partial(clock, under), seconds, least)
    return summarize([one / other for one, other in rounds], settings, difference)


def interleave(
    over: Callable[[], float],
    under: Callable[[], float],
    seconds: float = 90.0,
    least: int = 5,
) -> list[tuple[float, float]]:
    """What each of two returns, a round after the other, alternating which goes first.

    Rounds end after `seconds`, but there are `least` and at most 300.
    """
    for candidate in (over, under, over, under):
        candidate()  # what is done once: compiling, choosing algorithms, the heap growing
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - start < seconds and len(rounds) < 300):
        if len(rounds) % 2:
            first, second = over(), under()
        else:
            second, first = under(), over()
        rounds.append((first, second))
    return rounds


def median_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The median and its 95 % interval, which no distribution is assumed for.

    The bounds are order statistics (`scipy.stats.quantile_test`, Conover 1999); below six values
    there are none that far out: None.
    """
    from scipy.stats import quantile_test

    bounds = quantile_test(values, p=0.5).confidence_interval(0.95)
    low, high = (None if math.isnan(bound) else float(bound) for bound in bounds)
    known = low is not None and high is not None
    return statistics.median(values), low if known else None, high if known else None


def choose_clock(
    device: torch.device | None = None,
) -> tuple[Callable[[Callable[[], Any]], float], str]:
    """Return what measures the seconds of a function, and its name for the settings.

    Where one thread computes (OMP_NUM_THREADS=1) processor time counts, which other programs on the
    machine disturb less; with more threads the wall, on a GPU CUDA's events.

    Args:
        device: what the function computes on; None for a GPU where there is one.
    """
    if torch.cuda.is_available() if device is None else device.type == "cuda":
        return _cuda_seconds, "CUDA events"
    if torch.get_num_threads() == 1:
        return _processor_seconds, "processor time, one thread"
    return _wall_seconds, "wall"


def summarize(
    values: list[float], settings: dict[str, Any], difference: tuple[float, float] | None = None
) -> Measurement:
    """The median of `values` and their quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Measurement(median, low, high, len(values), settings, *(difference or (None, None)))


def check_equal(ours: Any, reference: Any, allowed: float) -> tuple[float, float]:
    """Return the largest difference, as a share of the largest reference value, and `allowed`.

    Both are tensors, or dicts of tensors under the same names.

    Raises:
        ValueError: they differ by more: times of different results are not compared.
    """
    if isinstance(reference, dict):
        return max(check_equal(ours[key], reference[key], allowed) for key in reference)
    ours, reference = ours.detach().double(), reference.detach().double()
    difference = float((ours - reference).abs().max() / reference.abs().max())
    if not difference <= allowed:
        raise ValueError(
            f"the outputs differ by {difference:.1e} of their largest value, {allowed:.0e} is "
            "allowed: no ratio of times between different results"
        )
    return difference, allowed


def _processor_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _wall_seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _cuda_seconds(function: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
