"""Scoring while detections arrive gives the numbers of scoring at the end, to the bit."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from detection.annotations import Results, read_annotations, read_results
from detection.scoring import Scorer, score, score_results

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
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORIES)),
                    "bbox": near.tolist(),
                    "score": score_,
                }
            )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, 31)
        ],
        "categories": [{"id": i, "name": f"category {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(content))
    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    truth = read_annotations(path)
    return truth, read_results(results, truth), results


def of_image(found, image):
    rows = found.image == image
    return Results(found.image[rows], found.category[rows], found.box[rows], found.score[rows])


def test_streaming_equals_scoring_at_the_end_to_the_bit(made):
    truth, found, _ = made
    scorer = Scorer(truth)
    for image in range(29, -1, -1):
        scorer.add(image, of_image(found, image))
    streamed = scorer.finish()
    assert streamed == score(truth, found)
    assert streamed == score(truth, found, "pycocotools")


def test_shards_of_processes_are_merged(made):
    truth, found, _ = made
    shards = []
    for rank in range(3):
        scorer = Scorer(truth)
        for image in range(rank, 30, 3):
            scorer.add(image, of_image(found, image))
        shards.append(scorer.shard())
    assert Scorer(truth).finish(shards) == score(truth, found)


def test_a_results_file_scores_as_its_arrays_do(made):
    truth, found, results = made
    scores = score_results(results, truth.path)
    assert {key: scores[key] for key in ("metrics", "missing", "per_class")} == asdict(
        score(truth, found)
    )


def test_what_is_written_is_what_is_read(made):
    truth, found, results = made
    results.write_text(found.as_json(truth))
    again = read_results(results, truth)
    for column in ("image", "category", "box", "score"):
        assert np.array_equal(getattr(again, column), getattr(found, column))
