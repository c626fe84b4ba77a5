"""Sentences made from the numbers of the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backbones.equal_cost import spell
from tools.experiments.measured import Ratio
from tools.report.costs import EQUAL_COST, EQUAL_DEPTH, Sides
from tools.statistics import Difference
from tools.statistics.outcomes import BETTER, EQUIVALENT, UNDECIDED, UNTESTED, WORSE

if TYPE_CHECKING:
    from tools.report.across import Across
    from tools.report.comparison import Comparison, MetricRow

_MIXED = "judged differently under different protocols or settings"
THESE_WEIGHTS = "one seed: about these weights, not about the networks"
METHODS = (
    "A difference is the candidate minus its plain twin, on the same images. Errors are better"
    " when lower, accuracies, AP and AR when higher; the words say which way it went.",
    "Intervals are 95 % and about new images and new seeds; beside them stands what holds on these"
    " very images. With one seed they are about these two sets of weights and not about the networks:"
    " Tango's score interval with McNemar's mid-p for top-k, for AP and AR the standard deviation over"
    " resamples of the images with Student's t. With several seeds interval and p-value come from one"
    " model of seeds, churn (seed by image) and images, after Obuchowski, Rockette and Hillis; seeds"
    " are paired from five on, images always.",
    "AP and AR are scored anew in every resample, with each image as often as it was drawn.",
    'Outcomes of the headline metrics: "better" or "worse" where the p-value is below 0.05 after'
    ' Holm\'s correction over all of them; else "equivalent within ±d" where the 90 % interval lies'
    " within a difference d that does not matter (two one-sided tests at 5 %, each comparison for"
    ' itself); else "undecided", with the smallest difference that such a study sees in 80 % of'
    " cases and the largest that is still possible. Other metrics are not corrected and get no such"
    " word.",
    "Classes are first tested for whether they differ from each other at all (Cochran's Q). Their"
    " p-values are adjusted after Benjamini and Hochberg; beside each difference stands the same"
    " shrunken towards that of all classes (empirical Bayes), the better guess where images are few.",
    "Over several data sets: random effects with Hartung and Knapp's interval, never narrower than the"
    " plain one, and where the next data set's true difference is expected. Several pairs of a data"
    " set count once.",
    "A published number of released weights counts as reproduced within its rounding and 0.1 points"
    " of decoder; of a network trained anew, where the 90 % interval of the difference, with the noise"
    " of training in both runs, lies within ±d. It is not reproduced where the 95 % interval leaves"
    ' out no difference, and "undecided" otherwise, as it is with one seed.',
    "Multiply-adds count convolutions, fully connected layers and residual additions. Latency,"
    " throughput, peak memory and energy are compared where both networks were measured in turns in one"
    " process (sebench measure): medians of the rounds' ratios, with order statistics as their 95 %"
    " interval. The latencies of single runs are of different moments and are not compared.",
    "A plain twin of equal depth has the same layers and widths, as in the paper. One of equal cost is"
    " wider or deeper, and has its SE network's parameters, multiply-adds or measured latency within 1 %.",
)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def planned_range(found: tuple[float, float] | None) -> str:
    """Between which half-widths a plan expects a study's."""
    return "not known" if found is None else f"± {number(found[0])} to ± {number(found[1])}"


def signed(value: float | None, digits: int = 2) -> str:
    """With a true minus sign, and no sign for zero."""
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """Bounds with their signs, or nothing where there are none."""
    return "" if low is None else f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_text(p_value: float | None) -> str:
    """A p-value with three digits, the smallest as "< 0.001"."""
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


def more(costs: Sides) -> str:
    """How much more the candidate costs: "+9.9 %"."""
    if not costs.plain or costs.candidate is None:
        return "–"
    percent = 100 * (costs.candidate / costs.plain - 1)
    # Two figures of a small share: the paper's 0.26 % is not nothing, nor is a CIFAR network's 0.005 %.
    digits = 1 if abs(percent) >= 1 or percent == 0 else 1 - math.floor(math.log10(abs(percent)))
    return f"{signed(percent, min(digits, 6))}\u00a0%"


def ratio_in_words(ratio: Ratio) -> str:
    """How much more the candidate takes, with its interval: "+21.5 % [+20.4, +22.7]"."""
    if ratio.value is None:
        return "–"
    low, high = (b if b is None else 100 * (b - 1) for b in (ratio.low, ratio.high))
    return f"{signed(100 * (ratio.value - 1), 1)}\u00a0% {interval(low, high, 1)}".strip()


def measured_sentence(comparison: Comparison) -> str:
    """What both networks cost side by side, or how to come to know it."""
    found = comparison.measured
    if found is None:
        names = (side[0].backbone for side in (comparison.pair.plain, comparison.pair.candidate))
        spelled = " ".join(f"'{spell(network.name, network.options)}'" for network in names)
        return f"Latency was not measured side by side: sebench measure {spelled} -o RUNS"
    on = found.conditions
    parts = [
        f"{label} {ratio_in_words(ratio)}" if ratio.value else f"{label} – ({ratio.reason})"
        for label, ratio in (
            ("latency", found.latency),
            ("images/s", found.throughput),
            ("peak memory", found.peak_memory),
            ("energy", found.energy),
        )
    ]
    return (
        f"Measured side by side, {found.latency.rounds} rounds: {', '.join(parts)}; {on.device_name},"
        f" {on.threads} thread{'s' * (on.threads > 1)}, images {'x'.join(map(str, on.image))}, alone for latency, else"
        f" {on.batch_size} at once, {on.classes} classes, {on.mode} mode"
    )


def change_in_words(row: MetricRow) -> str:
    """As "1.51 points better" where a test allows the word, else "1.51 points higher"."""
    change = row.difference.difference
    if row.gain is None or change is None:
        return "not measured"
    points = f"{abs(change):.2f}"
    if row.verdict in (BETTER, WORSE):
        return f"{points} points {row.verdict}"
    return (
        f"{points} points {'higher' if change > 0 else 'lower'}" if float(points) else "no change"
    )


def detail(row: MetricRow) -> str:
    """What the outcome's phrase says beyond its word: a margin, or what the study can see."""
    return row.outcome.phrase.removeprefix(row.verdict).strip(" ()")


def these_images(found: Difference) -> str:
    """What holds on this very set of images, for new seeds: "[+0.10, +0.50], p 0.012"."""
    here = found.on_these_images
    return "" if here is None else f"{interval(here.low, here.high)}, p {p_text(here.p_value)}"


def noise(found: Difference) -> str:
    """Where the noise comes from, and with that what would narrow the interval."""
    if found.image_sd is None:
        return ""
    if found.seed_sd is None or found.churn_sd is None:
        return f"images and churn {found.image_sd:.2f} points"
    parts = f"seeds {found.seed_sd:.2f}, churn {found.churn_sd:.2f}, images {found.image_sd:.2f}"
    of_seeds = (found.seed_sd**2 + found.churn_sd**2) / found.seeds
    narrower = "another seed" if of_seeds > found.image_sd**2 else "more images"
    return f"{parts} points: {narrower} would narrow the interval most"


def classes_sentence(comparison: Comparison) -> str:
    """Whether classes differ at all, before any of them is looked at."""
    found = comparison.variation
    if found is None:
        return ""
    if found.p_value < 0.05:
        return (
            f"Differences vary between classes (Cochran's Q, p {p_text(found.p_value)}), with a"
            f" standard deviation of {found.sd:.1f} points."
        )
    return (
        f"No class is shown to differ from the others (Cochran's Q, p {p_text(found.p_value)}): read"
        " single classes as noise."
    )


def across_sentence(found: Across, candidate: str) -> str:
    """The mean over data sets, and how little few of them say."""
    pooled = found.pooled
    made = " (synthetic data)" if found.synthetic else ""
    at = f" at {EQUAL_COST}" if found.equal_cost else ""
    text = (
        f"Over {pooled.tasks} data sets{made}, {found.label}{at}: on average {signed(pooled.mean)}"
        f" points in favour of {candidate} {interval(pooled.low, pooled.high)}, p"
        f" {p_text(pooled.p_value)}"
    )
    if pooled.prediction_low is not None:
        text += (
            f"; on the next {interval(pooled.prediction_low, pooled.prediction_high)} is expected"
        )
    if found.one_seed:
        text += f"; {found.one_seed} of them by one seed"
    few = " Few data sets say little: their mean stands out only where they agree well."
    return f"{text}.{few if pooled.tasks < 6 else ''}"


def verdict_sentence(comparison: Comparison) -> str:
    """The headline metric of a pair, its outcome, and what the candidate costs more."""
    row, costs = comparison.headline, comparison.costs
    found = row.difference
    if found.difference is None:
        return f"{row.label} was not measured in both twins: {found.reason}"
    made = " (synthetic data)" if comparison.synthetic else ""
    bounds = interval(found.low, found.high)
    weights = f" ({THESE_WEIGHTS})" if row.outcome.about_weights else ""
    at = f" at {comparison.at}" if comparison.at else ""
    return (
        f"{comparison.benchmark}{made}: {row.label} {signed(found.difference)}"
        f"{' ' + bounds if bounds else ''} points, {row.outcome.phrase}{at}{weights}, for"
        f" {more(costs['parameters'])} parameters and {more(costs['multiply_adds'])} multiply-adds"
    )


def candidate_word(comparisons: Sequence[Comparison]) -> str:
    """What the candidates are called where they stand for all: "SE", or "candidate" for others."""
    networks = [comparison.pair.candidate[0].backbone for comparison in comparisons]
    only_se = all(
        network.is_se and network.options.get("attention", "se") == "se" for network in networks
    )
    return "SE" if only_se else "candidate"


def headline(comparisons: Sequence[Comparison]) -> str:
    """The report in one sentence.

    A network on a data set counts once, under however many protocols or settings it was run; runs
    that say little (near chance, very short) do not count.
    """
    counted = [c for c in comparisons if not c.not_counted]
    if not comparisons:
        return "No pair of twins to compare."
    left_out = len(comparisons) - len(counted)
    if not counted:
        return f"{_pairs(left_out)} of twins, near chance or hardly trained: nothing to compare."
    at_cost = [c for c in counted if c.pair.equal]
    others = [c for c in counted if not c.pair.equal]
    sentence = " ".join(
        _sentence(group, at, candidate_word(comparisons))
        for group, at in (
            (others, f" at {EQUAL_DEPTH}" if at_cost else ""),
            (at_cost, f" at {EQUAL_COST}"),
        )
        if group
    )
    if left_out:
        sentence += f" Not counted: {_pairs(left_out)}, near chance or hardly trained."
    return sentence


def _sentence(counted: list[Comparison], at: str, word: str) -> str:
    """The headline of the pairs that have equal depth, or equal cost."""
    benchmarks: dict[tuple[object, ...], list[Comparison]] = defaultdict(list)
    for c in counted:
        benchmarks[c.task, c.dataset, c.synthetic, c.candidate, c.plain].append(c)
    groups = list(benchmarks.values())
    verdicts = [_together([c.headline.verdict for c in group]) for group in groups]
    total = len(verdicts)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    tested = total - counts.get(UNTESTED, 0)
    if tested == 0:
        return f"{_pairs(len(counted))} of twins{at}, none of them tested."
    by_weights = sum(all(c.headline.outcome.about_weights for c in group) for group in groups)
    sentence = _who_is_what(counted, counts, total, by_weights == total, at, word)
    if all(comparison.synthetic for comparison in counted):
        sentence = f"On synthetic data: {sentence}"
    elif sentence.startswith(("the ", "these ", "undecided ")):
        sentence = f"{sentence[0].upper()}{sentence[1:]}"
    if 0 < by_weights < total:
        sentence += f" On {by_weights} of {total} there is one seed: that is about weights only."
    return sentence


def _who_is_what(
    counted: list[Comparison],
    counts: dict[str, int],
    total: int,
    weights: bool,
    at: str,
    word: str,
) -> str:
    """As "se_x is better than x on 2 of 3 benchmarks, undecided on 1."; of weights with one seed."""
    candidates = {comparison.candidate for comparison in counted}
    plains = {comparison.plain for comparison in counted}
    who = candidates.pop() if len(candidates) == 1 else f"the {word} network"
    than = plains.pop() if len(plains) == 1 else "its plain twin"
    verb = "is"
    if weights:
        who, than, verb = f"these weights of {who}", f"those of {than}", "are"
    than += at
    # Several candidates on one benchmark are as many comparisons.
    several = len({(c.task, c.dataset) for c in counted}) < total
    noun = "comparisons" if several else "benchmarks"
    if set(counts) == {UNDECIDED}:
        on = f"on {_of(total, total, noun)}"
        numbers = f": {detail(counted[0].headline)}" if len(counted) == 1 else ""
        return f"undecided whether {who} {verb} better or worse than {than} {on}{numbers}."
    margins = {c.headline.outcome.margin for c in counted if c.headline.verdict == EQUIVALENT}
    within = " or ".join(f"±{margin:g}" for margin in sorted(margins))
    said = {
        BETTER: f"better than {than}",
        WORSE: "worse" if counts.get(BETTER) else f"worse than {than}",
        EQUIVALENT: f"equivalent to {than} within {within} points",
        _MIXED: _MIXED,
        UNDECIDED: UNDECIDED,
        UNTESTED: UNTESTED,
    }
    parts = [
        f"{words} on {_of(counts[verdict], total, noun)}"
        for verdict, words in said.items()
        if counts.get(verdict)
    ]
    parts[1:] = [part.removesuffix(f" {noun}") for part in parts[1:]]  # said once is enough
    return f"{who} {verb} {', '.join(parts)}."


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


def lede(comparisons: Sequence[Comparison]) -> str | None:
    """The numbers of the clearest difference that counts: the smallest p-value."""
    counted = [c for c in comparisons if not c.not_counted]
    tested = [c for c in counted if c.headline.verdict != UNTESTED]
    if not tested:
        return None
    return min(tested, key=lambda c: c.headline.difference.p_value or 0.0).sentence
