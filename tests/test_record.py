"""Records: sound or refused, whole or not there, read back equal, damaged ones named."""

import dataclasses
import json
import math
import os
import time
from pathlib import Path

import jsonschema
import pyarrow
import pyarrow.parquet
import pytest

from backbones.result import (
    ClassScore,
    Cost,
    Dataset,
    Latency,
    Protocol,
    Result,
    Timing,
    Weights,
)
from tools.experiments import record as record_module
from tools.experiments.experiment import load_experiment
from tools.experiments.record import (
    METRICS,
    Git,
    load_records,
    read_record,
    record_schema,
    to_plain,
    write_record,
)
from tools.experiments.run import build_record, read_recorded, run_experiment
from tools.report.table import build_table


@pytest.fixture
def experiment(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("backbone: {name: se_resnet20, options: {reduction: 8}}\n")
    return load_experiment("classification", str(recipe), ["seed=3"])


@pytest.fixture
def result():
    """What a benchmark's door returns."""
    data = Dataset("cifar10", "test", 5, 2, ["a", "b"], False, "/data", "0" * 64, train_images=8)
    return Result(
        metrics={"top1_error": 40.0, "top5_error": None},
        missing={"top5_error": "fewer than 6 classes"},
        dataset=data,
        protocol=Protocol("full-image", {"resize": ()}),
        selection="last epoch",
        per_class=[ClassScore("a", 5, 60.0)],
        samples="samples.parquet",
        curve="curve.jsonl",
        weights=Weights("weights.safetensors", "1" * 64, "sebench"),
        input_format={"channel_order": "RGB"},
        timing=Timing(0.5, train_seconds=1.0),
        cost=Cost(10, 100, [3, 32, 32], Latency(1.5, 1.4, 2.0, 20)),
    )


def test_a_record_reads_back_equal_and_says_where_it_came_from(experiment, result, tmp_path):
    record = build_record(experiment, result, tmp_path, command="sebench train x")
    write_record(record, tmp_path)
    assert read_record(tmp_path / "record.json") == record
    content = json.loads((tmp_path / "record.json").read_text())
    assert content["schema"] == 3
    assert content["command"] == "sebench train x"
    assert content["backbone"]["twin"] == {"name": "resnet20", "options": {}}
    assert content["metrics"]["top1_error"] == {
        "value": 40.0, "unit": "percent", "higher_is_better": False, "n": 5, "reason": None
    }  # fmt: skip
    assert content["experiment"]["hash"] == experiment.hash
    assert {"python", "torch", "numpy"} <= set(content["versions"])
    assert content["device"]["name"]
    assert content["seed"] == 3


def _as_written_in(schema, record):
    """The content of a record as an earlier version wrote it."""
    content = to_plain(record)
    content["schema"] = schema
    setup = content["experiment"]
    setup["condition"] = setup.pop("comparison_hash")
    content["protocol"] = {"name": content["protocol"]["name"], **content["protocol"]["settings"]}
    content["per_class"] = [
        {"class": row["name"], "images": row["images"], "top1_accuracy": row["value"]}
        for row in content["per_class"]
    ]
    for key in ("chance", "steps"):
        del content[key]
    if schema == 1:
        del content["cost"]["latency"]
    return content


@pytest.mark.parametrize("schema", [1, 2])
def test_records_of_earlier_schemas_are_read(experiment, result, tmp_path, schema):
    record = build_record(experiment, result, tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(_as_written_in(schema, record)))
    if schema == 1:
        missing = Latency(None, reason="records of schema 1 hold no latency")
        record = dataclasses.replace(record, cost=dataclasses.replace(record.cost, latency=missing))
    assert read_record(path) == record


def test_the_committed_schema_is_that_of_the_types_and_describes_a_record(
    experiment, result, tmp_path
):
    committed = json.loads(Path(record_module.__file__).with_name("record.schema.json").read_text())
    assert committed == record_schema()  # python -m tools.experiments.record writes it
    path = write_record(build_record(experiment, result, tmp_path), tmp_path)
    jsonschema.validate(json.loads(path.read_text()), committed)
    jsonschema.Draft202012Validator.check_schema(committed)


def test_the_commit_is_this_checkouts_and_never_a_foreign_ones(monkeypatch, tmp_path):
    import subprocess

    home = Path(record_module.__file__).resolve().parents[2]
    if (home / ".git").exists():
        head = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        assert record_module.read_git().commit == head
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "site-packages" / "tools" / "experiments"
    installed.mkdir(parents=True)
    monkeypatch.setattr(record_module, "__file__", str(installed / "record.py"))
    assert record_module.read_git() == Git(None, None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("metrics.top1_error", math.nan, "metrics.top1_error.value=nan: expected a number"),
        ("metrics.top1_error", math.inf, "expected a number"),
        ("metrics.top1_error", 140.0, "percent are from 0 to 100"),
        ("metrics.top1_error", "40", "expected a number"),
        ("metrics.top1", 40.0, "unknown metric 'top1'"),
        ("missing", {}, "top5_error has neither a value nor a reason"),
        ("metrics", {}, "no metric"),
        ("dataset.images", 0, "dataset.images=0: must be at least 1"),
    ],
)
def test_a_result_that_cannot_be_true_is_not_recorded(
    experiment, result, tmp_path, path, value, message
):
    group, _, key = path.partition(".")
    if key == "images":
        value = dataclasses.replace(result.dataset, images=value)
    elif key:
        value = {**result.metrics, key: value}
    result = dataclasses.replace(result, **{group: value})
    with pytest.raises(ValueError, match=message):
        build_record(experiment, result, tmp_path)


def test_a_row_for_every_image_or_no_record(experiment, result, tmp_path):
    rows = pyarrow.table({"image": ["a", "b", "c", "d"]})
    pyarrow.parquet.write_table(rows, tmp_path / "samples.parquet")
    with pytest.raises(ValueError, match="has 4 rows for 5 images"):
        build_record(experiment, result, tmp_path)


def test_a_write_that_fails_leaves_no_half_file(experiment, result, tmp_path, monkeypatch):
    record = build_record(experiment, result, tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        write_record(record, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not readable as JSON"),
        (lambda text: text.replace('"schema": 3', '"schema": 99'), "99; this version reads 1 to 3"),
        (
            lambda text: text.replace('"median_ms": 1.5', '"median_ms": null'),
            "neither a median nor",
        ),
        (lambda text: text.replace('"dataset"', '"data"'), "not a sound record"),
        (lambda text: text.replace('"value": 40.0', '"value": NaN'), "not readable as JSON"),
        (lambda text: text.replace('"n": 5', '"n": 4'), "counts 4 of 5 images"),
        (lambda text: text.replace('"curve.jsonl"', '"../curve.jsonl"'), "beside the record"),
        (lambda text: text.replace('"curve.jsonl"', '"/etc/passwd"'), "beside the record"),
        (lambda text: "[]", "not a sound record"),
        (lambda text: "", "not readable as JSON"),
    ],
)
def test_a_damaged_record_is_named_and_skipped(experiment, result, tmp_path, damage, message):
    record = build_record(experiment, result, tmp_path)
    for name in ("good", "bad"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_record(record, tmp_path / "runs" / name)
    bad = tmp_path / "runs" / "bad" / "record.json"
    bad.write_text(damage(bad.read_text()))
    records, warnings = load_records([tmp_path / "runs"])
    assert records == [record]
    assert records[0].directory == tmp_path / "runs" / "good"
    assert len(warnings) == 1
    assert str(bad) in warnings[0]
    assert message in warnings[0]


def _mutations(content, path=()):
    """Every value of a nested content replaced by values of other types."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        here = (*path, key)
        for other in (None, True, -1, 1.5, "x", [], {}, [None], {"a": {"b": []}}):
            yield here, other
        if isinstance(value, (dict, list)):
            yield from _mutations(value, here)


def test_whatever_stands_in_a_record_it_is_read_or_skipped_and_reported(
    experiment, result, tmp_path
):
    content = to_plain(build_record(experiment, result, tmp_path))
    content["experiment"]["settings"] = {"train": {"epochs": 3}, "data": {}}
    written = []
    for path, other in _mutations(content):
        changed = json.loads(json.dumps(content))
        part = changed
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = other
        written.append(tmp_path / f"{len(written)}.json")
        written[-1].write_text(json.dumps(changed))
    records, warnings = load_records(written)
    assert len(records) + len(warnings) == len(written)
    assert all(f"{tmp_path}/" in warning and "\n" not in warning for warning in warnings)
    assert len(warnings) > len(written) / 2
    build_table(records, warnings, resamples=0)


def test_thousands_of_records_are_read_in_seconds(experiment, result, tmp_path):
    path = write_record(build_record(experiment, result, tmp_path), tmp_path)
    start = time.process_time()
    for _ in range(500):
        read_record(path)
    assert time.process_time() - start < 2  # 5,000 in about 2 s on a quiet machine


def test_keys_of_a_later_version_do_not_hinder_reading(experiment, result, tmp_path):
    record = build_record(experiment, result, tmp_path)
    path = write_record(record, tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weather": "rain"}))
    assert read_record(path) == record


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        load_records([tmp_path / "none"])


def test_every_metric_has_a_unit_and_a_direction():
    for name, kind in METRICS.items():
        assert kind.unit == "percent"
        assert kind.higher_is_better == ("error" not in name)


class _Door:
    """A benchmark that returns a result without computing anything."""

    def __init__(self, result, error=None):
        self.result, self.error, self.calls = result, error, []

    def train(self, config, directory, resume=False):
        self.calls.append(f"train resume={resume}")
        assert (directory / "settings.yaml").is_file()
        if self.error:
            (directory / "checkpoint.pt").touch()
            raise self.error
        return self.result


def test_a_run_is_recorded_once_and_not_run_again(experiment, result, tmp_path, monkeypatch):
    door = _Door(result)
    monkeypatch.setattr(type(experiment), "entry_points", lambda self: door)
    record = run_experiment(experiment, tmp_path / "run")
    assert door.calls == ["train resume=False"]
    assert run_experiment(experiment, tmp_path / "run") == record
    assert door.calls == ["train resume=False"]
    assert read_recorded(experiment, tmp_path / "run") == record


def test_a_run_that_breaks_leaves_no_record_and_goes_on_when_asked(
    experiment, result, tmp_path, monkeypatch
):
    broken, sound = _Door(result, RuntimeError("out of memory")), _Door(result)
    doors = iter([broken, sound, sound])
    monkeypatch.setattr(type(experiment), "entry_points", lambda self: next(doors))
    with pytest.raises(RuntimeError, match="out of memory"):
        run_experiment(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "record.json").exists()
    with pytest.raises(ValueError, match="go on with --resume"):
        run_experiment(experiment, tmp_path / "run")
    assert run_experiment(experiment, tmp_path / "run", resume=True) is not None
    assert sound.calls[-1] == "train resume=True"


def test_bad_input_leaves_no_directory_behind(experiment, result, tmp_path, monkeypatch):
    door = _Door(result)
    door.train = lambda *_, **__: (_ for _ in ()).throw(ValueError("no such data root"))
    monkeypatch.setattr(type(experiment), "entry_points", lambda self: door)
    with pytest.raises(ValueError, match="no such data root"):
        run_experiment(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_writes(experiment, result, tmp_path, monkeypatch):
    door = _Door(None)
    door.train = lambda config, directory, resume: None
    monkeypatch.setattr(type(experiment), "entry_points", lambda self: door)
    monkeypatch.setenv("RANK", "1")
    assert run_experiment(experiment, tmp_path / "run") is None
    assert not (tmp_path / "run").exists()


def test_a_second_process_in_a_run_directory_is_refused_and_takes_nothing_away(
    experiment, result, tmp_path, monkeypatch
):
    import subprocess
    import sys

    from backbones.files import lock_directory

    run = tmp_path / "run"
    code = (
        "import sys, pathlib, backbones.files as f\n"
        "with f.lock_directory(sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    run.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "held\n"
        (run / "settings.yaml").write_text("the first's")
        (run / "log.txt").write_text("the first's")
        monkeypatch.setattr(type(experiment), "entry_points", lambda self: _Door(result))
        with pytest.raises(ValueError, match=f"in use by process {holder.pid}"):
            run_experiment(experiment, run)
        assert (run / "settings.yaml").read_text() == "the first's"
        assert (run / "log.txt").is_file()
        holder.stdin.close()
    with lock_directory(run):
        pass
