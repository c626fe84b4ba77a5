"""AP and AR: equal to pycocotools' to the bit, and never -1 or NaN."""

import contextlib
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.annotations import Results, read_annotations, results_from
from detection.scoring import METRICS, score, score_results

CATEGORIES = [{"id": 1, "name": "circle"}, {"id": 3, "name": "square"}, {"id": 9, "name": "<b>"}]


def truth_and_detections(seed, tmp_path, images=12, boxes=6):
    """Boxes of three sizes, crowds, empty pictures, ties, doubles and misses, all by chance."""
    rng = np.random.default_rng(seed)
    rows, found = [], []
    for image_id in range(1, images + 1):
        for _ in range(int(rng.integers(0, boxes))):
            x, y = rng.uniform(0, 200, 2)
            width, height = np.exp(rng.uniform(1.5, 5.5, 2))
            category = int(rng.choice([1, 3]))
            row = {
                "id": len(rows) + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(v) for v in (x, y, width, height)],
                "area": float(width * height),
                "iscrowd": int(rng.uniform() < 0.1),
            }
            rows.append(row)
            for _ in range(int(rng.integers(0, 4))):
                moved = np.array(row["bbox"]) + rng.normal(0, 0.08, 4) * width
                score_of = round(float(rng.uniform()), 1)  # many ties
                category = category if rng.uniform() < 0.9 else 1
                found.append([image_id, *np.maximum(moved, 0.5), score_of, category])
        for _ in range(int(rng.integers(0, 30 if rng.uniform() < 0.9 else 130))):
            found.append([image_id, *rng.uniform(1, 150, 4), rng.uniform(), rng.choice([1, 3])])
    path = tmp_path / f"truth{seed}.json"
    pictures = [
        {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640}
        for i in range(1, images + 1)
    ]
    path.write_text(json.dumps({"images": pictures, "categories": CATEGORIES, "annotations": rows}))
    # float32, as a detector gives them
    rows = np.array(found, np.float32).astype(np.float64)
    return path, detections_of(path, rows[rng.permutation(len(rows))])


def detections_of(path, rows):
    """(image id, x, y, width, height, score, category id) as typed results."""
    rows = np.asarray(rows, np.float64).reshape(-1, 7)
    truth = read_annotations(path)
    ids = rows.astype(np.int64)
    return results_from(truth, ids[:, 0], ids[:, 6], rows[:, 1:5], rows[:, 5])


def scored(path, found, evaluator="hotcoco"):
    return score(read_annotations(path), found, evaluator)


def write(path, found, truth):
    path.write_text(found.as_json(read_annotations(truth)))


def pycocotools_stats(annotations, results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("seed", range(5))
def test_the_twelve_numbers_equal_pycocotools_to_the_bit(seed, evaluator, tmp_path):
    annotations, detections = truth_and_detections(seed, tmp_path)
    results = tmp_path / "results.json"
    write(results, detections, annotations)
    expected = [None if s < 0 else 100 * s for s in pycocotools_stats(annotations, results)]
    from_arrays = scored(annotations, detections, evaluator)
    assert list(from_arrays.metrics.values()) == expected
    from_file = score_results(results, annotations, evaluator)
    assert from_file["metrics"] == from_arrays.metrics
    assert from_file["per_class"] == [asdict(row) for row in from_arrays.per_class]


@pytest.mark.parametrize("seed", range(5, 9))
def test_both_evaluators_agree_on_every_category(seed, tmp_path):
    annotations, detections = truth_and_detections(seed, tmp_path)
    ours, theirs = (scored(annotations, detections, e) for e in ("hotcoco", "pycocotools"))
    assert ours == theirs
    known = [row.value for row in ours.per_class if row.value is not None]
    assert np.isclose(np.mean(known), ours.metrics["AP"])


def one_box(tmp_path, box=(10, 10, 50, 50)):
    path = tmp_path / "one.json"
    row = {"id": 5, "image_id": 1, "category_id": 3, "bbox": list(box), "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 200}],
        "categories": CATEGORIES,
        "annotations": [{**row, "area": box[2] * box[3]}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_an_empty_size_or_category_has_a_reason_and_no_number(tmp_path, evaluator):
    path = one_box(tmp_path)
    scores = scored(path, detections_of(path, [1, 10, 10, 50, 50, 0.9, 3]), evaluator)
    assert list(scores.metrics) == list(METRICS)
    assert scores.metrics["AP"] == pytest.approx(100)
    assert scores.metrics["APs"] is None
    assert scores.missing["APs"] == "the set has no box under 32 x 32 pixels of area"
    assert set(scores.missing) == {"APs", "APl", "ARs", "ARl"}
    circle, square, _ = scores.per_class
    assert circle.value is None
    assert circle.reason == "the set has no box of this category"
    assert (square.name, square.images, square.value) == ("square", 1, pytest.approx(100))


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_a_detector_that_finds_nothing_has_zero_ap(tmp_path, evaluator):
    path = one_box(tmp_path)
    scores = scored(path, detections_of(path, []), evaluator)
    assert (scores.metrics["AP"], scores.metrics["AR100"]) == (0, 0)


def test_ap_by_hand(tmp_path):
    # IoU 45/55 = 0.818: matched at 0.50 .. 0.80, seven of ten thresholds.
    path = one_box(tmp_path)
    scores = scored(path, detections_of(path, [1, 15, 10, 50, 50, 0.9, 3]))
    assert scores.metrics["AP50"] == pytest.approx(100)
    assert scores.metrics["AP"] == pytest.approx(70)


def detection(**changes):
    return {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5, **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([detection(image_id=7)], "image_id 7 is not in .*of another set"),
        ([detection(category_id=2)], "category_id 2 is not in"),
        ([detection(), detection(bbox=[1, 2, 3])], r"detection 1\.bbox: Expected .* length 4"),
        ([{"image_id": 1}], "detection 0 has no 'category_id'"),
        ([detection(score="high")], r"detection 0\.score: Expected 'float', got 'str'"),
        ([detection(score=float("nan"))], "is not JSON.*NaN and Infinity are no JSON"),
        ([detection(score=None)], r"detection 0\.score: Expected 'float', got 'null'"),
        ([detection(image_id="1")], r"detection 0\.image_id: Expected 'int"),
        ([detection(image_id=1.5)], r"detection 0\.image_id is 1\.5: ids are whole numbers"),
        ([detection(), detection(bbox=None)], r"detection 1\.bbox: Expected 'array', got 'null'"),
        ([detection(), {"image_id": 1, "category_id": 3, "area": 9, "score": 1}], "no 'bbox'"),
        ({"annotations": [detection()]}, "is a list of detections"),
    ],
)
def test_wrong_results_are_refused_with_the_row_at_fault(tmp_path, content, message):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        score_results(results, one_box(tmp_path))


def first(table, **values):
    return lambda content: content[table][0].update(values)


def without(table, key):
    return lambda content: content[table][0].pop(key)


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("images", "file_name"), r"images\[0\] has no 'file_name'"),
        (without("images", "width"), r"images\[0\] has no 'width'"),
        (without("categories", "name"), r"categories\[0\] has no 'name'"),
        (without("annotations", "id"), r"annotations\[0\] has no 'id'"),
        (without("annotations", "image_id"), r"annotations\[0\] has no 'image_id'"),
        (without("annotations", "bbox"), r"annotations\[0\] has no 'bbox'"),
        (first("annotations", bbox=None), r"bbox: .*'null'; a box is \[x, y, width, height\]"),
        (first("annotations", bbox=[1, 2, 3]), r"a box is \[x, y, width, height\]"),
        (first("annotations", bbox=[1, 2, 3, "4"]), r"annotations\[0\].bbox\[3\]: .*'str'"),
        (first("annotations", iscrowd="0"), r"annotations\[0\].iscrowd: Expected .*'str'"),
        (first("annotations", iscrowd=2), r"annotations\[0\].iscrowd is 2: must be 0 or 1"),
        (first("annotations", ignore=1), r"annotations\[0\].ignore is 1: pycocotools reads"),
        (first("annotations", area="9"), r"annotations\[0\].area: Expected 'float.*'str'"),
        (first("images", id="1"), r"images\[0\].id: Expected 'int"),
        (first("images", id=2**63), r"images\[0\].id: Expected"),
        (first("images", width=None), r"images\[0\].width: Expected 'int', got 'null'"),
        (first("images", height=0), r"images\[0\].height: Expected 'int' >= 1"),
        (first("images", file_name=7), r"images\[0\].file_name: Expected 'str', got 'int'"),
        (first("categories", name=None), r"categories\[0\].name: Expected"),
        (first("annotations", image_id=7), "image_id does not exist .*image_id 7"),
        (first("annotations", category_id=2), "category_id does not exist .*category_id 2"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id 1"),
        (lambda c: c["categories"].append(c["categories"][0]), "two categories have the id 1"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "two annotations have the id 5"),
        (lambda c: c["annotations"].clear(), "holds no list 'annotations'"),
        (lambda c: c.pop("images"), "holds no list 'images'"),
    ],
)
def test_wrong_annotations_are_refused_with_the_row_at_fault(tmp_path, change, message, evaluator):
    annotations = one_box(tmp_path)
    content = json.loads(annotations.read_text())
    change(content)
    annotations.write_text(json.dumps(content))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([detection()]))
    with pytest.raises(ValueError, match=rf"one\.json.*{message}"):
        score_results(results, annotations, evaluator)


def test_minival_may_repeat_ids_of_annotations(tmp_path):
    once = one_box(tmp_path)
    content = json.loads(once.read_text())
    content["annotations"] *= 2
    twice = tmp_path / "instances_minival2014.json"
    twice.write_text(json.dumps(content))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([detection(bbox=[10, 10, 50, 50])]))
    ours, theirs = (score_results(results, twice, e) for e in ("hotcoco", "pycocotools"))
    assert ours == theirs
    assert ours["metrics"]["AR100"] == 50


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no results file .*none\.json"):
        score_results(tmp_path / "none.json", one_box(tmp_path))
    broken = tmp_path / "broken.json"
    broken.write_text("[{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        score_results(broken, one_box(tmp_path))
    with pytest.raises(ValueError, match="evaluator='fast': choose from hotcoco, pycocotools"):
        scored(one_box(tmp_path), Results(*[np.empty(0, int)] * 2, *[np.empty(0)] * 2), "fast")
