"""Scoring while detections arrive gives the numbers of scoring at the end, to the bit."""

import json

import numpy as np
import pytest

from detection.scoring import Scorer, results_json, score, score_results

CATEGORIES = (3, 7, 12, 90)


@pytest.fixture
def made(tmp_path):
    """Annotations with crowds, empty pictures and boxes of all sizes, and detections near them."""
    rng = np.random.default_rng(0)
    annotations, rows = [], []
    for image_id in range(1, 31):
        count = int(rng.integers(0, 7))
        boxes = np.concatenate(
            [rng.uniform(0, 300, (count, 2)), rng.lognormal(3.5, 1.2, (count, 2)) + 1], axis=1
        )
        for box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORIES[:3])),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
        for box in boxes.repeat(30, axis=0):
            near = np.abs(box + rng.normal(0, 6, 4)) + 0.5
            score_ = round(float(rng.random()), 1)  # many ties
            rows.append([image_id, *near, score_, rng.choice(CATEGORIES)])
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, 31)
        ],
        "categories": [{"id": i, "name": f"category {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(content))
    return path, np.array(rows)


def test_streaming_equals_scoring_at_the_end_to_the_bit(made):
    annotations, detections = made
    scorer = Scorer(annotations)
    for image_id in range(30, 0, -1):
        scorer.add([image_id], detections[detections[:, 0] == image_id])
    streamed = scorer.finish()
    assert streamed == score(annotations, detections)
    assert streamed == score(annotations, detections, "pycocotools")


def test_shards_of_processes_are_merged(made):
    annotations, detections = made
    shards = []
    for rank in range(3):
        scorer = Scorer(annotations)
        for image_id in range(1 + rank, 31, 3):
            scorer.add([image_id], detections[detections[:, 0] == image_id])
        shards.append(scorer.shard())
    assert Scorer(annotations).finish(shards) == score(annotations, detections)


def test_a_results_file_scores_as_its_arrays_do(made, tmp_path):
    annotations, detections = made
    results = tmp_path / "results.json"
    results.write_text(results_json(detections))
    scores = score_results(results, annotations)
    assert {key: scores[key] for key in ("metrics", "missing", "per_class")} == score(
        annotations, detections
    )
    assert scores["protocol"]["detections"] == len(detections)


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
def test_a_row_that_lacks_a_key_is_named_and_not_scored(made, tmp_path, key):
    annotations, detections = made
    rows = json.loads(results_json(detections[:5]))
    del rows[3][key]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="detection 3 is not"):
        score_results(results, annotations)


def test_detections_of_another_set_are_refused(made, tmp_path):
    annotations, _ = made
    results = tmp_path / "results.json"
    results.write_text(results_json(np.array([[1, 1, 2, 3, 4, 0.5, 8]])))
    with pytest.raises(ValueError, match="category_id 8 is not in"):
        score_results(results, annotations)
