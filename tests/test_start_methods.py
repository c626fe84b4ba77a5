"""Whatever way processes start here, a run that reads files gives the same weights to the bit."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from backbones.files import SAMPLES, WEIGHTS
from tools import sample_data

# Trains on each set and evaluates the first one's weights, as the command line does.
RUNS = """
import multiprocessing
import sys
from pathlib import Path

from tools.experiments.experiment import load_experiment
from tools.experiments.run import run_experiment

SETTINGS = ["train.epochs=2", "evaluate.every=0", "train.batch_size=6", "augment.size=32", "device=cpu",
            "evaluate.resize=40", "evaluate.crop=32", "train.tensorboard=false"]

if __name__ == "__main__":
    method, imagenet, places, output = sys.argv[1:5]
    output = Path(output)
    if method != "none":
        multiprocessing.set_start_method(method)
    workers = ["data.workers=0"] if method == "none" else []
    network = "backbone.name=se_resnet_tiny"
    settings = [*SETTINGS, *workers, "data.classes=folders", network, f"data.root={imagenet}"]
    train = load_experiment("classification", "imagenet-paper", settings)
    run_experiment(train, output / "imagenet")
    if method == "spawn":
        sys.exit()  # every process imports torch: seconds each, and nothing new
    settings.append(f"backbone.weights={output / 'imagenet' / 'weights.safetensors'}")
    again = load_experiment("classification", "imagenet-paper", settings, action="evaluate")
    run_experiment(again, output / "again")
    settings = [*SETTINGS, *workers, "train.schedule.warmup=0", "train.precision=float32"]
    settings += [network, f"data.root={places}"]
    run_experiment(load_experiment("scene", "places365-short", settings), output / "places")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    imagenet = sample_data.make_imagenet(
        folder / "i", 2, train_per_class=3, val_per_class=2, size=40
    )
    places = sample_data.make_places365(
        folder / "p", 2, train_per_class=3, val_per_class=2, size=40
    )
    script = folder / "runs.py"
    script.write_text(RUNS)

    def run(method):
        output = folder / method
        command = [sys.executable, script, method, imagenet, places, output]
        subprocess.run(list(map(str, command)), check=True, timeout=600)
        done = [name for name in ("imagenet", "again", "places") if (output / name).exists()]
        weights = {name: load_file(output / name / WEIGHTS) for name in done if name != "again"}
        samples = {name: (output / name / SAMPLES).read_bytes() for name in done}
        return weights, samples

    return run


@pytest.fixture(scope="module")
def without_workers(run):
    return run("none")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_default_workers_give_the_weights_and_samples_of_none(run, without_workers, method):
    (weights, samples), (same_weights, same_samples) = run(method), without_workers
    assert len(samples) == (1 if method == "spawn" else 3)
    for name, tensors in weights.items():
        assert tensors.keys() == same_weights[name].keys()
        assert all(torch.equal(t, same_weights[name][key]) for key, t in tensors.items())
    assert samples == {name: same_samples[name] for name in samples}
