"""One reading of a COCO file: both evaluators and the report's matcher see the same arrays."""

import codecs
import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.annotations import read_annotations, read_results
from detection.scoring import METRICS, score, score_results
from tools.statistics import MatchedDetections

BIG = 2**53 + 1  # no float64 holds it


def content(seed=0):
    """Six images with boxes of all sizes, one crowd among them, and detections near them."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(1, 7)]
    categories = [{"id": i, "name": f"category {i}"} for i in (1, 3, 9)]
    annotations, found = [], []
    for image in range(1, 6):
        for _ in range(4):
            box = [*rng.uniform(0, 200, 2), *np.exp(rng.uniform(2, 5.5, 2))]
            row = {"image_id": image, "category_id": int(rng.choice([1, 3]))}
            annotations.append(
                {
                    **row,
                    "id": len(annotations) + 1,
                    "bbox": [float(value) for value in box],
                    "area": float(box[2] * box[3] * 0.7),
                    "iscrowd": int(len(annotations) == 5),
                }
            )
            for _ in range(4):
                near = np.array(box) + rng.normal(0, 3, 4)
                found.append({**row, "bbox": near.tolist(), "score": round(float(rng.random()), 1)})
    return {"images": images, "categories": categories, "annotations": annotations}, found


def in_three_ways(path, results):
    """The metrics by hotcoco, by pycocotools and by the report's matcher."""
    truth = read_annotations(path)
    found = read_results(results, truth)
    (values,) = MatchedDetections(truth, found).resampled(np.ones((1, len(truth.image_ids))))
    matched = {name: None if np.isnan(v) else v for name, v in zip(METRICS, values, strict=False)}
    per_class = [None if np.isnan(v) else v for v in values[len(METRICS) :].tolist()]
    scores = [score(truth, found, evaluator) for evaluator in ("hotcoco", "pycocotools")]
    assert scores[0] == scores[1]
    assert per_class == pytest.approx([row.value for row in scores[0].per_class])
    return scores[0].metrics, matched


def pycocotools_alone(truth, found):
    """What pycocotools says of a file that leaves nothing open."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value < 0 else 100 * value for value in evaluation.stats]


def write(folder, truth, found):
    paths = folder / "truth.json", folder / "results.json"
    for path, part in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(part))
    return paths


def each(table, change):
    def edit(truth, found):
        for index, row in enumerate(truth[table]):
            change(index, row)

    return edit


def renumber_images(truth, found):
    for row in truth["images"]:
        row["id"] += BIG
    for row in (*truth["annotations"], *found):
        row["image_id"] += BIG


def no_category_is_an_integer(truth, found):
    for row in truth["categories"]:
        row["id"] = float(row["id"])
    for row in (*truth["annotations"], *found):
        row["category_id"] = float(row["category_id"])


# What is left open, and the file that says it: the numbers must be those of the second.
OPEN = {
    "ids from 0": (each("annotations", lambda i, row: row.update(id=i)), None),
    "negative ids": (each("annotations", lambda i, row: row.update(id=-7 - i)), None),
    "no area": (
        each("annotations", lambda i, row: row.pop("area")),
        each("annotations", lambda i, row: row.update(area=row["bbox"][2] * row["bbox"][3])),
    ),
    "area is null": (
        each("annotations", lambda i, row: row.update(area=None)),
        each("annotations", lambda i, row: row.update(area=row["bbox"][2] * row["bbox"][3])),
    ),
    "no iscrowd": (
        each("annotations", lambda i, row: row.pop("iscrowd")),
        each("annotations", lambda i, row: row.update(iscrowd=0)),
    ),
    "iscrowd is null": (
        each("annotations", lambda i, row: row.update(iscrowd=None)),
        each("annotations", lambda i, row: row.update(iscrowd=0)),
    ),
    "iscrowd is true or false": (
        each("annotations", lambda i, row: row.update(iscrowd=bool(row["iscrowd"]))),
        None,
    ),
    "all crowd": (each("annotations", lambda i, row: row.update(iscrowd=1)), None),
    "image ids beyond float64": (renumber_images, None),
    "whole floats for ids": (no_category_is_an_integer, None),
    "numbers as names": (each("categories", lambda i, row: row.update(name=i)), None),
    "flat polygons": (each("annotations", lambda i, row: row.update(segmentation=[1, 2])), None),
    "short polygons": (each("annotations", lambda i, row: row.update(segmentation=[[1, 2]])), None),
    "a zero-sized box": (
        each("annotations", lambda i, row: i or row.update(bbox=[5, 5, 0, 0], area=0)),
        None,
    ),
    "odd head fields": (lambda t, f: t.update(info={"year": "2017"}, licenses=None), None),
    "images in another order": (lambda t, f: t["images"].reverse(), None),
    "no detection": (lambda t, f: f.clear(), None),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", OPEN)
def test_what_a_file_leaves_open_is_decided_once_for_all_who_read_it(tmp_path, case, seed):
    change, said = OPEN[case]
    plain, changed = content(seed), content(seed)
    change(*changed)
    if said is not None:
        said(*plain)
    elif case == "all crowd" or case == "a zero-sized box" or case == "no detection":
        change(*plain)
    ours, matched = in_three_ways(*write(tmp_path, *changed))
    assert matched == pytest.approx(ours)
    if plain[1]:
        assert list(ours.values()) == pycocotools_alone(*plain)
    else:
        assert ours["AP"] == ours["AR100"] == 0


SPOILS = ("7", 1e400, None, True, [], {}, -1, 2**70, 1e308, "", "\0", [[1]], 0.5)


def test_a_spoiled_file_is_refused_or_gives_one_answer(tmp_path):
    """A value of another type in any place: never another error, never three answers."""
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(400):
        truth, found = content(1)
        table = rng.choice(["images", "categories", "annotations", "found"])
        rows = found if table == "found" else truth[table]
        row = rows[rng.integers(len(rows))]
        key, value = str(rng.choice(list(row))), SPOILS[rng.integers(len(SPOILS))]
        if rng.random() < 0.2:
            del row[key]
        elif isinstance(row[key], list) and rng.random() < 0.5:
            row[key][rng.integers(4)] = value
        else:
            row[key] = value
        try:
            ours, matched = in_three_ways(*write(tmp_path, truth, found))
        except ValueError as error:
            refused.append(str(error))
            continue
        assert matched == pytest.approx(ours), (table, key, value)
    assert 200 < len(refused) < 390
    assert all(str(tmp_path) in message for message in refused)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_of_windows_are_read(tmp_path, encoding):
    plain = write(tmp_path, *content())
    expected = score_results(plain[1], plain[0])
    for path in plain:
        path.write_bytes(path.read_text().encode(encoding))
    assert score_results(plain[1], plain[0])["metrics"] == expected["metrics"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: b"[" * 100_000, "Expected|nested too deeply|not JSON"),
        (lambda text: text.replace(b'"width"', b'"x": ' + b"[" * 100_000 + b', "width"', 1), "."),
        (lambda text: text[:-40], "is not JSON"),
        (lambda text: codecs.BOM_UTF16_LE + b"\xd8", "is not JSON"),
        (lambda text: b"", "is not JSON"),
        (lambda text: b"version https://git-lfs.github.com/spec/v1\n", "is not JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, damage, message):
    truth, _ = write(tmp_path, *content())
    truth.write_bytes(damage(truth.read_bytes()))
    with pytest.raises(ValueError, match=rf"truth\.json.*({message})"):
        read_annotations(truth)


def test_a_file_whose_text_is_no_utf8_is_refused_by_name(tmp_path):
    truth, _ = content()
    path = tmp_path / "instances.json"
    path.write_bytes(json.dumps(truth).encode().replace(b"category 1", b"caf\xe9"))
    with pytest.raises(ValueError, match=r"instances\.json is not JSON"):
        read_annotations(path)
