"""Sentences made from the numbers of the table."""

from __future__ import annotations

import math
from collections import defaultdict

from tools.report.comparison import UNTESTED, Comparison, MetricRow
from tools.report.table import BETTER, UNCLEAR, WORSE, Table

_MIXED = "better or worse depending on protocol or settings"
TASKS = {
    "classification": "image classification",
    "scene": "scene classification",
    "detection": "object detection",
}
METHODS = (
    "A difference is the candidate minus its plain twin, on the same images. Errors are better"
    " when lower, accuracies, AP and AR when higher; the words say which way it went.",
    "Intervals are 95 % and about new images. With one seed they are about these two sets of weights"
    " and not about the networks: Tango's score interval with McNemar's mid-p for top-k, for AP and"
    " AR the standard deviation over resamples of the images with Student's t. With several seeds"
    " interval and p-value come from one model of seeds, churn (seed by image) and images, after"
    " Obuchowski, Rockette and Hillis; seeds are paired from five on, images always.",
    "AP and AR are scored anew in every resample, with each image as often as it was drawn.",
    "Holm's correction is over all headline metrics of this report, and over the classes within a"
    " comparison; other metrics are not corrected.",
    "A published number counts as reproduced where it lies inside the 95 % interval of the measured"
    " value: Wilson's for the top-k of one run, resamples of the images for the AP of one run, the"
    " model above for several seeds of a pair.",
    '"Better" or "worse" is said when the corrected p-value is below 0.05 and the interval leaves'
    ' out zero; otherwise "no clear difference".',
    "Multiply-adds count convolutions, fully connected layers and residual additions. Latency"
    " is the median time of one picture alone through the network as it was evaluated, a detector's"
    " backbone at 4:3, on the machine of the run: a busy machine shows in it.",
)


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """With a true minus sign, and no sign for zero."""
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    return "" if low is None else f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return "–"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def count(value: float | None) -> str:
    """A count as people say it: 25.6 M, 3.86 G."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}\u00a0{letter}"
    return f"{value:.0f}"


def more(costs: tuple[float | None, float | None]) -> str:
    """How much more the candidate costs: "+9.9 %"."""
    if None in costs or not costs[0]:
        return "–"
    percent = 100 * (costs[1] / costs[0] - 1)
    # Two figures of a small share: the paper's 0.26 % is not nothing, nor is a CIFAR network's 0.005 %.
    digits = 1 if abs(percent) >= 1 or percent == 0 else 1 - math.floor(math.log10(abs(percent)))
    return f"{signed(percent, min(digits, 6))}\u00a0%"


def change_in_words(row: MetricRow) -> str:
    """ "1.51 points better", whatever the metric's direction."""
    if row.gain is None:
        return "not measured"
    points = f"{abs(row.gain):.2f}"
    if float(points) == 0:
        return "equal"
    return f"{points} points {BETTER if row.gain > 0 else WORSE}"


def verdict_sentence(comparison: Comparison) -> str:
    row, costs = comparison.headline, comparison.costs
    found = row.difference
    if found.difference is None:
        return f"{row.label} was not measured in both twins: {found.reason}"
    made = " (synthetic data)" if comparison.synthetic else ""
    bounds = interval(found.low, found.high)
    return (
        f"{comparison.benchmark}{made}: {row.label} {signed(found.difference)}"
        f"{' ' + bounds if bounds else ''} points, {row.verdict}, for"
        f" {more(costs['parameters'])} parameters and {more(costs['multiply_adds'])} multiply-adds"
    )


def candidate_word(table: Table) -> str:
    """What the candidates are called where they stand for all: "SE", or "candidate" for others."""
    networks = [comparison.pair.candidate[0].backbone for comparison in table.comparisons]
    only_se = all(
        network.is_se and network.options.get("attention", "se") == "se" for network in networks
    )
    return "SE" if only_se else "candidate"


def headline(table: Table) -> str:
    """The report in one sentence.

    A network on a data set counts once, under however many protocols or settings it was run; runs
    that say little (near chance, very short) do not count.
    """
    counted = [c for c in table.comparisons if not c.not_counted]
    if not table.comparisons:
        return "No pair of twins to compare."
    left_out = len(table.comparisons) - len(counted)
    if not counted:
        return f"{_pairs(left_out)} of twins, near chance or hardly trained: nothing to compare."
    benchmarks: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for c in counted:
        key = (c.task, c.dataset, c.synthetic, c.candidate, c.plain)
        benchmarks[key].append(c.headline.verdict)
    verdicts = [_together(found) for found in benchmarks.values()]
    total = len(verdicts)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    tested = total - counts.get(UNTESTED, 0)
    if tested == 0:
        return f"{_pairs(len(counted))} of twins, none of them tested."
    candidates = {comparison.candidate for comparison in counted}
    plains = {comparison.plain for comparison in counted}
    who = candidates.pop() if len(candidates) == 1 else f"the {candidate_word(table)} network"
    than = plains.pop() if len(plains) == 1 else "its plain twin"
    # Several candidates on one benchmark are as many comparisons.
    several = len({(c.task, c.dataset) for c in counted}) < total
    noun = "comparisons" if several else "benchmarks"
    parts = []
    for verdict, said in ((BETTER, f"better than {than}"), (WORSE, "worse")):
        if counts.get(verdict):
            parts.append(f"{said} on {_of(counts[verdict], total, noun)}")
    if not parts and not counts.get(_MIXED):
        on = f"any of the {total} {noun}" if total > 1 else "the one benchmark"
        parts.append(f"neither clearly better nor clearly worse than {than} on {on}")
    elif counts.get(UNCLEAR):
        parts.append(f"without a clear difference on {counts[UNCLEAR]}")
    if counts.get(_MIXED):
        parts.append(f"{_MIXED} on {_of(counts[_MIXED], total, noun)}")
    if tested < total:
        parts.append(f"not tested on {total - tested}")
    sentence = f"{who} is {', '.join(parts)}."
    if all(comparison.synthetic for comparison in counted):
        sentence = f"On synthetic data: {sentence}"
    elif sentence.startswith("the "):
        sentence = f"T{sentence[1:]}"
    if left_out:
        sentence += f" Not counted: {_pairs(left_out)}, near chance or hardly trained."
    return sentence


def _pairs(count: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''}"


def _together(verdicts: list[str]) -> str:
    """One verdict of a network on a data set that was run in several ways."""
    different = set(verdicts) - {UNTESTED} or {UNTESTED}
    return different.pop() if len(different) == 1 else _MIXED


def _of(found: int, total: int, noun: str) -> str:
    if total == 1:
        return "the one benchmark"
    return f"all {total} {noun}" if found == total else f"{found} of {total} {noun}"


def lede(table: Table) -> str | None:
    """The numbers of the clearest difference that counts: the smallest p-value."""
    counted = [c for c in table.comparisons if not c.not_counted]
    tested = [c for c in counted if c.headline.p_holm is not None]
    if not tested:
        return None
    return verdict_sentence(min(tested, key=lambda c: c.headline.difference.p_value))
