"""Statistics against outside oracles: statsmodels, SciPy, pycocotools, hotcoco, simulation."""

import contextlib
import copy
import io
import json
from pathlib import Path

import hotcoco
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from detection.annotations import annotations_from, results_from
from detection.scoring import METRICS, score
from tools import statistics
from tools.experiments.record import METRICS as RECORDED
from tools.statistics.coco_metrics import (
    RECALL_THRESHOLDS,
    _thresholds_reached,
    resample_weights,
)
from tools.statistics.differences import differences_over_seeds, noise_of_resamples


def random_coco(seed, images=12, categories=3, detections=25):
    """Annotations and two results with crowds, ties in score and overlap, and empty images."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": int(i)} for i in rng.permutation(images) + 7],
        "categories": [{"id": 3 * k + 1, "name": f"category {k}"} for k in range(categories)],
        "annotations": [],
    }
    results = [[], []]
    for image in range(7, 7 + images - 1):  # the last image stays empty
        for _ in range(rng.integers(0, 6)):
            category = 3 * int(rng.integers(0, categories)) + 1
            box = [*rng.integers(0, 60, 2).tolist(), *np.exp(rng.uniform(2, 5.5, 2)).tolist()]
            truth["annotations"].append(
                {
                    "id": 1 + len(truth["annotations"]),
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * 0.8,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for result in results:
                for _ in range(rng.integers(0, 4)):
                    shift = rng.normal(0, 0.08, 4) * [box[2], box[3], box[2], box[3]]
                    result.append((image, category, np.add(box, shift), rng.random()))
        for result in results:
            for _ in range(rng.integers(0, detections)):
                box = [*rng.uniform(0, 60, 2), *np.exp(rng.uniform(2, 5.5, 2))]
                result.append((image, 3 * int(rng.integers(0, categories)) + 1, box, rng.random()))
    results = [
        [
            {
                "image_id": image,
                "category_id": category,
                "bbox": [float(v) for v in box],
                "score": round(float(score), 2),
            }
            for image, category, box, score in result
        ]
        for result in results
    ]
    return truth, results


def typed(truth, *results):
    """Content of COCO files as the arrays that `statistics` takes."""
    images = [
        {"file_name": "a.jpg", "width": 99, "height": 99, **image} for image in truth["images"]
    ]
    content = json.dumps({**truth, "images": images}).encode()
    arrays = annotations_from(content, Path("given.json"))
    return arrays, *(
        results_from(
            arrays,
            *(
                np.array([row[key] for row in result])
                for key in ("image_id", "category_id", "bbox", "score")
            ),
        )
        for result in results
    )


def pycocotools_evaluation(truth, result):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(result)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_coco_metrics_equal_pycocotools(seed):
    """To the bit; a resample that holds every image once but for the order in which numbers are added."""
    truth, results = random_coco(seed, detections=450 if seed == 0 else 25)
    oracle = pycocotools_evaluation(truth, results[0])
    found = typed(truth, results[0])
    expected = [None if value == -1 else value * 100 for value in oracle.stats]
    assert list(score(*found).metrics.values()) == expected
    once = np.ones((1, len(truth["images"])))
    (scored,) = statistics.MatchedDetections(*found).resampled(once)
    expected = np.where(oracle.stats == -1, np.nan, oracle.stats * 100)
    np.testing.assert_allclose(scored[: len(METRICS)], expected, rtol=1e-12)


@pytest.mark.parametrize("detections", [25, 120])  # the most an image has; AR1, AR10 cut in
def test_a_resample_is_scored_as_if_its_images_were_copied(detections):
    truth, results = random_coco(3, images=10, detections=detections)
    for result in results:  # equal scores leave the order of the copies open
        for row, detection in enumerate(result):
            detection["score"] += row * 1e-7
    matched = statistics.MatchedDetections(*typed(truth, results[0]))
    weights = resample_weights(10, 6, seed=1)
    scored = matched.resampled(weights)
    image_ids = sorted(image["id"] for image in truth["images"])
    for column, counts in enumerate(weights.astype(int)):
        copied, detections = {**truth, "images": [], "annotations": []}, []
        for image, count in zip(image_ids, counts, strict=True):
            for _ in range(count):
                new = 1 + len(copied["images"])
                copied["images"].append({"id": new})
                for box in truth["annotations"]:
                    if box["image_id"] == image:
                        identifier = 1 + len(copied["annotations"])
                        copied["annotations"].append({**box, "image_id": new, "id": identifier})
                detections += [
                    {**found, "image_id": new} for found in results[0] if found["image_id"] == image
                ]
        oracle = pycocotools_evaluation(copied, detections)
        expected = np.where(oracle.stats == -1, np.nan, oracle.stats * 100)
        np.testing.assert_allclose(scored[column, : len(METRICS)], expected, rtol=1e-12)
        per_category = oracle.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1)) * 100
        np.testing.assert_allclose(
            scored[column, len(METRICS) :],
            np.where(per_category < 0, np.nan, per_category),
            rtol=1e-12,
        )


def test_the_bootstrap_agrees_with_hotcoco_but_counts_an_image_drawn_twice_twice():
    """hotcoco 1.3 scores the distinct images of a resample, which makes its intervals too narrow."""
    truth, results = random_coco(5, images=80)
    evaluations = []
    for result in results:
        ground = hotcoco.COCO(copy.deepcopy(truth))
        evaluation = hotcoco.COCOeval(ground, ground.load_res(copy.deepcopy(result)), "bbox")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        evaluations.append(evaluation)
    oracle = hotcoco.compare(*evaluations, n_bootstrap=1000)

    ground, *results = typed(truth, *results)
    distinct = resample_weights(80, 1000, seed=0).clip(max=1)
    one, two = (statistics.MatchedDetections(ground, r).resampled(distinct) for r in results)
    metrics, categories = statistics.compare_coco_metrics(ground, results[:1], results[1:])
    for column, name in enumerate(("AP", "AP50", "AP75")):
        theirs = oracle["ci"][name]
        width = 100 * (theirs["upper"] - theirs["lower"])
        low, high = np.percentile(two[:, column] - one[:, column], [2.5, 97.5])
        assert low == pytest.approx(100 * theirs["lower"], abs=0.1 * width)
        assert high == pytest.approx(100 * theirs["upper"], abs=0.1 * width)
        assert metrics[name].difference == pytest.approx(100 * oracle["deltas"][name], abs=1e-9)
        assert metrics[name].high - metrics[name].low > 1.15 * width
    for row in oracle["per_category"]:
        assert categories[row["cat_name"]].difference == pytest.approx(100 * row["delta"])


def test_equal_results_differ_by_nothing_and_empty_categories_say_why():
    truth, results = random_coco(6)
    truth["categories"].append({"id": 99, "name": "unseen"})
    ground, one = typed(truth, results[0])
    metrics, categories = statistics.compare_coco_metrics(ground, [one], [one], 50)
    assert (metrics["AP"].difference, metrics["AP"].p_value) == (0.0, 1.0)
    assert (metrics["AP"].low, metrics["AP"].high) == (0.0, 0.0)
    assert (metrics["AR100"].low, metrics["AR100"].high, metrics["AR100"].p_value) == (0, 0, 1)
    assert categories["unseen"].difference is None
    assert "no box" in categories["unseen"].reason


def test_several_seeds_of_detectors_are_compared_in_every_metric_and_class():
    plain, candidate = [], []
    truth, _ = random_coco(6, images=40)
    rng = np.random.default_rng(0)
    for side, noise in ((plain, 0.15), (candidate, 0.05)):
        for _ in range(3):
            side.append(
                [
                    {
                        **{key: box[key] for key in ("image_id", "category_id")},
                        "bbox": [v * (1 + noise * rng.normal()) for v in box["bbox"]],
                        "score": rng.random(),
                    }
                    for box in truth["annotations"]
                ]
            )
    ground, *found = typed(truth, *plain, *candidate)
    plain, candidate = found[:3], found[3:]
    metrics, categories = statistics.compare_coco_metrics(ground, plain, candidate, 50)
    points = [[score(ground, result) for result in side] for side in (plain, candidate)]
    assert list(metrics) == list(METRICS)
    for name, found in metrics.items():
        values = [[scores.metrics[name] for scores in side] for side in points]
        assert found.difference == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        assert found.plain_interval[0] < found.plain < found.plain_interval[1]
        assert min(found.seed_sd, found.image_sd) >= 0
        assert found.churn_sd > 0
        here = found.on_these_images
        assert here.low < found.difference < here.high
    for index, found in enumerate(categories.values()):
        values = [[scores.per_class[index].value for scores in side] for side in points]
        assert found.difference == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
        assert found.low < found.difference < found.high


def test_a_metric_without_a_box_has_neither_value_nor_interval():
    truth, results = random_coco(4)
    truth["annotations"] = [box for box in truth["annotations"] if box["area"] > 32**2]
    ground, first = typed(truth, results[0])
    second = typed(truth, results[1])[1]
    metrics, _ = statistics.compare_coco_metrics(ground, [first], [second], 50)
    for name in ("ARs", "APs"):
        assert metrics[name].plain is metrics[name].low is metrics[name].plain_interval is None
    found = metrics["ARl"]
    assert found.plain_interval[0] <= found.plain <= found.plain_interval[1]


def test_the_bootstrap_does_not_depend_on_the_number_of_workers():
    truth, results = random_coco(2)
    ground, *results = typed(truth, *results)
    matched = [statistics.MatchedDetections(ground, result) for result in results]
    one = statistics.bootstrap_coco_metrics(matched, 300, seed=4, workers=1)
    two = statistics.bootstrap_coco_metrics(matched, 300, seed=4, workers=2)
    assert np.array_equal(one, two, equal_nan=True)


def test_recall_thresholds_are_counted_as_a_search_would():
    counts = np.arange(1, 301)
    recall = (np.arange(301)[:, None] / counts)[:, :].clip(max=1)
    expected = np.searchsorted(RECALL_THRESHOLDS, recall, side="right")
    assert np.array_equal(_thresholds_reached(recall), expected)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (81, 263), (49999, 50000), (7, 7)])
def test_wilson_intervals_equal_statsmodels(correct, n):
    expected = np.multiply(100, proportion_confint(correct, n, method="wilson"))
    assert statistics.wilson_interval(correct, n) == pytest.approx(expected, abs=1e-9)


def test_wilson_interval_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert statistics.wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.005)


def test_mid_p_is_the_exact_test_less_half_of_what_was_seen():
    rng = np.random.default_rng(0)
    plain, candidate = rng.random(300) < 0.6, rng.random(300) < 0.68
    gained, lost = np.sum(candidate & ~plain), np.sum(plain & ~candidate)
    exact = statsmodels_mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
    seen = stats.binom.pmf(gained, gained + lost, 0.5)
    assert statistics.mid_p(gained, lost) == pytest.approx(exact - seen)
    assert statistics.mid_p(np.array([0, 3]), np.array([0, 3])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("gained", "lost", "n", "tail", "expected", "digits"),
    [
        # Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables", 2017, 8: the
        # airways of 21 children (Bentur et al. 2009).
        (1, 7, 21, 0.025, (-0.517, -0.026), 3),
        (28, 25, 618, 0.05, (-0.0148, 0.0247), 4),  # R, PropCIs::scoreci.mp(25, 28, 618, 0.90)
    ],
)
def test_the_score_interval_equals_published_examples(gained, lost, n, tail, expected, digits):
    low, high = statistics.score_interval(np.array([gained]), np.array([lost]), np.array([n]), tail)
    assert (round(low[0], digits), round(high[0], digits)) == expected


def test_the_score_interval_holds_what_the_score_test_does_not_reject():
    gained, lost, n = 12, 5, 100
    low, high = statistics.score_interval(np.array([gained]), np.array([lost]), np.array([n]))

    def statistic(delta):  # with the likelihood's own maximum, found by search
        share = np.linspace(max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 200_001)
        likelihood = (
            gained * np.log(share + delta) + lost * np.log(share)
            + (n - gained - lost) * np.log(1 - 2 * share - delta)
        )  # fmt: skip
        best = share[np.argmax(likelihood)]
        return (gained - lost - n * delta) / np.sqrt(n * (2 * best + delta - delta**2))

    assert statistic(low[0]) == pytest.approx(1.959964, abs=1e-3)
    assert statistic(high[0]) == pytest.approx(-1.959964, abs=1e-3)


def test_interval_and_p_value_of_one_seed_never_disagree():
    for differing in (*range(30), 75, 84, 104, 204):  # where the score test alone rejects
        for gained in range(differing + 1):
            plain, candidate = np.zeros((1, 300), bool), np.zeros((1, 300), bool)
            candidate[0, :gained] = True
            plain[0, gained:differing] = True
            found = statistics.compare_accuracy(plain, candidate)
            assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
            assert found.low <= found.difference <= found.high
            assert found.p_value == float(statistics.mid_p(gained, differing - gained))


def test_weights_that_agree_on_every_image_are_not_certain_to_be_equal():
    right = np.ones((1, 500), bool)
    found = statistics.compare_accuracy(right, right)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    # Wilson's upper end for 0 of 500 is z^2 / (n + z^2); Tango's for 0 and 0 is the same.
    assert (found.low, found.high) == pytest.approx((-0.7624, 0.7624), abs=1e-4)
    assert found.detectable < 2
    several = statistics.compare_accuracy(np.ones((3, 500), bool), np.ones((3, 500), bool))
    assert several.low < -0.2
    assert several.high > 0.2
    assert several.plain_interval[0] < 100 == several.plain_interval[1]


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered, trials, n = 0, 400, 400
    for _ in range(trials):  # hard images are hard for both twins: the true difference is 5 points
        easy = rng.random(n)
        plain = (easy + rng.normal(0, 0.1, n) > 0.40)[None]
        shifted = easy + rng.normal(0, 0.1, n) > 0.35
        found = statistics.compare_accuracy(plain, shifted[None])
        covered += found.low <= 5.0 <= found.high
    assert 0.92 <= covered / trials <= 0.98  # 95 % of 400, three standard errors either side


def test_intervals_of_average_precision_cover_the_expected_difference():
    """Over sets of pictures drawn alike; without centring the bias of AP shows in its own."""
    found = []
    for trial in range(60):
        truth, results = random_coco(100 + trial, images=30, categories=2, detections=4)
        for detection in results[1]:  # a little worse than the other
            detection["bbox"][0] += 2.0
        truth, plain, candidate = typed(truth, *results)
        metrics, _ = statistics.compare_coco_metrics(
            truth, [plain], [candidate], resamples=80, seed=trial
        )
        found.append(metrics["AP"])
    difference = np.mean([one.difference for one in found])
    plain = np.mean([one.plain for one in found])
    covered = np.mean([one.low <= difference <= one.high for one in found])
    covered_plain = np.mean(
        [one.plain_interval[0] <= plain <= one.plain_interval[1] for one in found]
    )
    assert covered >= 0.85  # 95 % of 60, three standard errors below
    assert covered_plain >= 0.85


@pytest.mark.parametrize(
    "shapes", [((2, 9), (3, 9)), ((2, 9), (2, 8)), ((9,), (9,)), ((1, 0), (1, 0))]
)
def test_sides_that_do_not_fit_are_named(shapes):
    plain, candidate = (np.zeros(shape, bool) for shape in shapes)
    with pytest.raises(ValueError, match=r"plain of shape .* and candidate of shape"):
        statistics.compare_accuracy(plain, candidate)
    with pytest.raises(ValueError, match="shape"):
        statistics.compare_classes(np.zeros(9, int), plain, candidate)


def test_classes_are_compared_as_all_images_are():
    rng = np.random.default_rng(5)
    label = rng.permutation(np.repeat([0, 1, 3, 4], 50))  # no image of class 2
    plain, candidate = rng.random((6, 200)) < 0.6, rng.random((6, 200)) < 0.7
    plain[:, label == 3] = candidate[:, label == 3] = True  # nothing differs
    for seeds in (1, 2, 6):
        found, _ = statistics.compare_classes(label, plain[:seeds], candidate[:seeds])
        assert list(found) == [0, 1, 3, 4]
        for index, one in found.items():
            rows = label == index
            alone = statistics.compare_accuracy(plain[:seeds, rows], candidate[:seeds, rows])
            for name, value in vars(alone).items():
                if not name.endswith("_interval"):
                    assert getattr(one, name) == pytest.approx(value), name
        assert found[3].p_value == 1.0


def test_a_difference_without_scorable_resamples_says_so():
    missing = np.full((1, 10), np.nan)
    noise = noise_of_resamples(missing, missing, 3)
    found = differences_over_seeds(np.ones((1, 1)), np.ones((1, 1)), noise, *2 * [np.array([3])])
    assert found[0].low is None
    assert found[0].difference == 0.0
    assert "no resample" in found[0].reason


def test_effects_are_told_for_their_cost():
    effect = statistics.effect_sizes(-1.5, 25.0, 2_500_000, 10_000_000)
    assert effect == {
        "absolute": -1.5,
        "relative": -6.0,
        "per_million_parameters": -0.6,
        "per_million_multiply_adds": -0.15,
    }
    assert statistics.effect_sizes(1.0, 5.0, 0, None)["per_million_parameters"] is None


def test_predictions_are_read_from_per_image_rows(tmp_path):
    path = tmp_path / "samples.parquet"
    rows = {"image": ["a", "b"], "label": [1, 2], "top5": [[1, 0, 2], [0, 2, 1]]}
    parquet.write_table(pa.table(rows), path)
    predictions = statistics.load_predictions(path)
    assert predictions.correct(1).tolist() == [True, False]
    assert predictions.correct(2).tolist() == [True, True]
    path.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"samples\.parquet"):
        statistics.load_predictions(path)


def test_every_metric_of_the_record_has_a_bootstrap():
    assert [name for name in RECORDED if name.startswith(("AP", "AR"))] == list(METRICS)
