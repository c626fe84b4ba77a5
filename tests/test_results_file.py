"""Detections of somewhere else: scored, recorded with what is known of them, and reported in pairs."""

import json
import sys

import numpy as np
import pytest

from tools import cli, sample_data
from tools.experiments.record import load_records
from tools.report import write_report


@pytest.fixture
def scored(tmp_path, monkeypatch, capsys):
    """A function that scores made-up detections by the command line."""
    root = sample_data.make_coco(tmp_path / "coco", train=1, val=12)
    annotations = root / "annotations" / "instances_val2017.json"
    truth = json.loads(annotations.read_text())["annotations"]

    def run(name, *arguments, noise=3.0):
        rng = np.random.default_rng(len(name))
        rows = [
            {
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "bbox": (np.array(row["bbox"]) + rng.normal(0, noise, 4)).tolist(),
                "score": float(rng.random()),
            }
            for row in truth
        ]
        results = tmp_path / f"{name}.json"
        results.write_text(json.dumps(rows))
        command = ["evaluate", "detection", "--results", results, "--annotations", annotations]
        monkeypatch.setattr(sys, "argv", ["sebench", *map(str, [*command, *arguments])])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_two_results_files_of_twins_are_compared_in_a_report(scored, tmp_path):
    runs = tmp_path / "runs"
    for name, noise in (("resnet50", 4.0), ("se_resnet50", 1.0)):
        code, _, err = scored(name, "-b", name, "-o", runs / name, "seed=3", noise=noise)
        assert code == 0, err
    records, warnings = load_records([runs])
    assert not warnings
    for record in records:
        assert (record.seed, record.protocol.name, record.weights.format) == (
            3,
            "coco-bbox",
            "coco-results",
        )
        assert record.cost.latency.median_ms is None
        assert record.file("detections").is_file()
        assert record.experiment.recipe == "unknown (a results file)"
    written = {path.name: path for path in write_report([runs], tmp_path / "report", resamples=50)}
    (pair,) = json.loads(written["report.json"].read_text())["comparisons"]
    (ap,) = [row for row in pair["metrics"] if row["name"] == "AP"]
    assert ap["gain"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-b", "resnet50", "train.lr=3"], "train.lr=3: a results file is scored as it is"),
        (["-b", "resnet50", "-b", "vgg16"], "a results file is of one network"),
        (["-b", "resnet5"], "unknown backbone 'resnet5'; did you mean"),
        (["-o", "out"], "With --backbone NAME, the network it came from, it is recorded"),
        (["-r", "tiny", "-b", "resnet50"], "--recipe: --results scores a file as it is"),
    ],
)
def test_what_a_results_file_cannot_use_is_refused(scored, more, message):
    code, _, err = scored("a", *more)
    assert code == 1
    assert message in err


def test_a_dry_run_scores_and_writes_nothing(scored, tmp_path):
    code, out, err = scored("a", "-b", "resnet50", "-o", tmp_path / "run", "--dry-run")
    assert code == 0, err
    assert "instances_val2017.json" in out
    assert not (tmp_path / "run").exists()
