"""Where the cells of a study stand, what is tried again, and studies as arrays of jobs."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time

import pytest
import yaml

from backbones import files, heartbeat
from tools.experiments import cells as scheduler
from tools.experiments.array_jobs import EXAMPLES
from tools.experiments.cells import Schedule
from tools.experiments.job import Failure, keep_failure
from tools.experiments.plan import describe_missing
from tools.experiments.status import read_plan, read_states, write_plan
from tools.experiments.study import load_study, plan


@pytest.fixture
def study(tmp_path):
    """(file, cells): two networks trained, then two that start from these."""
    base = {"task": "classification", "recipe": "cifar-short", "backbones": ["se_resnet20"]}
    entries = [{**base, "name": "first"}, {**base, "name": "second", "weights_from": "first"}]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"experiments": entries, "needs": {"gpus": 2, "cores": 6}}))
    return path, plan(load_study(path), tmp_path / "out")


def _beat(**changes):
    now = heartbeat.Heartbeat(
        "training", 5, 20, 100.0, 3.0, time.time(), os.getpid(), socket.gethostname()
    )
    return dataclasses.asdict(dataclasses.replace(now, **changes))


def _states(cells, output):
    write_plan(cells, output)
    return [(state.state, state.detail) for state in read_states(read_plan(output), output)]


def test_a_cell_runs_while_it_tells_so_and_is_stalled_when_it_is_silent_or_dead(study, tmp_path):
    cells, output = study[1], tmp_path / "out"
    cells[0].directory.mkdir(parents=True)
    waits = ("waiting", "for first/resnet20-seed0, running")
    path = cells[0].directory / files.HEARTBEAT
    path.write_text(json.dumps(_beat()))
    assert _states(cells, output)[::2] == [("running", "training"), waits]
    path.write_text(json.dumps(_beat(written=time.time() - 600, host="elsewhere", pid=7)))
    assert _states(cells, output)[0] == ("stalled", "silent for 10 min: process 7 on elsewhere")
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(json.dumps(_beat(pid=gone.pid)))
    state, why = _states(cells, output)[0]
    assert (state, f"process {gone.pid} is gone" in why) == ("stalled", True)
    keep_failure(cells[0], Failure("killed", can_pass=True))
    assert _states(cells, output)[0] == ("failed", "killed")
    keep_failure(cells[0], None)
    path.write_text('{"stage": "training"')
    assert _states(cells, output)[0] == ("to come", "")
    (cells[0].directory / files.CHECKPOINT).touch()
    assert _states(cells, output)[0][0] == "interrupted"
    keep_failure(cells[0], Failure("one\nlast line of it", can_pass=False))
    assert _states(cells, output)[0] == ("failed", "last line of it")
    assert "1 failed: first/resnet20-seed0; 3 to come" in describe_missing([output])[0]


def test_a_heartbeat_tells_rate_and_time_left_and_ends_with_the_run(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 100.0, 102.0, 120.0, 130.0, 160.0])
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(clock))
    with heartbeat.keep_heartbeat(tmp_path):
        heartbeat.tell("training", 10, 100, images=8)
        heartbeat.tell("training", 20, 100, images=8)
        heartbeat.tell("training", 30, 100, images=8)  # 2 s later: too soon to be written
        assert heartbeat.read_heartbeat(tmp_path).step == 20
        heartbeat.tell("training", 60, 100, images=8)
        beat = heartbeat.read_heartbeat(tmp_path)
        heartbeat.tell("evaluating", 5, 50)
        heartbeat.tell("training", 70, 100, images=8)
        later = heartbeat.read_heartbeat(tmp_path)
    assert (beat.step, beat.images_per_second) == (60, pytest.approx(40 * 8 / 20))
    assert beat.seconds_left == pytest.approx(40 * 110 / 50)
    # A look at the curve in between stops no clock and hides no rate.
    assert (later.step, later.images_per_second) == (70, beat.images_per_second)
    assert later.seconds_left == pytest.approx(30 * 150 / 60)
    assert not list(tmp_path.iterdir())


class _Unlucky:
    """An executor whose jobs fail a number of times, by chance or for good."""

    room = 10

    def __init__(self, failures):
        self.failures, self.started, self.queue = failures, [], []

    def start(self, job):
        self.started.append(job.cell.name)
        self.queue.append(job)

    def wait(self, seconds):
        ended = []
        for job in self.queue:
            left = self.failures.get(job.cell.name, [])
            ended.append((job, left.pop() if left else Failure("for good")))
        self.queue = []
        return ended


def test_what_can_pass_is_tried_again_a_bounded_number_of_times(study, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "PAUSE", 0.01)
    lost = Failure("its node was lost", can_pass=True)
    unlucky = _Unlucky({"first/resnet20-seed0": [lost] * 9, "first/se_resnet20-seed0": [lost]})
    outcomes = list(Schedule(study[1], unlucky, retries=2).run())
    errors = {outcome.cell.name: outcome.error for outcome in outcomes}
    assert errors == {
        "first/resnet20-seed0": "its node was lost; tried 3 times",
        "second/resnet20-seed0": "its weights come from first · resnet20-seed0",
        "first/se_resnet20-seed0": "for good; tried 2 times",
        "second/se_resnet20-seed0": "its weights come from first · se_resnet20-seed0",
    }
    assert unlucky.started.count("first/resnet20-seed0") == 3


def test_ten_thousand_cells_are_scheduled_and_looked_at_in_seconds(study, tmp_path):
    _, first, *_ = study[1]
    many = [
        dataclasses.replace(
            first, number=n, directory=tmp_path / "out" / "first" / f"n-seed{n}",
            source=tmp_path / "out" / "first" / f"n-seed{n % 100}" if n >= 100 else None,
        )
        for n in range(10_000)
    ]  # fmt: skip
    (tmp_path / "out").mkdir()
    begun = time.process_time()
    outcomes = list(Schedule(many, _Unlucky({})).run())
    states = _states(many, tmp_path / "out")
    seconds = time.process_time() - begun
    assert len(outcomes) == len(states) == 10_000
    assert sum("its weights come from" in outcome.error for outcome in outcomes) == 9_900
    assert sum(state == "waiting" for state, _ in states) == 9_900
    assert seconds < 10  # about 0.7


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_script_runs_every_cell_after_what_it_waits_for(study, sebench, tmp_path, kind):
    code, out, _ = sebench("run", study[0], "-o", tmp_path / "out", "--cells", "--example", kind)
    assert code == 0
    if kind == "kubernetes":
        spec = yaml.safe_load(out)["spec"]
        container = spec["template"]["spec"]["containers"][0]
        assert spec["completions"] == 4
        assert container["resources"]["limits"] == {"cpu": 6, "memory": "32Gi", "nvidia.com/gpu": 2}
        script = container["command"][-1]
        wanted = [["--cell 3"]]
    else:
        script, wanted = out, {
            "bash": [["--cell 0"], ["--cell 1"], ["--cell 2"], ["--cell 3"]],
            "slurm-array": [["--array=0-1"], ["--array=2-3", "--dependency=afterany:17"]],
            "sagemaker": [["cell=0"], ["cell=1"], ["wait"], ["wait"], ["cell=2"], ["cell=3"]],
        }[kind]  # fmt: skip
    # Commands of the clusters that write down how they are called.
    calls = tmp_path / "calls.txt"
    for name in ("sebench", "sbatch", "aws"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho 17\n')
        command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "3"}
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    lines = calls.read_text().splitlines()
    assert len(lines) >= len(wanted)
    for words, line in zip(wanted, lines, strict=False):
        assert all(word in line for word in words), line


def test_a_part_of_a_study_keeps_the_numbers_of_the_whole(study, sebench, tmp_path):
    path, cells = study
    part = ("run", path, "-o", tmp_path / "out", "--only", "*/se_*", "--cells")
    _, out, _ = sebench(*part)
    told = [(cell["number"], cell["waits_for"], cell["state"]) for cell in json.loads(out)]
    assert told == [(1, None, "to come"), (3, 1, "waiting")]
    _, out, _ = sebench(*part, "--example", "kubernetes")
    spec = yaml.safe_load(out)["spec"]
    script = spec["template"]["spec"]["containers"][0]["command"][-1]
    assert spec["completions"] == 2
    (tmp_path / "sebench").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "sebench").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "1"}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip().endswith("--cell 3")
    # A cell whose source has failed for good fails too, and is not tried for ever.
    keep_failure(cells[0], Failure("no such data"))
    code, _, err = sebench("run", path, "-o", tmp_path / "out", "--cell", 2)
    assert (code, "waits for first/resnet20-seed0: no such data" in err) == (1, True)


def test_options_that_do_not_fit_are_refused(study, sebench, tmp_path):
    path, output = study[0], tmp_path / "out"
    for arguments, message in (
        (("--executor", "rai"), "unknown executor 'rai'"),
        (("jobs=3",), "unknown option of --executor local 'jobs'"),
        (("jobs",), "'jobs': options of --executor local are written key=value"),
        (("--example", "bash"), "--example bash is for --cells"),
        (("--cells", "--example", "kubernets"), "did you mean kubernetes"),
        (("--cell", "0", "-j", "2"), "--cell 0 runs one cell here"),
    ):
        code, _, err = sebench("run", path, "-o", output, *arguments)
        assert (code, message in err) == (1, True), err
    code, _, err = sebench("status", tmp_path)
    assert (code, "is no folder of a study" in err) == (1, True)


def test_a_store_keeps_a_run_and_never_a_checkpoint_before_its_curve(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    from tools.experiments.executors.store import Store

    memory, put = fsspec.filesystem("memory"), []
    place = Store(f"memory://{tmp_path.name}")
    here, there = (tmp_path / name / "entry" / "cell-seed0" for name in ("here", "there"))
    with place.kept(here, tmp_path / "here"):
        here.mkdir(parents=True)
        for name in (files.CHECKPOINT, files.RECORD, files.CURVE, ".lock", ".x.1.partial"):
            (here / name).write_text(name)
        move = memory.mv
        monkeypatch.setattr(type(memory), "mv", lambda self, a, b: (put.append(b), move(a, b)))
    assert [path.rpartition("/")[2] for path in put] == [
        files.CURVE,
        files.CHECKPOINT,
        files.RECORD,
    ]
    with place.kept(there, tmp_path / "there"):
        names = {path.name for path in there.iterdir()}
        assert names == {files.CHECKPOINT, files.RECORD, files.CURVE}
        (there / files.CURVE).write_text("later")
        (there / files.CHECKPOINT).unlink()  # the run is over
    shutil.rmtree(here)
    place.fetch(here, tmp_path / "here")
    assert (here / files.CURVE).read_text() == "later"
    assert not (here / files.CHECKPOINT).exists()
    (tmp_path / "here" / files.PLAN_LOCK).write_text("the plan")
    place.put(tmp_path / "here", tmp_path / "here", {})
    place.fetch(tmp_path / "there", tmp_path / "there")  # a node that shares no folder
    assert (tmp_path / "there" / files.PLAN_LOCK).read_text() == "the plan"
    with pytest.raises(ValueError, match="store=nowhere://x"):
        Store("nowhere://x")
