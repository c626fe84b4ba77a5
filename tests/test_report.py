"""The report: what it pairs, what it says, and that hostile names come out harmless everywhere."""

import csv
import dataclasses
import functools
import io
import json
import re
import shutil
import subprocess
import time

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from written_runs import (
    CLASSES,
    altered,
    published_run,
    record,
    write_classifier,
    write_coco,
    write_detector,
    write_suite,
)

from tools import references, sample_data, statistics
from tools.experiments.experiment import load_experiment
from tools.experiments.record import Metric, load_records, write_record
from tools.report import document, write_report
from tools.report.classifiers import _opener
from tools.report.costs import Sides
from tools.report.escape import escape_csv
from tools.report.pairs import pair_twins
from tools.report.table import build_table
from tools.report.wording import candidate_word, lede, more, signed
from tools.statistics import coco_metrics


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    runs = write_suite(root)
    (runs / "broken").mkdir()
    (runs / "broken" / "record.json").write_text('{"schema": 1, "created"')
    files = write_report([runs], root / "report")
    return runs, {path.name: path for path in files}


@pytest.fixture(scope="module")
def content(suite):
    return json.loads(suite[1]["report.json"].read_text())


def comparison(content, task):
    return next(c for c in content["comparisons"] if c["task"] == task)


def headline_metric(comparison):
    return next(m for m in comparison["metrics"] if m["headline"])


# What a row says, and what it does not --------------------------------------------------------------


def write_twins(root, name, *, accuracies=(0.62, 0.74), recipe_settings=(), **changes):
    """Twins with their per-image rows, of settings of their own: ("train.epochs", 9), ..."""
    experiment = changes.pop("experiment", record().experiment)
    settings = json.loads(json.dumps(experiment.settings))
    for key, value in recipe_settings:
        *groups, last = key.split(".")
        functools.reduce(dict.__getitem__, groups, settings)[last] = value
    for network, accuracy in zip(("resnet20", "se_resnet20"), accuracies, strict=True):
        own = {"hash": f"{name}-{network}", "comparison_hash": name, "settings": settings}
        write_classifier(
            root / f"{name}-{network}", network, accuracy=accuracy,
            experiment=dataclasses.replace(experiment, **own), **changes,
        )  # fmt: skip


def test_rows_that_differ_in_protocol_or_settings_say_so_and_count_once(tmp_path):
    write_twins(tmp_path / "runs", "a")
    write_twins(tmp_path / "runs", "b", protocol={"name": "full-image+flip"})
    write_twins(tmp_path / "runs", "c", recipe_settings=[("train.iterations", 32_000)])
    write_twins(tmp_path / "runs", "d", recipe_settings=[("train.log_every", 3)])
    files = {p.name: p.read_text() for p in write_report([tmp_path / "runs"], tmp_path / "report")}
    content = json.loads(files["report.json"])
    told = {c["variant"] for c in content["comparisons"]}
    assert told == {
        "full-image, train.iterations=64000",
        "full-image+flip, train.iterations=64000",
        "full-image, train.iterations=32000",
    }
    assert content["headline"] == (
        "These weights of se_resnet20 are better than those of resnet20 on the one benchmark."
    )
    rows = list(csv.DictReader(io.StringIO(files["differences.csv"])))
    assert {row["variant"] for row in rows} == told
    for name in ("report.html", "report.md", "report.tex"):
        for variant in told:
            plain = variant.replace("_", r"\_") if name != "report.html" else variant
            assert plain in files[name], (name, variant)


def test_other_verdicts_under_other_protocols_are_no_single_verdict(tmp_path):
    write_twins(tmp_path, "a")
    write_twins(tmp_path, "b", accuracies=(0.74, 0.62), protocol={"name": "full-image+flip"})
    found = build_table(*load_records([tmp_path])).headline
    assert found == (
        "These weights of se_resnet20 are judged differently under different protocols or settings"
        " on the one benchmark."
    )


def test_runs_without_variants_have_none(content):
    assert {c["variant"] for c in content["comparisons"]} == {""}


def test_results_near_chance_are_called_so_and_do_not_count(tmp_path):
    write_twins(tmp_path / "runs", "a", accuracies=(0.25, 0.28))  # of four classes
    files = {p.name: p.read_text() for p in write_report([tmp_path / "runs"], tmp_path / "report")}
    (found,) = json.loads(files["report.json"])["comparisons"]
    assert found["not_counted"] == ["near chance: guessing gives top-1 error 75 %"]
    assert "nothing to compare" in json.loads(files["report.json"])["headline"]
    for name in ("report.html", "report.md", "differences.csv"):
        assert "near chance: guessing gives top-1 error 75 %" in files[name], name


def test_a_detector_that_finds_nothing_is_near_chance(tmp_path):
    annotations = write_coco(tmp_path / "coco")
    write_detector(tmp_path / "runs" / "a", "resnet_tiny", annotations, shift=60.0)
    write_detector(tmp_path / "runs" / "b", "se_resnet_tiny", annotations, shift=60.0)
    (found,) = build_table(*load_records([tmp_path / "runs"])).comparisons
    assert found.not_counted == ("near chance: AP (IoU 0.50:0.95) is near 0",)


def test_one_network_near_chance_is_marked_and_counts(tmp_path):
    write_twins(tmp_path, "a", accuracies=(0.7, 0.25))
    (found,) = build_table(*load_records([tmp_path])).comparisons
    assert not found.not_counted
    assert any("candidate network is near chance" in mark for mark in found.marks)


def test_a_run_of_three_iterations_owns_no_headline(tmp_path):
    data = {"train_images": 50_000}
    write_twins(tmp_path, "long", accuracies=(0.74, 0.62), dataset=data)
    write_twins(tmp_path, "short", dataset=data, recipe_settings=[("train.iterations", 3)])
    found = build_table(*load_records([tmp_path]))
    short = next(c for c in found.comparisons if "iterations=3" in c.variant)
    assert short.not_counted == (
        "hardly trained: 3 iterations, 0.0077 passes over the training images",
    )
    assert found.headline == (
        "These weights of se_resnet20 are worse than those of resnet20 on the one benchmark."
        " Not counted: 1 pair, near chance or hardly trained."
    )
    assert "iterations=3" not in lede(found.comparisons)


@pytest.mark.parametrize(
    ("costs", "shown"),
    [
        ((3_863_492_608, 3_873_500_000), "+0.26\u00a0%"),
        ((40_637_056, 40_639_072), "+0.0050\u00a0%"),
        ((25_557_032, 28_088_024), "+9.9\u00a0%"),
        ((100, 100), "0.0\u00a0%"),
        ((28_088_024, 25_557_032), "−9.0\u00a0%"),
        ((0, 5), "–"),
    ],
)
def test_a_small_share_is_not_printed_as_nothing(costs, shown):
    assert more(Sides(*costs)) == shown


# Pairs -------------------------------------------------------------------------------------------


def test_twins_of_one_condition_are_paired_seed_by_seed():
    runs = [record(network=n, seed=s) for s in (1, 0) for n in ("resnet20", "se_resnet20")]
    (pair,), _ = pair_twins(runs)
    assert [r.seed for r in pair.plain] == [r.seed for r in pair.candidate] == [0, 1]
    assert pair.unequal == ()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("experiment", {"recipe": "cifar-short", "comparison_hash": "other"}, "recipe"),
        ("experiment", {"comparison_hash": "other"}, "settings"),
        ("dataset", {"images": 300}, "data"),
        ("dataset", {"sha256": "e" * 64}, "data: other content"),
        ("protocol", {"name": "imagenet-320"}, "protocol"),
        ("git", {"commit": "f" * 40}, "commit: ccccccccc and fffffffff"),
        ("seed", 7, "seed: 0 and 7"),
    ],
)
def test_unequal_twins_are_refused_and_paired_only_on_request(field, value, reason):
    plain, candidate = record(network="resnet20"), record(network="se_resnet20")
    candidate = altered(candidate, **{field: value})
    pairs, refused = pair_twins([plain, candidate])
    assert not pairs
    assert all(reason in why for _, why in refused)
    (pair,), _ = pair_twins([plain, candidate], allow_unequal=True)
    assert any(text.split(":")[0] in reason or "unequal" in text for text in pair.unequal)


def test_a_repeated_run_counts_once_and_says_so():
    first = record(network="resnet20")
    again = dataclasses.replace(first, created="2026-02-01T00:00:00+00:00")
    pairs, unpaired = pair_twins([first, again, record()])
    assert pairs[0].plain == (again,)
    assert any("repeated" in why for _, why in unpaired)


def test_a_plain_run_serves_one_seed_only():
    runs = [record(network="resnet20"), record(seed=1), record(seed=2)]
    pairs, unpaired = pair_twins(runs, allow_unequal=True)
    assert sum(len(pair.plain) for pair in pairs) == 1
    assert any("further" in why for _, why in unpaired)


# What is said ------------------------------------------------------------------------------------


def test_the_headline_is_made_from_the_numbers(content):
    assert "better than its plain twin on 1 of 2" in content["headline"]
    assert "worse on 1 of 2" in content["headline"]


def test_the_clearest_difference_is_told_with_its_cost(suite):
    page = suite[1]["report.html"].read_text()
    lede = re.search(r'class="lede">([^<]*)<', page)[1]
    assert re.search(
        r"points, (better|worse)( at equal depth)?( \([^)]*weights[^)]*\))?, for \+\d", lede
    )
    assert lede in suite[1]["report.md"].read_text().replace("\\", "")


def test_lower_errors_and_higher_ap_are_better(content):
    errors = headline_metric(comparison(content, "classification"))
    assert errors["difference"]["difference"] < 0 < errors["gain"]
    assert errors["verdict"] == "better"
    ap = headline_metric(comparison(content, "detection"))
    assert ap["difference"]["difference"] < 0
    assert ap["gain"] == ap["difference"]["difference"]
    assert ap["verdict"] == "worse"


def test_numbers_are_those_of_the_statistics(suite, content):
    runs, _ = suite
    rows = {
        side: np.stack(
            [
                statistics.load_predictions(runs / f"{side}-{seed}" / "samples.parquet").correct(1)
                for seed in range(3)
            ]
        )
        for side in ("plain", "se")
    }
    expected = statistics.compare_accuracy(rows["plain"], rows["se"])
    found = headline_metric(comparison(content, "classification"))["difference"]
    assert found["difference"] == pytest.approx(-expected.difference)
    assert (found["low"], found["high"]) == pytest.approx((-expected.high, -expected.low))
    assert found["p_value"] == pytest.approx(expected.p_value)


def test_every_number_of_coco_has_an_interval_and_a_test(content):
    rows = {row["name"]: row["difference"] for row in comparison(content, "detection")["metrics"]}
    assert list(rows) == list(coco_metrics.METRICS)
    for name, found in rows.items():
        if found["difference"] is None:  # the made boxes are of medium size
            assert name[-1] in "sl"
            assert found["low"] is found["p_value"] is None
        else:
            assert found["low"] <= found["difference"] <= found["high"]
            assert "t-test on the images" in found["p_value_method"]
            assert found["plain_interval"][0] <= found["plain"] <= found["plain_interval"][1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_classes_have_p_values_with_one_seed_and_with_several(tmp_path, seeds):
    for seed in range(seeds):
        write_classifier(tmp_path / f"plain-{seed}", "resnet20", seed=seed, accuracy=0.6)
        write_classifier(tmp_path / f"se-{seed}", "se_resnet20", seed=seed, accuracy=0.8)
    made = build_table(*load_records([tmp_path])).comparisons[0]
    sides = [
        np.stack([statistics.load_predictions(r.file("samples")).correct(1) for r in runs])
        for runs in (made.pair.plain, made.pair.candidate)
    ]
    label = statistics.load_predictions(made.pair.plain[0].file("samples")).label
    by_class, _ = statistics.compare_classes(label, *sides)
    expected = statistics.benjamini_hochberg([one.p_value for one in by_class.values()])
    found = {row.name: row.p_adjusted for row in made.classes}
    assert [found[name] for name in CLASSES] == expected
    assert any(p_value < 0.05 for p_value in expected)


def test_holm_is_applied_over_the_headline_metrics(content):
    rows = [headline_metric(c) for c in content["comparisons"]]
    expected = statistics.holm([row["difference"]["p_value"] for row in rows])
    assert [row["p_holm"] for row in rows] == pytest.approx(expected)


def test_a_single_seed_is_marked_and_several_are_not(content):
    assert any("one seed" in mark for mark in comparison(content, "detection")["marks"])
    assert not any("one seed" in mark for mark in comparison(content, "classification")["marks"])


def test_a_missing_metric_is_null_with_its_reason(content):
    rows = comparison(content, "classification")["metrics"]
    top5 = next(row for row in rows if row["name"] == "top5_error")["difference"]
    assert top5["difference"] is None
    assert top5["reason"] == "only 4 classes"


def test_rows_that_disagree_with_the_record_give_no_interval(tmp_path):
    write_classifier(tmp_path / "plain", "resnet20")
    write_classifier(tmp_path / "se", "se_resnet20")
    shutil.copy(tmp_path / "plain" / "samples.parquet", tmp_path / "se" / "samples.parquet")
    found = build_table(*load_records([tmp_path])).comparisons[0].headline
    assert found.difference.low is None
    assert "disagree with its record" in found.difference.reason
    assert found.verdict == "not tested"


def _rewrite(column, values):
    def damage(directory):
        path = directory / "samples.parquet"
        table = parquet.read_table(path)
        place = table.column_names.index(column)
        values_now = table[column].to_pylist()
        parquet.write_table(table.set_column(place, column, pa.array(values(values_now))), path)

    return damage


DAMAGES = {
    "no labels": lambda d: parquet.write_table(
        parquet.read_table(d / "samples.parquet").drop_columns(["label"]), d / "samples.parquet"
    ),
    "labels missing": _rewrite("label", lambda v: [None, *v[1:]]),
    "labels in lists": _rewrite("label", lambda v: [[x] for x in v]),
    "labels not numbers": _rewrite("label", lambda v: ["bee", *map(str, v[1:])]),
    "one class only": _rewrite("top5", lambda v: [x[0] for x in v]),
    "a class missing": _rewrite("top5", lambda v: [[None, *v[0][1:]], *v[1:]]),
    "ranks missing": _rewrite("top5", lambda v: [None, *v[1:]]),
    "ragged ranks": _rewrite("top5", lambda v: [v[0][:3], [*v[1], 1], *v[2:]]),
    "deep ranks": _rewrite("top5", lambda v: [[x] for x in v]),
    "no ranks": _rewrite("top5", lambda v: pa.array([[] for _ in v], pa.list_(pa.int64()))),
    "fewer rows": lambda d: parquet.write_table(
        parquet.read_table(d / "samples.parquet").slice(0, 10), d / "samples.parquet"
    ),
    "half a file": lambda d: (d / "samples.parquet").write_bytes(
        (d / "samples.parquet").read_bytes()[:900]
    ),
    "an empty file": lambda d: (d / "samples.parquet").write_bytes(b""),
    "no file": lambda d: (d / "samples.parquet").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_rows_cost_a_pair_its_interval_and_nothing_else(tmp_path, name):
    write_twins(tmp_path, "a")
    write_twins(tmp_path, "b", protocol={"name": "full-image+flip"})
    DAMAGES[name](tmp_path / "a-se_resnet20")
    damaged, sound = build_table(*load_records([tmp_path])).comparisons
    assert damaged.headline.difference.low is None
    assert damaged.headline.difference.reason.startswith("no interval: ")
    assert "\n" not in damaged.headline.difference.reason
    assert damaged.headline.verdict == "not tested"
    assert sound.headline.verdict == "better"


@pytest.mark.parametrize("missing", ["top1_error", "top1_accuracy"])
def test_a_record_without_a_metric_leaves_the_rest_of_the_report(tmp_path, missing):
    write_twins(tmp_path / "runs", "a")
    write_twins(tmp_path / "runs", "b", protocol={"name": "full-image+flip"})
    path = tmp_path / "runs" / "a-se_resnet20" / "record.json"
    content = json.loads(path.read_text())
    del content["metrics"][missing]
    path.write_text(json.dumps(content))
    files = {p.name: p.read_text() for p in write_report([tmp_path / "runs"], tmp_path / "report")}
    damaged, sound = json.loads(files["report.json"])["comparisons"]
    assert headline_metric(sound)["verdict"] == "better"
    if missing == "top1_error":
        assert headline_metric(damaged)["verdict"] == "not tested"
        assert "not in every record" in headline_metric(damaged)["difference"]["reason"]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"step": 1e400, "loss": NaN}', '{"step": true, "loss": "x"}', "\0", "7"],
)
def test_a_damaged_curve_leaves_the_rest_of_the_report(tmp_path, line):
    write_twins(tmp_path / "runs", "a")
    with (tmp_path / "runs" / "a-resnet20" / "curve.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    page = write_report([tmp_path / "runs"], tmp_path / "report", resamples=20)[0].read_text()
    assert "Training curves of resnet20" in page


def test_references_stand_beside_with_a_verdict(tmp_path):
    changes = {"dataset": {"images": 400}}
    for network in ("resnet110", "se_resnet110"):
        write_classifier(tmp_path / network, network, **changes)
    table = build_table(*load_records([tmp_path]))
    rows = [r for r in table.comparisons[0].references if r.where == "Table 4"]
    assert {row.published for row in rows} == {6.37, 5.21, -1.16}  # and the effect
    assert all(row.verdict == "not comparable" for row in rows)
    assert all("400 of 10000 images" in row.reason for row in rows)


def write_published_detector(directory, annotations, seed=0):
    """A run that may be compared with Table 7, its boxes found about as well as there."""
    table = references.reference("table-7")
    row = next(row for row in table.rows if row.backbone == "se_resnet50")
    published = published_run(table, row)
    write_detector(
        directory, "se_resnet50", annotations, shift=4.0, seed=seed,
        experiment=dataclasses.replace(published.experiment, hash=f"{seed}"),
        weights=published.weights,
    )  # fmt: skip
    ((made,), _) = load_records([directory])
    counted = {key: getattr(published.dataset, key) for key in ("images", "train_images")}
    dataset = {**counted, "synthetic": False}
    metrics = {name: dataclasses.replace(m, n=5000) for name, m in made.metrics.items()}
    write_record(altered(made, dataset=dataset, metrics=metrics), directory)


def judged_alone(runs, **options):
    """Verdicts and reasons of Table 7, by metric, of every run."""
    table = build_table(*load_records([runs]), **options)
    assert not table.comparisons
    return [
        {row.metric: (row.verdict, row.reason) for row in run.references if row.where == "Table 7"}
        for run in table.runs
    ]


def test_one_run_in_no_pair_decides_nothing_of_a_published_number(tmp_path):
    write_published_detector(tmp_path / "runs" / "alone", write_coco(tmp_path / "coco"))
    (found,) = judged_alone(tmp_path / "runs")
    assert {word for word, _ in found.values()} == {"undecided"}
    assert all("one run does not tell the noise of training" in why for _, why in found.values())


def test_one_run_is_judged_by_the_noise_of_training_that_is_stated_for_it(tmp_path):
    """With 0.01 points it is the difference alone that decides, with 10,000 nothing does."""
    write_published_detector(tmp_path / "runs" / "alone", write_coco(tmp_path / "coco"))
    runs = tmp_path / "runs"
    (undecided,) = judged_alone(runs)
    difference = {name: float(why.split()[2].rstrip(":")) for name, (_, why) in undecided.items()}
    (found,) = judged_alone(runs, run_sd=0.01)
    for name, (word, why) in found.items():
        assert word == ("reproduced" if abs(difference[name]) < 0.4 else "not reproduced")
        assert why.endswith("one run, 0.01 points over seeds stated")
    (vague,) = judged_alone(runs, run_sd=1e4)
    assert {word for word, _ in vague.values()} == {"undecided"}
    with pytest.raises(ValueError, match=r"run_sd 0.0: a standard deviation over seeds is above 0"):
        judged_alone(runs, run_sd=0.0)


def test_single_twins_are_judged_by_a_stated_spread_in_every_format(tmp_path):
    table = references.reference("table-2")
    for row in table.rows:
        if row.backbone in ("resnet50", "se_resnet50"):
            is_se = row.backbone.startswith("se_")
            twin = {"name": "resnet50", "options": {}} if is_se else None
            directory = tmp_path / "runs" / row.backbone
            directory.mkdir(parents=True, exist_ok=True)
            made = altered(published_run(table, row), backbone={"is_se": is_se, "twin": twin})
            write_record(made, directory)
    files = write_report([tmp_path / "runs"], tmp_path / "out", resamples=20, run_sd=0.05)
    texts = {file.name: file.read_text() for file in files}
    for name in ("report.html", "report.md", "report.json", "report.tex", "published.csv"):
        assert "reproduced" in texts[name], name
        assert "0.05 points over seeds stated" in texts[name] or name == "report.tex", name
    rows = list(csv.DictReader(io.StringIO(texts["published.csv"])))
    rows = [r for r in rows if r["where"] == "Table 2" and r["metric"] == "top1_error"]
    assert {r["verdict"] for r in rows} == {"reproduced"}
    assert any(float(r["published"]) == pytest.approx(-1.51) for r in rows)  # the effect


def test_a_damaged_record_is_named_and_skipped(suite, content):
    (text,) = content["skipped"]
    assert "broken/record.json" in text
    for name in ("report.html", "report.md"):
        assert "broken/record.json" in suite[1][name].read_text()


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no record\.json"):
        write_report([tmp_path], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_runs_without_a_twin_are_listed(tmp_path):
    write_classifier(tmp_path / "alone", "se_resnet20")
    files = write_report([tmp_path / "alone"], tmp_path / "report")
    page = files[0].read_text()
    assert "No pair of twins to compare." in page
    assert "no run of its twin resnet20" in page


def test_signs_are_true_and_zero_has_none():
    assert [signed(v) for v in (1.5, -1.5, 0.001, -0.001, None)] == [
        "+1.50", "−1.50", "0.00", "0.00", "–",
    ]  # fmt: skip


def test_the_headline_says_when_all_data_are_synthetic(tmp_path):
    annotations = write_coco(tmp_path / "coco")
    write_detector(tmp_path / "runs" / "a", "resnet_tiny", annotations, shift=1.0)
    write_detector(tmp_path / "runs" / "b", "se_resnet_tiny", annotations, shift=1.0)
    table = build_table(*load_records([tmp_path / "runs"]), resamples=100)
    assert table.headline.startswith("On synthetic data: ")


def test_other_attentions_are_not_called_se():
    def said(options):
        candidate = record(metrics={"top1_error": Metric(30.0, "percent", False, 400)})
        candidate = altered(candidate, backbone={"options": options})
        plain = altered(candidate, backbone=record(network="resnet20").backbone)
        plain = altered(plain, experiment={"hash": "plain"})
        return candidate_word(build_table([plain, candidate]).comparisons)

    assert said({"reduction": 8}) == "SE"
    assert said({"attention": "eca"}) == "candidate"


def test_tide_says_where_the_difference_lies(content):
    errors = comparison(content, "detection")["errors"]
    assert errors["badly placed"]["candidate"] > errors["badly placed"]["plain"]


def test_pictures_are_read_by_the_reader_of_the_run(tmp_path):
    sample_data.make_cifar10(tmp_path, train_per_class=1, test_per_class=1)
    settings = load_experiment("classification", "cifar-preact", [f"data.root={tmp_path}"]).settings
    run = record(
        experiment={"settings": json.loads(json.dumps(settings))},
        dataset={"root": str(tmp_path)},
    )
    image = _opener(run)("test/00003")
    assert image.size == (32, 32)
    with pytest.raises(ValueError, match="no longer"):
        _opener(run)("../../etc/passwd")


# Formats -----------------------------------------------------------------------------------------


def test_the_json_follows_its_published_schema(suite, content):
    schema = json.loads(suite[1]["report.schema.json"].read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)


def test_the_published_schema_is_made_from_the_types():
    """After a change of types: write ``document.report_schema()`` to report.schema.json, indent 1."""
    assert json.loads(document.shipped_schema()) == json.loads(json.dumps(document.report_schema()))


def test_every_format_has_the_same_difference(suite, content):
    _, files = suite
    found = headline_metric(comparison(content, "classification"))["difference"]
    shown = signed(found["difference"])
    for name in ("report.html", "report.md"):
        assert shown in files[name].read_text()
    assert shown.replace("−", "$-$") in files["report.tex"].read_text()
    rows = list(csv.DictReader(io.StringIO(files["differences.csv"].read_text())))
    row = next(r for r in rows if r["task"] == "classification" and r["headline"] == "True")
    assert float(row["difference"]) == found["difference"]
    index = yaml.safe_load(files["model-index.yaml"].read_text().strip("-\n"))["model-index"]
    result = next(m for m in index if m["name"] == "se_resnet20")["results"][0]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["top1_error"] == pytest.approx(found["candidate"], abs=1e-4)


def test_csv_is_tidy_one_row_a_run_and_metric(suite):
    runs, files = suite
    rows = list(csv.DictReader(io.StringIO(files["runs.csv"].read_text())))
    records, _ = load_records([runs])
    assert len(rows) == sum(len(r.metrics) for r in records)


def test_synthetic_data_is_labelled_in_every_format(suite):
    _, files = suite
    assert '<span class="made">synthetic</span>' in files["report.html"].read_text()
    assert "*synthetic*" in files["report.md"].read_text()
    assert r"coco\_2017 val2017$^{\dagger}$" in files["report.tex"].read_text()
    assert "(synthetic data)" in files["model-index.yaml"].read_text()
    rows = csv.DictReader(io.StringIO(files["differences.csv"].read_text()))
    assert {r["task"]: r["synthetic"] for r in rows} == {
        "classification": "False", "detection": "True",
    }  # fmt: skip


HOSTILE = [
    "<script>alert(1)</script>",
    "=HYPERLINK(\"http://evil\")",
    r"\input{/etc/passwd} $x^2$ & % _ # ~",
    "a|b `c` [d](javascript:alert(1))\n# title\x1b[31m\u202e",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    for network in ("resnet20", "se_resnet20"):
        write_classifier(
            root / "runs" / network, network, names=HOSTILE,
            dataset={"name": HOSTILE[3], "split": HOSTILE[0]},
            protocol={"name": HOSTILE[2]},
            experiment={"recipe": HOSTILE[1]},
            command="".join(HOSTILE), versions={HOSTILE[0]: HOSTILE[0]},
            selection=HOSTILE[2],
        )  # fmt: skip
    files = write_report([root / "runs"], root / "report", title=HOSTILE[0])
    return {path.name: path.read_text() for path in files}


def test_hostile_names_are_harmless_in_html(hostile):
    page = hostile["report.html"]
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r'href="(?!#)', page)


def test_hostile_names_are_harmless_in_markdown(hostile):
    text = hostile["report.md"]
    assert "<script" not in text
    assert "[d](" not in text
    assert "\n# title" not in text
    table = [line for line in text.splitlines() if line.startswith("| a")]
    assert table
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 16 for line in table)


def test_hostile_names_are_harmless_in_csv(hostile):
    for name in ("differences.csv", "runs.csv", "published.csv"):
        rows = list(csv.reader(io.StringIO(hostile[name])))
        assert all(len(row) == len(rows[0]) for row in rows)
        for row in rows[1:]:
            for cell in row:
                assert cell[:1] not in ("=", "+", "@", "\t") or re.fullmatch(r"[-+.\de]+", cell)
    assert escape_csv(-1.5) == -1.5
    assert escape_csv(" =1") == "' =1"


def test_hostile_names_are_harmless_in_latex(hostile):
    text = hostile["report.tex"]
    assert r"\input" not in text
    assert r"a\textbar{}b" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert len(re.findall(r"(?<!\\)&", body)) == 9


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(hostile, tmp_path):
    head = "\\documentclass{article}\\usepackage{booktabs,textcomp}\\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}{hostile['report.tex']}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_hostile_names_are_harmless_in_json_and_yaml(hostile):
    for name in ("report.json", "model-index.yaml", "report.md", "report.html"):
        assert not any(c in hostile[name] for c in "\x1b\u202e")
    assert json.loads(hostile["report.json"])["comparisons"][0]["recipe"] == HOSTILE[1]
    yaml.safe_load(hostile["model-index.yaml"].strip("-\n"))


def test_hundreds_of_records_take_seconds(tmp_path):
    metrics = {"top1_error": Metric(30.0, "percent", False, 400)}
    for number in range(150):
        for network in ("resnet20", "se_resnet20"):
            made = record(network=network, metrics=metrics)
            group = {"hash": f"{number}{network}", "comparison_hash": str(number)}
            folder = tmp_path / "runs" / f"{network}-{number}"
            folder.mkdir(parents=True)
            made = altered(made, experiment=group)
            write_record(made, folder)
    start = time.process_time()
    page = write_report([tmp_path / "runs"], tmp_path / "report")[0]
    assert time.process_time() - start < 10
    assert page.stat().st_size < 5e6
