"""Plans: what a study will show and take, fixed before it runs, and looked at by rule."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from written_runs import write_classifier

from backbones import files
from tools.experiments import executors, probe
from tools.experiments.archive import open_runs
from tools.experiments.experiment import load_experiment
from tools.experiments.plan import read_lock
from tools.experiments.record import read_record, write_record
from tools.report import write_report
from tools.report.document import as_json
from tools.report.planned import read_plans
from tools.report.table import build_table
from tools.sample_data import make_cifar10
from tools.statistics.differences import Noise, differences_over_seeds
from tools.statistics.planning import (
    detectable_with_seeds,
    expected_half_width,
    half_width_range,
    look_levels,
    one_pair_range,
)

ENTRY = {"task": "classification", "recipe": "cifar-preact", "backbones": ["se_resnet20"]}


def write_study(path, **changes):
    study = {"experiments": [{**ENTRY, "name": "cifar"}], **changes}
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "study.yaml", seeds={"looks": [2, 4], "stop": "significant"})


def fix(sebench, study, output, *options):
    """Plan a study whose data are not there, which is an exit code of 1 and no obstacle."""
    code, out, err = sebench("plan", study, "-o", output, "--no-probe", *options)
    assert code == 1, err
    assert "data.root is not set" in out
    return out


def write_runs(output, seeds, gain):
    """What the cells of some seeds leave, without training; they belong to the plan in the folder."""
    for seed in seeds:
        for network, accuracy in (("resnet20", 0.6), ("se_resnet20", 0.6 + gain)):
            run = output / "cifar" / f"{network}-seed{seed}"
            write_classifier(run, network, seed=seed, accuracy=accuracy)
            record = read_record(run / files.RECORD)
            locked = files.sha256(output / files.PLAN_LOCK)
            write_record(dataclasses.replace(record, locked_plan=locked), run)


class _Writer:
    """An executor that writes what cells leave in the place of training them."""

    room = 1

    def __init__(self, gain):
        self.gain, self.jobs, self.ran = gain, [], []

    def start(self, job):
        cell = job.cell
        network, seed = cell.directory.name.rsplit("-seed", 1)
        better = self.gain * network.startswith("se_")
        write_classifier(cell.directory, network, seed=int(seed), accuracy=0.6 + better)
        record = read_record(cell.directory / files.RECORD)
        setup = dataclasses.replace(
            record.experiment,
            hash=cell.experiment.hash,
            comparison_hash=cell.experiment.comparison_hash,
        )
        write_record(dataclasses.replace(record, experiment=setup), cell.directory)
        self.jobs.append(job)
        self.ran.append(cell.directory.name)

    def wait(self, seconds):
        ended, self.jobs = [(job, None) for job in self.jobs], []
        return ended

    def close(self):
        pass


def report_of(output):
    """report.json of a folder or bundle, without the pages that take longer to draw."""
    with open_runs([output]) as found:
        plans = read_plans(found.plans)
        return json.loads(as_json(build_table(found.records, found.warnings, plans=plans)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_planned_interval_and_its_range_are_those_that_studies_find(seeds):
    seed, churn, image = 0.4, 0.2, 0.12
    rng, found = np.random.default_rng(0), []
    noise = [image**2 + churn**2 / seeds, 0.1, 0.1, churn**2 / 2, churn**2 / 2, churn**2]
    for _ in range(600):
        one, other = rng.normal(0, np.hypot(seed, churn) / 2**0.5, (2, seeds, 1))
        parts = Noise(*(np.array([value]) for value in noise))
        (row,) = differences_over_seeds(one, other, parts, np.array([1e9]), np.array([10_000]))
        found.append((row.high - row.low) / 2)
    found, expected = np.array(found), expected_half_width(seeds, seed, churn, image)
    assert expected == pytest.approx(np.mean(found), rel=0.05)
    low, high = half_width_range(seeds, seed, churn, image)
    assert np.mean((low <= found) & (found <= high)) == pytest.approx(0.8, abs=0.05)
    wider = half_width_range(seeds, seed, churn, image, degrees=2)  # known from three runs a side
    assert wider[1] > high > low


@pytest.mark.parametrize(("images", "pairs"), [(300, 1), (300, 5), (20_000, 1)])
def test_a_single_pair_finds_its_interval_in_the_range_planned_from_earlier_pairs(images, pairs):
    rng, inside = np.random.default_rng(0), []
    for _ in range(1000):
        share = 0.2 * np.exp(rng.normal(0, 0.1, pairs + 1))  # on which twins disagree
        disagree = rng.binomial(images, share) / images
        earlier = 100 * np.sqrt(disagree[:pairs].mean() / images)
        low, high = one_pair_range(earlier, images, pairs, varies=0.1)
        inside.append(low <= 1.96 * 100 * np.sqrt(disagree[-1] / images) <= high)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.05)


def test_a_plan_says_what_it_sees_and_needs_before_data_are_there(sebench, tmp_path):
    study = write_study(tmp_path / "study.yaml", seeds=[0, 1, 2])
    out = fix(sebench, study, tmp_path / "runs", "--detect", "0.5", "--json")
    (row,) = json.loads(out)["comparisons"]
    noise = [row["noise"][name] for name in ("seed_sd", "churn_sd", "image_sd")]
    assert row["detectable"] == pytest.approx(detectable_with_seeds(3, *noise))
    assert detectable_with_seeds(row["seeds_needed"], *noise) <= 0.5
    assert detectable_with_seeds(row["seeds_needed"] - 1, *noise) > 0.5
    assert row["images_needed"] > 10_000
    assert "assumed" in row["noise"]["source"]
    assert row["half_width_range"] is None
    assert not (tmp_path / "runs" / files.PLAN_LOCK).exists()
    table = fix(sebench, study, tmp_path / "runs", "--detect", "0.5")
    assert f"{row['seeds_needed']} seeds, or {row['images_needed']:,} images" in table


def test_a_task_and_networks_are_planned_like_a_study(sebench, tmp_path):
    options = ["-r", "cifar-preact", "-b", "se_resnet20", "--seeds", "3", "--no-probe", "--json"]
    output = tmp_path / "runs"
    code, out, _ = sebench("plan", "classification", *options, "-o", output, "train.epochs=3")
    study = write_study(tmp_path / "study.yaml", seeds=[0, 1, 2])
    planned = json.loads(fix(sebench, study, output, "--json"))["comparisons"]
    assert code == 1
    assert [{**row, "entry": "cifar"} for row in json.loads(out)["comparisons"]] == planned
    assert not output.exists()
    err = sebench("plan", study, "train.epochs=3", "--no-probe")[2]
    assert "settings go with a task (classification, scene, detection)" in err


def test_the_hours_are_those_of_the_runs_to_come_on_their_devices(sebench, tmp_path, monkeypatch):
    data = make_cifar10(tmp_path / "cifar10", train_per_class=15, test_per_class=2)
    entries = [{**ENTRY, "name": "cifar", "data_root": str(data)}]
    study = write_study(tmp_path / "study.yaml", experiments=entries, seeds=[0, 1])
    cost = probe.Cost(3000.0, 100.0, 4, 100.0, 10**9, 10**6, devices=8)
    monkeypatch.setattr(probe, "measure", lambda experiment, seconds: cost)
    write = (study, "-o", tmp_path / "runs", "-j", "2")
    code, out, err = sebench("plan", *write, "--json", "--lock")
    found = json.loads(out)
    assert code == 0, err
    assert found["hours"] == pytest.approx(4 * 3600 / 3600 / 2)
    assert found["device_hours"] == pytest.approx(4 * 8)
    assert found["disk_bytes"] == 4 * 10**6
    assert read_lock(tmp_path / "runs").costs["cifar/resnet20"] == cost
    _, out, _ = sebench("plan", *write)
    assert "to come: 2.0 h on this machine, 2 runs at a time; 32 core-hours; 4 MB of disk" in out


def test_the_noise_of_earlier_runs_is_expected_again(sebench, tmp_path, study):
    fix(sebench, study, tmp_path / "earlier", "--lock")
    write_runs(tmp_path / "earlier", range(4), gain=0.1)
    found = report_of(tmp_path / "earlier")["comparisons"][0]["metrics"][0]["difference"]
    out = fix(sebench, study, tmp_path / "runs", "--from", tmp_path / "earlier", "--json")
    (row,) = json.loads(out)["comparisons"]
    noise = row["noise"]
    assert noise["seed_sd"] == pytest.approx(found["seed_sd"])
    assert noise["image_sd"] == pytest.approx(found["image_sd"])
    assert "recorded, 4 seeds" in noise["source"]
    low, high = row["half_width_range"]
    assert low < row["half_width"] < high


def test_a_fixed_plan_refuses_a_changed_study_until_it_is_amended(sebench, tmp_path):
    study, output = write_study(tmp_path / "study.yaml", seeds=[0]), tmp_path / "runs"
    fix(sebench, study, output, "--lock")
    first = files.sha256(output / files.PLAN_LOCK)
    # Wherever the folder is named from, it is the same plan.
    code, out, err = sebench("run", study, "-o", tmp_path / "." / "runs", "--dry-run")
    assert "2 to run" in out
    assert (code, "missing for cifar/resnet20" in err, "data.root is not set" in err) == (
        1,
        True,
        True,
    )
    write_study(study, seeds=[0, 1], overrides={"*-seed0": {"train": {"epochs": 7}}})
    code, _, err = sebench("run", study, "-o", output, "--dry-run")
    assert code == 1
    assert "added: cifar/resnet20-seed1" in err
    assert "changed: cifar/resnet20-seed0" in err
    assert "fixed since" in sebench("plan", study, "-o", output, "--no-probe", "--lock")[2]
    fix(sebench, study, output, "--amend", "a seed more")
    assert "data.root is not set" in sebench("run", study, "-o", output, "--dry-run")[2]
    (amendment,) = read_lock(output).amendments
    assert (amendment.why, amendment.sha256_before) == ("a seed more", first)
    assert len(amendment.added) == 2
    assert len(amendment.changed) == 2


def test_weights_that_are_exchanged_after_a_plan_was_fixed_are_a_change(sebench, tmp_path):
    weights, output = tmp_path / "w.pth", tmp_path / "runs"
    weights.write_bytes(b"one")
    backbones = [{"name": "se_resnet20", "weights": str(weights)}]
    entries = [{**ENTRY, "name": "cifar", "backbones": backbones}]
    study = write_study(tmp_path / "study.yaml", experiments=entries)
    fix(sebench, study, output, "--lock")
    assert "data.root is not set" in sebench("run", study, "-o", output, "--dry-run")[2]
    weights.write_bytes(b"another")
    assert "changed: cifar/se_resnet20-w" in sebench("run", study, "-o", output, "--dry-run")[2]


@pytest.mark.parametrize("gain", [0.3, 0.0])
def test_the_report_judges_by_the_level_of_the_look_and_says_which_one_ended_it(
    sebench, tmp_path, study, gain
):
    output = tmp_path / "runs"
    fix(sebench, study, output, "--lock")
    write_runs(output, range(2), gain)
    found = report_of(output)
    (compared,), (plan,) = found["comparisons"], found["plans"]
    row = next(metric for metric in compared["metrics"] if metric["headline"])
    level = look_levels([2, 4])[0]
    scale = row["difference"]["p_value_method"]
    assert f"times {0.05 / level:.3g} for its look" in scale
    assert row["verdict"] == ("better" if gain else "undecided")
    assert ("look 1 of 2, at 2 seeds, ended it" in plan["looks"]) == bool(gain)
    assert plan["looks"].endswith("the next is at 4 seeds.") != bool(gain)
    assert (plan["runs"], plan["before"]) == (4, 0)
    assert plan["sha256"] == files.sha256(output / files.PLAN_LOCK)
    assert not any("not complete" in text for text in found["skipped"])
    if gain:
        page = write_report([output], tmp_path / "report")[0].read_text()
        assert "Planned and found" in page
        assert plan["sha256"][:16] in page
        assert "80 % of studies" in page
        assert "80 % of studies" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(("gain", "seeds"), [(0.3, 2), (0.0, 4)])
def test_a_study_runs_look_by_look_and_stops_when_the_rule_says(
    sebench, tmp_path, study, monkeypatch, gain, seeds
):
    output, writer = tmp_path / "runs", _Writer(gain)
    monkeypatch.setattr(executors, "find_executor", lambda *_: lambda *_: writer)
    fix(sebench, study, output, "--lock")
    code, _, err = sebench("run", study, "-o", output)
    assert code == 0, err
    assert len(writer.ran) == 2 * seeds
    assert ("ends with the look at 2 seeds" in err) == (seeds == 2)
    if seeds == 2:
        again = sebench("run", study, "-o", output)
        assert (again[0], len(writer.ran)) == (0, 4)
        code, _, err = sebench("run", study, "-o", output, "--cell", "2")
        assert code == 1
        assert "resnet20-seed2 is outside the plan" in err


def test_seeds_between_looks_are_not_tested(sebench, tmp_path, study):
    fix(sebench, study, tmp_path / "runs", "--lock")
    write_runs(tmp_path / "runs", range(3), gain=0.3)
    (compared,) = report_of(tmp_path / "runs")["comparisons"]
    row = next(metric for metric in compared["metrics"] if metric["headline"])
    assert row["verdict"] == "not tested"
    assert row["difference"]["low"] is None
    assert "3 seeds are no look of the fixed plan (2, 4)" in compared["marks"]


def test_looks_count_only_where_they_were_fixed_before(sebench, tmp_path, study):
    code, _, err = sebench("run", study, "-o", tmp_path / "runs")
    assert code == 1
    assert "--lock" in err
    fix(sebench, study, tmp_path / "runs", "--lock")
    write_study(study, seeds={"looks": [2, 3, 4]})
    err = sebench("run", study, "-o", tmp_path / "runs", "--dry-run")[2]
    assert "looks: [2, 4] until significant there, [2, 3, 4] until significant here" in err


@pytest.mark.parametrize("looks", [[], [1, 3], [3, 3], [5, 3], ["three"]])
def test_looks_that_do_not_rise_are_refused(sebench, tmp_path, looks):
    study = write_study(tmp_path / "study.yaml", seeds={"looks": looks})
    code, _, err = sebench("plan", study, "-o", tmp_path / "runs", "--no-probe")
    assert code == 1
    assert "looks" in err
    assert err.count("\n") == 1


def test_a_cell_of_a_look_that_is_not_due_waits(sebench, tmp_path, study):
    fix(sebench, study, tmp_path / "runs", "--lock")
    code, _, err = sebench("run", study, "-o", tmp_path / "runs", "--cell", "2")
    assert code == 75
    assert "the look at 2 seeds waits for 4 cells" in err


def test_a_damaged_plan_stops_a_run_and_no_report(sebench, tmp_path, study):
    output = tmp_path / "runs"
    fix(sebench, study, output, "--lock")
    write_runs(output, range(2), gain=0.3)
    for damage in (b"", b"[]", b"{", b"\xff", b'{"made": "x"}', b"[" * 100_000):
        (output / files.PLAN_LOCK).write_bytes(damage)
        code, _, err = sebench("run", study, "-o", output)
        assert code == 1, damage
        assert "plan.json is damaged" in err
        assert err.count("\n") == 1
        assert report_of(output)["plans"] == []


def test_a_bundle_carries_the_fixed_plan(sebench, tmp_path, study):
    output = tmp_path / "runs"
    fix(sebench, study, output, "--lock")
    write_runs(output, range(2), gain=0.3)
    assert sebench("bundle", output, "-o", tmp_path / "study.zip")[0] == 0
    _, out, err = sebench("verify", tmp_path / "study.zip", "--json")
    assert "plan.json" not in out + err
    shutil.rmtree(output)
    (plan,) = report_of(tmp_path / "study.zip")["plans"]
    assert "ended it" in plan["looks"]


def test_a_plan_tells_the_time_of_a_training_by_its_steps_and_of_evaluation(monkeypatch):
    watch = probe._Watch(30.0, evaluates=True)
    times = iter([1, 2, 12, 13, 22, 23, 24, 25, 26])
    monkeypatch.setattr(probe.time, "monotonic", lambda: float(next(times)))
    for step in (1, 2):
        watch("training", step, 100, 1)
    for images in (10, 20):  # a look at the curve between steps is none of training
        watch("evaluating", images, 20, 1)
    for step in (3, 4, 5):
        watch("training", step, 100, 1)
    assert watch.steps == [1, 1, 1]
    assert watch.passes == 1
    assert watch.evaluation(20) == 11  # from the step before it


@pytest.mark.parametrize(
    ("settings", "looks"),
    [
        (["train.epochs=10", "evaluate.every=4"], 3),
        (["train.iterations=25", "evaluate.every=1"], 3),
        (["evaluate.every=0"], 0),
        (["train.epochs=5", "evaluate.every=0", "data.holdout=0.1", "train.select=best"], 5),
    ],
)
def test_every_look_at_the_curve_is_counted(settings, looks):
    config = load_experiment("classification", "cifar-short", settings).config
    steps = config.train.iterations or config.train.epochs * 10
    assert probe._looks(config, {"steps": steps, "steps_per_epoch": 10}) == looks
