"""Results for others: several people's joined, lines for captions, files for the Hub."""

import csv
import io
import json

import pytest
import yaml
from written_runs import altered, record, write_classifier

from tools.experiments.record import Metric, read_record, write_record
from tools.proof.bundle import write_bundle
from tools.report import write_report
from tools.report.sharing import protocol_line


def rewrite(folder, **changes):
    write_record(altered(read_record(folder / "record.json"), **changes), folder)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A bundle of two seeds, another that repeats one of its runs and contradicts one, a folder."""
    root = tmp_path_factory.mktemp("joined")
    for network, accuracy in (("resnet20", 0.62), ("se_resnet20", 0.74)):
        write_classifier(root / "a" / network, network, accuracy=accuracy)
    write_bundle([root / "a"], root / "a.zip")
    (root / "b").mkdir()
    (root / "a" / "resnet20").rename(root / "b" / "plain")
    write_classifier(root / "b" / "se", "se_resnet20", accuracy=0.70)
    rewrite(root / "b" / "se", created="2026-02-01T00:00:00+00:00")
    write_bundle([root / "b"], root / "b.zip")
    write_classifier(root / "c" / "again", "resnet20", accuracy=0.62)
    rewrite(root / "c" / "again", created="2026-01-01T00:00:01+00:00", device={"name": "another"})
    paths = [root / "a.zip", root / "b.zip", root / "c"]
    return {path.name: path.read_text() for path in write_report(paths, root / "report")}


def test_a_record_that_two_people_sent_counts_once_and_that_is_said(joined):
    content = json.loads(joined["report.json"])
    kinds = {entry["kind"]: entry for entry in content["repeats"]}
    assert kinds["duplicate"]["runs"] == ["a.zip/resnet20", "b.zip/plain"]
    assert kinds["repetition"]["runs"] == ["a.zip/resnet20", "c/again"]
    assert sorted(run["directory"] for run in content["runs"]) == [
        "a.zip/resnet20", "a.zip/se_resnet20", "b.zip/se", "c/again"
    ]  # fmt: skip
    for name in ("report.md", "report.html"):
        assert "the same record; it counts once" in joined[name]


def test_contradictions_are_named_beside_the_pair_and_neither_is_hidden(joined):
    content = json.loads(joined["report.json"])
    (entry,) = [entry for entry in content["repeats"] if entry["kind"] == "contradiction"]
    assert entry["runs"] == ["a.zip/se_resnet20", "b.zip/se"]
    values = {
        run["directory"]: run["metrics"]["top1_error"]["value"]
        for run in content["runs"]
        if run["directory"] in entry["runs"]
    }
    assert len(values) == 2
    assert all(f"{value:.6g}" in entry["text"] for value in values.values())
    (pair,) = content["comparisons"]
    assert entry["text"] in pair["marks"]
    assert "other numbers of one experiment" in joined["report.md"]


def test_every_number_has_a_line_that_says_how_it_was_measured(joined):
    line = (
        "cifar10 test, n = 400, full-image, recipe cifar-preact (classifi), seed 0, "
        "sebench 0.2.0 commit ccccccccc, torch 2.6.0"
    )
    versions = {"sebench": "0.2.0", "torch": "2.6.0"}
    run = altered(record(dataset={"images": 400}), versions=versions)
    assert protocol_line([run]) == line
    other = altered(run, seed=1, protocol={"name": "ten-crop"}, git={"dirty": True})
    told = protocol_line([run, other])
    assert "full-image / ten-crop" in told
    assert "seeds 0, 1" in told
    assert "commit ccccccccc / sebench 0.2.0 commit ccccccccc with changes" in told.replace(
        ", torch 2.6.0", ""
    )
    content = json.loads(joined["report.json"])
    captions = [row["caption"] for row in (*content["comparisons"], *content["runs"])]
    for name in ("differences.csv", "runs.csv"):
        captions += [row["caption"] for row in csv.DictReader(io.StringIO(joined[name]))]
    assert all(caption.startswith("cifar10 test, n = 400, full-image") for caption in captions)


def test_whole_real_data_sets_become_entries_that_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    for seed in (0, 1):
        for network, error in (("resnet50", 24.0 + seed), ("se_resnet50", 23.0 + seed)):
            for images, kind in ((50_000, "whole"), (500, "part")):
                values = {"top1_error": error, "top1_accuracy": 100 - error}
                run = record(
                    network=network,
                    seed=seed,
                    dataset={"name": "imagenet", "split": "val", "images": images, "classes": 1000},
                    metrics={
                        name: Metric(value, "percent", name.endswith("accuracy"), images)
                        for name, value in values.items()
                    },
                )
                folder = tmp_path / "runs" / f"{network}-{seed}-{kind}"
                folder.mkdir(parents=True)
                write_record(altered(run, experiment={"hash": folder.name}), folder)
    written = write_report([tmp_path / "runs"], tmp_path / "report")
    (tmp_path / "report" / "eval_results" / "mine.yaml").write_text("- mine\n")
    write_report([tmp_path / "runs"], tmp_path / "report")
    names = [path.name for path in written if path.parent.name == "eval_results"]
    assert names == ["resnet50.yaml", "se_resnet50.yaml"]
    folder = tmp_path / "report" / "eval_results"
    content = yaml.safe_load((folder / "se_resnet50.yaml").read_text())
    (entry,) = hub.parse_eval_result_entries(content)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ILSVRC/imagenet-1k", "default", 76.5)
    assert entry.date == "2026-01-02"
    assert "n = 50,000" in entry.notes
    assert "seeds 0, 1" in entry.notes
    write_report([tmp_path / "runs" / "resnet50-0-whole"], tmp_path / "report")
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]
