"""A task is its folder and its row: a toy one is registered, run, recorded, listed and reported."""

import json

import pytest

from tools.experiments import tasks
from tools.experiments.experiment import load_experiment
from tools.experiments.run import run_experiment
from tools.report import write_report

FILES = {
    "__init__.py": "",
    "config.py": """
from dataclasses import dataclass, field
from backbones.config import BackboneSettings, Settings, setting

@dataclass(frozen=True)
class ToyData(Settings):
    group = "data."
    name: str = setting("toys", "the data set")
    root: str | None = setting(None, "its folder", identity=False)

@dataclass(frozen=True)
class ToyConfig(Settings):
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: ToyData = field(default_factory=ToyData)
    skill: float = setting(70.0, "top-1 accuracy", unit="percent")
    seed: int = setting(0, "of everything random")
    device: str = setting("cpu", "cpu", identity=False)
""",
    "run.py": """
from backbones.result import ClassScore, Cost, Dataset, Latency, Protocol, Result, Timing, Weights

def check(config, training=True):
    return {"dataset": {}, "protocol": {}}

def train(config, directory, resume=False):
    gated = config.backbone.name.startswith("se_")
    value = config.skill + 5 * gated
    (directory / "weights.safetensors").write_bytes(b"")
    return Result(
        metrics={"top1_accuracy": value},
        per_class=[ClassScore("bear", 200, value)],
        dataset=Dataset("toys", "test", 200, 1, ["bear"], False, None, "d" * 64, train_images=10),
        protocol=Protocol("as they lie"),
        weights=Weights("weights.safetensors", "b" * 64),
        cost=Cost(1000 + gated, 1000, [3, 8, 8], Latency(1.0)),
        timing=Timing(),
        selection="last epoch",
        input_format={},
        chance=10.0,
        steps=1000,
    )
""",
    "compare.py": """
from tools.report.compared import Compared
from tools.statistics import Difference

def compare(pair, resamples, seed):
    values = [side[0].metrics["top1_accuracy"].value for side in (pair.plain, pair.candidate)]
    change = values[1] - values[0]
    found = Difference(*values, change, change - 1, change + 1, 0.01, "by toys", "by toys", 200)
    return Compared({"top1_accuracy": found}, {}, {})

def find_pictures(plain, candidate):
    return []
""",
    "recipes/quick.yaml": "# A toy recipe\nbackbone: {name: se_resnet20}\nskill: 60.0\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "toytask"
    for name, text in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    row = tasks.Task(
        label="playing with toys",
        hub_name="toys",
        settings="toytask.config:ToyConfig",
        module="toytask.run",
        recipes="toytask",
        training_only=(),
        headline=("top1_accuracy",),
        class_metric="top1_accuracy",
        compare="toytask.compare:compare",
        find_pictures="toytask.compare:find_pictures",
    )
    monkeypatch.setitem(tasks.TASKS, "toy", row)


def test_a_toy_task_is_run_recorded_listed_and_reported(toy, tmp_path, sebench):
    for network in ("resnet20", "se_resnet20"):
        experiment = load_experiment("toy", "quick", [f"backbone.name={network}"])
        record = run_experiment(experiment, tmp_path / "runs" / network)
        assert record.task == "toy"
    files = {p.name: p.read_text() for p in write_report([tmp_path / "runs"], tmp_path / "report")}
    content = json.loads(files["report.json"])
    (comparison,) = content["comparisons"]
    assert comparison["task"] == "toy"
    assert comparison["metrics"][0]["verdict"] == "better"
    assert "Playing with toys" in files["report.html"]
    assert "type: toys" in files["model-index.yaml"]
    assert "skill" in sebench("list", "settings", "toy")[1]
    assert "quick" in sebench("list", "recipes")[1]
