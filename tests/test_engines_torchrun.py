"""One run in two processes of torchrun, as in one, and when one of them is killed: `make engines`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backbones import files
from tools import sample_data

pytestmark = pytest.mark.engines

IMAGES = (
    "train.epochs=60 train.batch_size=8 train.log_every=2 train.checkpoint_every=0 "
    "augment.size=32 evaluate.resize=40 evaluate.crop=32 evaluate.every=0 train.tensorboard=false"
)
TASKS = {
    "classification": ("imagenet-paper", f"data.classes=folders {IMAGES}"),
    "scene": ("places365-short", f"{IMAGES} train.schedule.warmup=0"),
    "detection": (
        "tiny",
        "train.iterations=40 train.batch_size=2 train.warmup_iterations=3 train.checkpoint_every=4 "
        "train.log_every=5 train.min_size=[64] train.max_size=96 evaluate.min_size=64 "
        "evaluate.max_size=96 device=cpu",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "classification": sample_data.make_imagenet(folder / "imagenet", 3, 16, 4, size=40),
        "scene": sample_data.make_places365(folder / "places365", 3, 16, 4, size=40),
        "detection": sample_data.make_coco(folder / "coco", train=10, val=5, size=64),
    }


def _start(
    task: str, data: Path, output: Path, *changes: str, processes: int = 2
) -> subprocess.Popen:
    recipe, settings = TASKS[task]
    rendezvous = "--rdzv-backend c10d --rdzv-endpoint localhost:0"
    torchrun = (
        f"-m torch.distributed.run {rendezvous} --nproc-per-node {processes} --max-restarts 1"
    )
    train = f"train {task} -r {recipe} -b se_resnet_tiny --data-root {data} -o {output} {settings}"
    command = [sys.executable, *torchrun.split(), "-m", "tools", *train.split(), *changes]
    # torch 2.15 would give the restarted processes the addresses of those that are gone.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _results(output: Path) -> tuple:
    record = json.loads((output / files.RECORD).read_text())
    points = [json.loads(line) for line in (output / files.CURVE).open()]
    steps = [(point["step"], point.get("loss")) for point in points]
    assert record["device"]["processes"] == 2
    return (output / files.WEIGHTS).read_bytes(), steps, record["metrics"]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_which_torchrun_lost_a_process_ends_as_one_that_lost_none(task, data, tmp_path):
    whole = _start(task, data[task], tmp_path / "whole")
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    run = _start(task, data[task], tmp_path / "run")
    end = time.monotonic() + 120
    while not (tmp_path / "run" / files.CHECKPOINT).is_file() and run.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    workers = _children(run.pid)
    assert len(workers) == 2
    assert not (tmp_path / "run" / files.RECORD).exists()
    os.kill(workers[1], signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    if task != "detection":
        assert "resumed at step" in (tmp_path / "run" / files.LOG).read_text()
    assert _results(tmp_path / "run") == _results(tmp_path / "whole")


_FEW = ("train.iterations=5", "train.optimizer.lr=0.01", "train.synced_norm=true")
LIVE = {
    "classification": _FEW,
    "scene": (*_FEW, "train.precision=float32"),
    # What depends on the other images of a process is left out: boxes drawn at random, their number.
    "detection": (
        *(
            "detector.norm=SyncBN",
            "train.iterations=4",
            "train.batch_size=4",
            "train.min_size=[64,80]",
        ),
        *(
            "detectron2.MODEL.RPN.BATCH_SIZE_PER_IMAGE=100000",
            "detectron2.MODEL.RPN.POST_NMS_TOPK_TRAIN=4",
        ),
        "detectron2.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=64",
        "detectron2.MODEL.ROI_HEADS.POSITIVE_FRACTION=1.0",
        "detectron2.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT=false",
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_with_live_norms_give_the_weights_of_one(task, data, tmp_path):
    for count in (1, 2):
        run = _start(task, data[task], tmp_path / str(count), *LIVE[task], processes=count)
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
    one, two = (load_file(tmp_path / name / files.WEIGHTS) for name in "12")
    assert one.keys() == two.keys()
    assert any("running_var" in name for name in one)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
