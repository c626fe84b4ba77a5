"""Verdicts, plans and published numbers against outside oracles: statsmodels, SciPy, a worked
example of Obuchowski and Rockette's analysis, and simulation."""

import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from tools import statistics
from tools.statistics import calibration, outcomes, planning, published, simulation
from tools.statistics.differences import (
    Bounds,
    Difference,
    Noise,
    detectable_difference,
    differences_over_seeds,
    noise_of_resamples,
    variance_between_seeds,
    variance_of_mean,
)


def right_and_wrong(rng, seeds, n=2000, gain=0.02, own=0.15, run=0.01):
    """Twins of ``seeds`` runs each: images differ in difficulty, networks and runs in skill."""
    easy = rng.random(n)
    towards = rng.normal(gain, own, n)

    def side(shift):
        runs = rng.normal(0, run, (seeds, 1))
        return np.clip(easy + shift + runs, 0.02, 0.98) > rng.random((seeds, n))

    return side(0.0), side(towards)


# One model ---------------------------------------------------------------------------------------


def test_the_model_equals_a_worked_example_of_readers_and_cases():
    # Van Dyke et al. 1993 (two ways of imaging the heart, 5 readers, 114 patients), areas under
    # the curve and covariances as OR-DBM MRMC 2.5 prints them: "Analysis 1", Hillis's degrees.
    plain = np.array([0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066])
    candidate = np.array([0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169])
    error, cov1, cov2, cov3 = 0.00080229, 0.00034661, 0.00034407, 0.00023903
    churn = 2 * (error - cov1 - cov2 + cov3)
    image = np.array([2 * (cov2 - cov3) + churn / 5])
    noise = Noise(image, image, image, *3 * [np.array([churn])])
    many = np.array([10**9])
    found = differences_over_seeds(plain[:, None], candidate[:, None], noise, many, many)[0]
    assert found.difference == pytest.approx(0.04380, abs=5e-6)
    assert found.standard_error == pytest.approx(0.02075, abs=5e-6)
    assert found.degrees_of_freedom == pytest.approx(15.26, abs=5e-3)
    assert found.p_value == pytest.approx(0.0517, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-0.00036, 0.08796), abs=5e-6)
    # "Analysis 3": random readers, fixed cases.
    here = found.on_these_images
    assert (here.low, here.high) == pytest.approx((0.00258, 0.08502), abs=5e-6)
    assert here.p_value == pytest.approx(0.0420, abs=5e-5)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8])
def test_variances_over_images_are_those_of_resamples(seeds):
    rng = np.random.default_rng(seeds)
    plain, candidate = right_and_wrong(rng, seeds)
    weights = rng.multinomial(2000, np.full(2000, 1 / 2000), size=6000).T / 2000
    boots = [100 * side @ weights for side in (plain, candidate)]
    noise = noise_of_resamples(*boots, 2000)
    exact = statistics.compare_accuracy(plain, candidate)
    means = [100 * side.mean(axis=1, keepdims=True) for side in (plain, candidate)]
    drawn = differences_over_seeds(*means, noise, *2 * [np.array([2000])])[0]
    assert drawn.difference == pytest.approx(exact.difference)
    for name in ("churn_sd", "seed_sd", "image_sd", "standard_error"):
        assert getattr(drawn, name) == pytest.approx(getattr(exact, name), rel=0.03, abs=0.06)
    width = exact.high - exact.low
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.06 * width)


def test_without_churn_and_image_noise_seeds_are_tested_as_scipy_tests_them():
    rng = np.random.default_rng(0)
    nothing = Noise(*6 * [np.zeros(1)])
    one = np.array([1000])
    for seeds, test in ((3, stats.ttest_ind), (4, stats.ttest_ind), (5, stats.ttest_rel)):
        plain, candidate = rng.normal(70, 1, (seeds, 1)), rng.normal(71, 1, (seeds, 1))
        found = differences_over_seeds(plain, candidate, nothing, one, one)[0]
        expected = test(candidate[:, 0], plain[:, 0])
        assert found.p_value == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval()
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_agree_by_luck_are_no_certainty_and_no_cliff():
    plain = np.zeros((3, 400), bool)
    plain[:, 100:] = True
    candidate = plain.copy()
    candidate[:, 98:100] = True
    same = statistics.compare_accuracy(plain, candidate)
    candidate[0, 97] = True
    nearly = statistics.compare_accuracy(plain, candidate)
    assert same.p_value == pytest.approx(nearly.p_value, abs=0.15)
    assert min(same.p_value, nearly.p_value) > 0.05


def test_interval_and_p_value_of_several_seeds_never_disagree():
    rng = np.random.default_rng(1)
    for _ in range(300):
        seeds = int(rng.integers(2, 9))
        plain, candidate = right_and_wrong(rng, seeds, 300, rng.normal(0, 0.04))
        found = statistics.compare_accuracy(plain, candidate)
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        here = found.on_these_images
        assert (here.p_value < 0.05) == (not here.low <= 0 <= here.high)


def test_the_parts_of_the_noise_are_found_again():
    rng = np.random.default_rng(2)
    parts = []
    for _ in range(60):  # churn 100 sqrt(2 mean(p (1 - p)) / n), seeds 100 sqrt(2) run
        plain, candidate = right_and_wrong(rng, 8, 2000, 0.0, 0.0, 0.01)
        found = statistics.compare_accuracy(plain, candidate)
        parts.append((found.seed_sd**2, found.churn_sd**2))
    seed, churn = np.sqrt(np.mean(parts, axis=0))
    assert churn == pytest.approx(100 * np.sqrt(2 / 6 / 2000), rel=0.05)
    assert seed == pytest.approx(100 * np.sqrt(2) * 0.01, rel=0.15)


def test_the_size_of_the_test_is_what_its_docstring_says():
    """Integrated over the distribution of the variance between seeds, for all shares of parts."""
    places = (np.arange(2000) + 0.5) / 2000
    for seeds, degrees, least, most in (
        (2, 2, 0.021, 0.068),
        (3, 4, 0.022, 0.059),
        (5, 4, 0.022, 0.059),
    ):
        for image in (0.0, 0.1, 1.0, 3.0, 10.0):
            for seed in (0.0, 0.5, 2.0, 10.0, 100.0):
                between = (1 + seed) * stats.chi2.ppf(places, degrees) / degrees
                total, churn = np.full_like(between, image + 1 / seeds), np.ones_like(between)
                many = np.full_like(between, np.inf)
                variance, own = variance_of_mean(between, churn, total, seeds, degrees, many)
                true = np.sqrt((1 + seed) / seeds + image)
                size = np.mean(
                    2 * stats.norm.sf(stats.t.ppf(0.975, own) * np.sqrt(variance) / true)
                )
                assert least <= size <= most


def test_the_detectable_difference_is_seen_in_four_of_five_cases():
    for degrees in (2.0, 4.0, 9.0, 60.0, 1e9):
        shift = float(detectable_difference(1.0, degrees))
        critical = stats.t.ppf(0.975, min(degrees, 1e6))
        assert stats.nct.sf(critical, min(degrees, 1e6), shift) == pytest.approx(0.8, abs=1e-3)


def test_an_error_is_an_accuracy_mirrored():
    rng = np.random.default_rng(3)
    plain, candidate = right_and_wrong(rng, 3)
    accuracy = statistics.compare_accuracy(plain, candidate)
    error = accuracy.mirrored()
    wrong = statistics.compare_accuracy(~plain, ~candidate)
    for name in (
        "plain",
        "difference",
        "low",
        "high",
        "low_90",
        "high_90",
        "p_value",
        "compatible",
    ):
        assert getattr(error, name) == pytest.approx(getattr(wrong, name)), name
    assert error.on_these_images.low == pytest.approx(wrong.on_these_images.low)
    assert error.plain_interval == pytest.approx(wrong.plain_interval)
    assert error.mirrored() == accuracy


# Words -------------------------------------------------------------------------------------------


def a_difference(change, error, degrees=8.0, seeds=3):
    half, inner = (stats.t.ppf(q, degrees) * error for q in (0.975, 0.95))
    return Difference(
        70.0, 70.0 + change, change, change - half, change + half,
        2 * stats.t.sf(abs(change) / error, degrees), seeds=seeds, standard_error=error,
        degrees_of_freedom=degrees, low_90=change - inner, high_90=change + inner,
        detectable=float(detectable_difference(error, degrees)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "higher", "word"),
    [
        (1.0, 0.2, True, "better"),
        (1.0, 0.2, False, "worse"),
        (-1.0, 0.2, True, "worse"),
        (0.05, 0.1, True, "equivalent"),
        (0.3, 0.5, True, "undecided"),
        (0.1, 0.01, True, "better"),  # clear, however small
    ],
)
def test_a_word_is_said_where_its_test_allows_it(change, error, higher, word):
    found = a_difference(change, error)
    said = outcomes.decide(found, higher_is_better=higher, margin=0.3, p_value=found.p_value)
    assert said.word == word
    if word == "equivalent":
        assert said.phrase == "equivalent within ±0.3"
    if word == "undecided":
        assert f"{found.detectable:.2f} or more" in said.phrase
        assert f"up to {found.compatible:.2f} is" in said.phrase


def test_nothing_is_said_of_what_was_not_tested():
    found = a_difference(1.0, 0.1)
    said = outcomes.decide(found, higher_is_better=True, margin=0.3, p_value=None)
    assert said.word == said.phrase == "not tested"
    nan = outcomes.decide(found, higher_is_better=True, margin=0.3, p_value=float("nan"))
    assert nan.word == "not tested"
    bare = Difference(70.0, 71.0, 1.0, p_value=0.001)
    assert (
        outcomes.decide(bare, higher_is_better=True, margin=0.3, p_value=0.001).word == "not tested"
    )
    with pytest.raises(ValueError, match="margin 0"):
        outcomes.decide(found, higher_is_better=True, margin=0, p_value=0.1)


def test_one_seed_is_about_weights():
    one = outcomes.decide(
        a_difference(1.0, 0.1, seeds=1), higher_is_better=True, margin=0.3, p_value=0.001
    )
    three = outcomes.decide(
        a_difference(1.0, 0.1), higher_is_better=True, margin=0.3, p_value=0.001
    )
    assert (one.about_weights, three.about_weights) == (True, False)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.6])
def test_equivalence_is_decided_as_statsmodels_decides_it(shift):
    rng = np.random.default_rng(4)
    for _ in range(40):
        plain = rng.normal(70, 0.4, 6)
        candidate = plain + rng.normal(shift, 0.4, 6)
        nothing, many = Noise(*6 * [np.zeros(1)]), np.array([10**6])
        found = differences_over_seeds(plain[:, None], candidate[:, None], nothing, many, many)[0]
        p_value = ttost_paired(candidate, plain, -0.5, 0.5)[0]
        assert (found.compatible <= 0.5) == (p_value <= 0.05)


# Many together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [(statistics.holm, "holm"), (statistics.benjamini_hochberg, "fdr_bh")]
)
def test_corrected_p_values_equal_statsmodels_and_leave_out_what_is_missing(
    ours, theirs, monkeypatch
):
    monkeypatch.setattr(
        "gc.collect", lambda: 0
    )  # which statsmodels calls, a tenth of a second each
    rng = np.random.default_rng(5)
    for _ in range(50):
        values = np.round(rng.random(rng.integers(1, 12)) ** 3, 2).tolist()  # with ties
        expected = multipletests(values, method=theirs)[1]
        adjusted = ours([None, *values, float("nan")])
        assert adjusted[0] is adjusted[-1] is None
        assert adjusted[1:-1] == pytest.approx(expected)


def test_whether_groups_differ_is_tested_as_statsmodels_tests_it():
    rng = np.random.default_rng(6)
    effects, variances = rng.normal(1, 2, 9), rng.uniform(0.5, 3, 9)
    found = statistics.variation(effects, variances)
    expected = combine_effects(effects, variances, method_re="chi2")
    assert found.q == pytest.approx(expected.q)
    assert found.p_value == pytest.approx(expected.test_homogeneity().pvalue)
    assert found.sd**2 == pytest.approx(max(0, expected.tau2))
    low, high = np.minimum(effects, found.mean), np.maximum(effects, found.mean)
    assert np.all((low <= found.shrunken) & (found.shrunken <= high))


def test_classes_that_do_not_differ_are_said_to_in_one_report_of_twenty():
    rng = np.random.default_rng(7)
    label = np.repeat(np.arange(100), 50)
    for seeds in (1, 3):
        p_values = []
        for _ in range(200):
            plain, candidate = right_and_wrong(rng, seeds, len(label), 0.0, 0.05, 0.0)
            p_values.append(statistics.compare_classes(label, plain, candidate)[1].p_value)
        assert np.mean(np.array(p_values) < 0.05) <= 0.10  # 5 % of 200, three standard errors
        assert np.mean(np.array(p_values) < 0.5) >= 0.3  # and it is no dead test


def test_shrunken_class_differences_are_nearer_the_truth_than_raw_ones():
    rng = np.random.default_rng(8)
    label = np.repeat(np.arange(200), 50)
    truth = rng.normal(0.02, 0.04, 200)
    easy = rng.uniform(0.3, 0.7, len(label))
    plain = easy > rng.random((1, len(label)))
    candidate = easy + truth[label] > rng.random((1, len(label)))
    found, varied = statistics.compare_classes(label, plain, candidate)
    raw = np.array([one.difference for one in found.values()])
    errors = [np.mean((guess - 100 * truth) ** 2) for guess in (raw, np.array(varied.shrunken))]
    assert errors[1] < 0.6 * errors[0]
    assert varied.p_value < 0.05


def test_effects_are_pooled_as_statsmodels_pools_them():
    rng = np.random.default_rng(9)
    widened = 0
    for _ in range(40):
        k = int(rng.integers(2, 9))
        effects, variances = rng.normal(0.5, 0.5, k), rng.uniform(0.01, 0.4, k)
        found = statistics.pool_tasks(effects, variances)
        expected = combine_effects(effects, variances, method_re="iterated", use_t=True)
        assert found.mean == pytest.approx(expected.mean_effect_re, abs=1e-6)
        assert found.sd**2 == pytest.approx(expected.tau2, abs=1e-6)
        plain, hartung = expected.sd_eff_w_re, expected.sd_eff_w_re_hksj
        half = stats.t.ppf(0.975, k - 1) * max(plain, hartung)
        assert found.high - found.mean == pytest.approx(half, rel=1e-5)
        widened += plain > hartung
        if k > 2:
            assert found.prediction_low <= found.low
    assert widened > 5
    with pytest.raises(ValueError, match="two or more"):
        statistics.pool_tasks([1.0], [0.1])


# Plans -------------------------------------------------------------------------------------------


def test_images_needed_are_those_of_the_published_formula():
    assert planning.images_needed(0.01, 0.10) == 7847
    assert planning.images_needed(0.003, 0.10) == 87_208
    for n in (500, 5000, 50_000):
        found = float(planning.detectable_with_images(n, 0.1))
        assert planning.images_needed(found, 0.1) == pytest.approx(n, abs=1)
    with pytest.raises(ValueError, match=r"difference 0\.2 and discordant 0\.1"):
        planning.images_needed(0.2, 0.1)


def test_planned_seeds_equal_statsmodels_for_independent_seeds():
    for seeds in (2, 3, 4):
        found = planning.detectable_with_seeds(seeds, np.sqrt(2) * 0.2, 0.0, 0.0)
        expected = TTestIndPower().solve_power(None, seeds, 0.05, 0.8) * 0.2
        assert found == pytest.approx(expected, rel=1e-4)
    assert planning.seeds_needed(0.3, np.sqrt(2) * 0.1, 0.0, 0.0) == 4
    assert planning.seeds_needed(0.3, 0.1, 0.1, 0.2) is None  # the images hide it
    assert planning.seeds_needed(-0.5, 0.1, 0.1, 0.1) == planning.seeds_needed(0.5, 0.1, 0.1, 0.1)


def test_looks_together_keep_the_level():
    levels = planning.look_levels((3, 5, 8, 10))
    assert levels[0] == pytest.approx(0.7 * 0.05 * 0.3**2, rel=0.01)  # it spends what it may
    assert levels == sorted(levels)
    rng = np.random.default_rng(10)
    runs = rng.normal(0, 1, (200_000, 10)).cumsum(axis=1)
    rejected = np.zeros(len(runs), bool)
    for look, level in zip((3, 5, 8, 10), levels, strict=True):
        rejected |= 2 * stats.norm.sf(np.abs(runs[:, look - 1]) / np.sqrt(look)) < level
    assert rejected.mean() == pytest.approx(0.7 * 0.05, abs=0.002)
    assert planning.look_levels((4,)) == pytest.approx([0.05], abs=1e-4)
    with pytest.raises(ValueError, match="rising order"):
        planning.look_levels((5, 3))


@pytest.mark.parametrize(
    ("seed", "image", "churn"), [(1, 0, 0), (1, 0.05, 0.1), (30, 1, 1), (1, 1, 0.1), (0, 1, 1)]
)
def test_looks_at_few_seeds_err_in_five_percent_at_most(seed, image, churn):
    rng, n, looks = np.random.default_rng(11), 40_000, (3, 5, 8, 10)
    sd = np.sqrt((seed + churn) / 2)
    plain, candidate = rng.normal(0, sd, (2, 10, n))
    candidate = candidate + rng.normal(0, np.sqrt(image), n)
    rejected = np.zeros(n, bool)
    many = np.full(n, 10**9)
    for look, level in zip(looks, planning.look_levels(looks), strict=True):
        part, whole = np.full(n, churn), np.full(n, image + churn / look)
        noise = Noise(whole, whole, whole, part / 2, part / 2, part)
        between, known, degrees = variance_between_seeds(plain[:look], candidate[:look], noise)
        variance, own = variance_of_mean(between, known, whole, look, degrees, many)
        change = (candidate[:look] - plain[:look]).mean(axis=0)
        rejected |= 2 * stats.t.sf(np.abs(change) / np.sqrt(variance), own) < level
    assert rejected.mean() <= 0.05 + 0.0033  # three standard errors


# How often it errs -------------------------------------------------------------------------------


def test_verdicts_err_as_rarely_as_promised_and_speak_the_more_the_more_seeds():
    """A small version of ``sebench statistics-check``."""
    found = [
        simulation.simulate(setting, studies)
        for setting, studies in (
            (simulation.Setting("top-k", 500, 0.0, 0.0, same=True), 80),
            (simulation.Setting("top-k", 500, 0.4, 0.0), 80),
            (simulation.Setting("top-k", 500, 0.4, 4.0), 80),
            (simulation.Setting("AP", 500, 0.4, 0.0), 200),
            (simulation.Setting("AP", 500, 0.4, 3.0), 200),
            (simulation.Setting("boxes", 40, 0.0, 0.0), 10),
        )
    ]
    assert simulation.shortcomings(found) == []
    table = simulation.as_markdown(found)
    assert "| AP, 500 images, run sd 0.4, gain 3 |" in table
    text = simulation.replace_tables(
        "a <!-- simulated: begin -->stale<!-- simulated: end --> b", table
    )
    assert "stale" not in text
    assert table in text
    with pytest.raises(ValueError, match="no place"):
        simulation.replace_tables("a text", table)


def test_broken_promises_are_named():
    setting = simulation.Setting("top-k", 500, 0.4, 0.0)
    bad = simulation.Rates(setting, 2000, (1, 3), (0.05, 0.30), (0.95, 0.70), 0.01, None)
    said = " ".join(simulation.shortcomings([bad]))
    assert "size 30.0% with 3 seeds" in said
    assert "disagree in 1.0%" in said
    falling = simulation.Rates(
        simulation.Setting("AP", 500, 0.4, 2.0), 2000, (2, 3), (0.6, 0.3), (0.9, 0.9), 0.0, None
    )
    assert "power falls to 30.0% with 3 seeds" in " ".join(simulation.shortcomings([falling]))


# Published numbers -------------------------------------------------------------------------------


def test_released_weights_are_held_to_rounding_and_decoder():
    assert published.judge_released(77.62, 77.5, 1).word == "reproduced"
    off = published.judge_released(77.22, 77.52, 2)
    assert off.word == "not reproduced"
    assert "-0.30" in off.reason


def test_one_more_run_is_expected_where_statsmodels_expects_it():
    values = [70.1, 70.4, 69.9, 70.3]
    low, high = published.prediction_interval(values)
    inside = DescrStatsW(values)
    half = stats.t.ppf(0.975, 3) * inside.std_mean * np.sqrt(4) * np.sqrt(1 + 1 / 4)
    assert (low, high) == pytest.approx((inside.mean - half, inside.mean + half))
    wider = published.prediction_interval(values, digits=1)
    assert wider == pytest.approx((low - 0.05, high + 0.05))
    with pytest.raises(ValueError, match="noise of training is unknown"):
        published.prediction_interval([70.0])


def test_the_prediction_interval_holds_the_next_run_as_often_as_it_says():
    rng = np.random.default_rng(11)
    runs = rng.normal(70, 0.3, (4000, 4))
    held = [
        low <= run[3] <= high
        for run in runs
        for low, high in [published.prediction_interval(run[:3])]
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("values", "sd", "word"),
    [
        ([70.0, 70.05, 69.95, 70.0, 70.0], None, "reproduced"),
        ([70.0], 0.08, "reproduced"),
        ([69.0, 69.1, 69.05], None, "not reproduced"),
        ([69.5, 70.2], None, "undecided"),
        ([70.0], 0.3, "undecided"),  # absence of evidence is not enough
    ],
)
def test_trained_runs_are_reproduced_by_evidence_only(values, sd, word):
    found = published.judge_trained(values, 70.0, 0.3, digits=2, sd=sd)
    assert found.word == word
    difference, low, high = map(float, re.findall(r"[+-]\d+\.\d+", found.reason))
    assert low <= difference <= high


def test_effects_are_compared_and_small_ones_seen_through_small_telescopes():
    def measured(change, error):
        found = a_difference(change, error)
        here = Bounds(found.low, found.high, found.p_value)
        noise = {"seed_sd": 0.2, "churn_sd": 0.0}  # of one pair of runs, as the published one
        return Difference(**{**vars(found), **noise, "on_these_images": here})

    def word(change, error, margin=0.5):
        return published.judge_effect(measured(change, error), 1.5, margin, digits=2).word

    assert word(1.5, 0.05) == "reproduced"
    assert word(1.5, 0.6) == "undecided"
    assert word(0.0, 0.05, margin=2.0) == "reproduced"  # within a margin that wide
    assert word(0.0, 0.05) == "not reproduced"
    assert word(4.0, 0.2) == "not reproduced"
    one = published.judge_effect(a_difference(1.0, 0.1), 1.5, 0.5, digits=2)
    assert (one.word, "one seed" in one.reason) == ("undecided", True)


# Probabilities -----------------------------------------------------------------------------------


def test_scores_of_probabilities_equal_hand_worked_values():
    assert calibration.log_losses(np.array([0.7, 0.3])) == pytest.approx([0.3567, 1.2040], abs=1e-4)
    assert np.isfinite(calibration.log_losses(np.array([0.0]))).all()
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    side = confidence[None], right[None]
    found = calibration.compare_calibration(side, side, bins=10, resamples=2)
    assert found.plain == pytest.approx(0.05)


def test_scores_and_calibration_of_twins_are_compared_with_intervals():
    rng = np.random.default_rng(12)
    confidence = rng.uniform(0.5, 1.0, (3, 3000))
    right = rng.random((3, 3000)) < confidence
    bold = np.clip(confidence + 0.1, 0, 1)
    found = calibration.compare_calibration((confidence, right), (bold, right), resamples=200)
    gaps = [
        np.sum(inside * (right[0] - confidence[0]))
        for edge in np.arange(15) / 15
        for inside in [(confidence[0] > edge) & (confidence[0] <= edge + 1 / 15)]
    ]
    assert found.plain == pytest.approx(np.sum(np.abs(gaps)) / 3000, abs=0.02)
    assert found.low > 0
    assert found.p_value < 0.001
    losses = [calibration.log_losses(np.where(right, c, 1 - c)) for c in (confidence, bold)]
    worse = calibration.compare_scores(*losses)
    assert worse.difference == pytest.approx(losses[1].mean() - losses[0].mean())
    assert worse.low > 0
    one = calibration.compare_scores(losses[0][:1], losses[1][:1])
    expected = stats.ttest_rel(losses[1][0], losses[0][0])
    assert one.p_value == pytest.approx(expected.pvalue)
