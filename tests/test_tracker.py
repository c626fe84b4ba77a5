"""Trackers get the rows of curve.jsonl, no more and no less; one that is missing is named at once."""

import json
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from backbones import BackboneSettings
from backbones.tracker import open_trackers
from classification import run
from classification.config import (
    ClassificationConfig,
    DataSettings,
    EvaluateSettings,
    ScheduleSettings,
    TrainSettings,
)
from tools import sample_data


@pytest.fixture
def config(tmp_path):
    root = sample_data.make_cifar10(tmp_path / "cifar10", train_per_class=4, test_per_class=1)
    return ClassificationConfig(
        backbone=BackboneSettings("se_resnet_tiny"),
        data=DataSettings(root=str(root)),
        train=TrainSettings(
            iterations=3, batch_size=16, log_every=1, schedule=ScheduleSettings(unit="iteration")
        ),
        evaluate=EvaluateSettings(every=1),
        device="cpu",
    )


def test_tensorboard_holds_the_points_of_the_curve(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.train(config, tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").open()]
    names = {key for row in rows for key in row if key != "step"}
    assert {"loss", "lr", "val_top1_error"} <= names == set(board.Tags()["scalars"])
    for name in names:
        told = [(point.step, point.value) for point in board.Scalars(name)]
        wanted = [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
        assert told == wanted


@pytest.fixture
def module(monkeypatch, request):
    """A stand-in for a tracker's package."""
    fake = MagicMock(__spec__=SimpleNamespace())
    fake.search_runs.return_value = []
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, fake


@pytest.mark.parametrize("module", ["wandb", "mlflow", "trackio"], indirect=True)
def test_a_tracker_gets_each_value_of_a_row_with_its_step_and_is_closed(module, config, tmp_path):
    name, fake = module
    directory = tmp_path / "study" / "run"
    trackers = open_trackers(directory, name, False, config, 0)
    log_row = trackers.__enter__()
    log_row({"step": 2, "loss": 0.5, "val_loss": None})
    if name == "mlflow":
        log, end, begin = fake.log_metrics, fake.end_run, fake.start_run
        assert begin.call_args.kwargs["run_name"] == "study/run"
    else:
        log, end, begin = fake.init().log, fake.init().finish, fake.init
        assert begin.call_args_list[0].kwargs["resume"] == "allow"
        assert begin.call_args_list[0].kwargs["config"]["seed"] == 0
    log.assert_called_once_with({"loss": 0.5}, step=2)
    end.assert_not_called()
    trackers.__exit__(None, None, None)
    end.assert_called_once_with()


def test_a_tracker_that_is_missing_or_unknown_is_named_before_anything_is_computed(
    sebench, config, tmp_path, monkeypatch
):
    monkeypatch.setattr("backbones.tracker.find_spec", lambda name: None)
    command = ["train", "classification", "-r", "cifar-short", "-b", "se_resnet20"]
    command += ["--data-root", config.data.root, "-o", tmp_path / "run", "--tracker"]
    code, _, err = sebench(*command, "wandb")
    assert code == 1
    assert "train.tracker=wandb: it is not installed; pip install 'sebench[wandb]'" in err
    assert not (tmp_path / "run").exists()
    code, _, err = sebench(*command, "wandbb")
    assert code == 1
    assert "wandb" in err.replace("wandbb", "")
