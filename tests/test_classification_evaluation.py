"""Evaluation is exact: every image once, the same numbers under any number of processes."""

import json
import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import brier_score_loss, log_loss

from backbones import BackboneSettings, InputFormat, build_network, save_weights
from classification import datasets, run
from classification.config import (
    AugmentSettings,
    ClassificationConfig,
    DataSettings,
    EvaluateSettings,
    OptimizerSettings,
    TrainSettings,
)
from classification.engine import Trainer
from classification.images import read_image
from classification.readers import read_folder
from classification.transforms import build_views, normalize
from tests.processes import in_processes
from tools import sample_data
from tools.statistics import calibration, load_predictions

TINY = "se_resnet_tiny"
FORMAT = InputFormat(channel_order="BGR", mean=(104, 117, 123), std=(50, 60, 70))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "imagenet"
    return sample_data.make_imagenet(path, 6, train_per_class=4, val_per_class=3, size=40)


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    """Three files of random weights for the six classes."""
    folder = tmp_path_factory.mktemp("weights")
    classes = sorted(path.name for path in (photos / "val").iterdir())
    for seed in range(3):
        torch.manual_seed(seed)
        network = build_network(TINY, 6)
        file = folder / f"{seed}.safetensors"
        settings = BackboneSettings(TINY)
        save_weights(
            network, file, backbone=settings, num_classes=6, input_format=FORMAT, classes=classes
        )
    return [str(folder / f"{seed}.safetensors") for seed in range(3)]


def config(photos, file=None, **evaluate):
    evaluate = {
        "protocol": "imagenet-256-224",
        "resize": 40,
        "crop": 32,
        "batch_size": 4,
    } | evaluate
    return ClassificationConfig(
        backbone=BackboneSettings(TINY, weights=file),
        data=DataSettings(name="folder", root=str(photos), workers=0),
        evaluate=EvaluateSettings(**evaluate),
        device="cpu",
    )


def samples(directory):
    return pq.read_table(directory / "samples.parquet").to_pydict()


@pytest.fixture
def odd(tmp_path, photos):
    """A list of 17 of the 18 images."""
    names = sorted(path.name for path in photos.glob("val/*/*"))[:-1]
    file = tmp_path / "odd.txt"
    file.write_text("\n".join(names))
    return str(file)


# One process -------------------------------------------------------------------------------------


def test_scores_are_those_of_the_network_on_the_protocols_views(photos, files, tmp_path):
    settings = config(photos, files[0], flip=True)
    result = run.evaluate(settings, tmp_path)
    rows = samples(tmp_path)
    dataset = read_folder(settings.data, "val")
    torch.manual_seed(0)
    network = build_network(TINY, 6).eval()
    _, protocol = run.choose_protocol(settings.evaluate)
    right = 0
    for place, image_id in enumerate(dataset.ids):
        image = read_image(photos / "val" / image_id)
        with torch.inference_mode():
            logits = network(normalize(build_views(protocol)(image), FORMAT))
        scores = logits.softmax(1).mean(0)
        assert rows["image"][place] == image_id
        assert rows["label"][place] == dataset.labels[place]
        np.testing.assert_allclose(rows["scores"][place], scores.sort(descending=True)[0][:5], 1e-4)
        right += rows["top5"][place][0] == rows["label"][place]
    assert result.metrics["top1_accuracy"] == 100 * right / 18
    assert result.input_format["channel_order"] == "BGR"


def test_rows_hold_what_proper_scores_need(photos, files, tmp_path):
    """They are scikit-learn's of the probabilities of all classes."""
    run.evaluate(config(photos, files[0], flip=True), tmp_path)
    rows = samples(tmp_path)
    probabilities = np.zeros((18, 6))
    for row, (top, scores) in enumerate(zip(rows["top5"], rows["scores"], strict=True)):
        probabilities[row] = (1 - sum(scores)) * ~np.isin(range(6), top)  # the sixth
        probabilities[row, top] = scores
    labels, own = rows["label"], np.array(rows["probability"])
    expected = log_loss(labels, probabilities, labels=range(6))
    assert calibration.log_losses(own).mean() == pytest.approx(expected, rel=1e-5)
    expected = brier_score_loss(labels, probabilities, labels=range(6), scale_by_half=False)
    assert np.mean(rows["brier"]) == pytest.approx(expected, rel=1e-5)
    assert load_predictions(tmp_path / "samples.parquet").confidence.max() == probabilities.max()


def test_an_ensemble_averages_the_scores_of_its_members(photos, files, tmp_path):
    def scores(*members):
        settings = config(photos, members[0], ensemble=list(members[1:]))
        result = run.evaluate(settings, tmp_path / "run")
        rows = samples(tmp_path / "run")
        table = np.zeros((18, 6))
        for row, (classes, values) in enumerate(zip(rows["top5"], rows["scores"], strict=True)):
            table[row, classes] = values
            table[row, list(set(range(6)) - set(classes))] = 1 - sum(values)
        return table, result

    alone = [scores(file)[0] for file in files]
    together, result = scores(*files)
    np.testing.assert_allclose(together, sum(alone) / 3, atol=1e-6)
    assert [member.path for member in result.weights.ensemble] == files[1:]


def test_a_list_of_images_is_what_is_counted(photos, files, odd, tmp_path):
    result = run.evaluate(config(photos, files[0], images=odd), tmp_path)
    assert result.dataset.images == result.dataset.images_in_set == 17
    assert len(samples(tmp_path)["image"]) == 17


def test_an_ensemble_holds_different_networks_each_as_its_file_says(photos, files, tmp_path):
    other = tmp_path / "plain.safetensors"
    torch.manual_seed(4)
    network = build_network("resnet_tiny", 6)
    form = replace(FORMAT, mean=(0.0, 0.0, 0.0))
    settings = BackboneSettings("resnet_tiny")
    save_weights(network, other, backbone=settings, num_classes=6, input_format=form)
    together = config(photos, files[0], ensemble=[str(other)])
    run.check(together, training=False)
    result = run.evaluate(together, tmp_path / "both")
    alone = [
        run.evaluate(config(photos, files[0]), tmp_path / "one"),
        run.evaluate(
            replace(config(photos, str(other)), backbone=replace(settings, weights=str(other))),
            tmp_path / "other",
        ),
    ]
    assert result.cost.parameters == sum(each.cost.parameters for each in alone)
    first = {
        name: dict(
            zip(
                samples(tmp_path / name)["top5"][0],
                samples(tmp_path / name)["scores"][0],
                strict=True,
            )
        )
        for name in ("both", "one", "other")
    }
    shared = set(first["both"]) & set(first["one"]) & set(first["other"])
    assert shared
    for label in shared:
        mean = (first["one"][label] + first["other"][label]) / 2
        assert first["both"][label] == pytest.approx(mean, abs=1e-6)


def test_an_ensemble_that_cannot_be_is_refused_by_the_check(photos, files, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        run.check(config(photos, files[0], ensemble=["nowhere.safetensors"]), training=False)


def test_what_is_counted_and_averaged_shows_in_the_protocols_name(photos, files, tmp_path):
    ids = run.load_splits(config(photos), run.READERS, False).reported.ids
    lists = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for place, file in enumerate(lists):
        file.write_text("\n".join([*ids][place : place + 10]))
    settings = [
        config(photos, files[0]),
        *(config(photos, files[0], images=str(file)) for file in lists),
        config(photos, files[0], ensemble=files[1:2]),
        config(photos, files[0], ensemble=files[2:3]),
        config(photos, files[0], ensemble=files[1:3]),
    ]
    checked = [run.check(each, training=False)["protocol"]["name"] for each in settings]
    ran = [run.evaluate(each, tmp_path / "run").protocol.name for each in settings]
    assert ran == checked
    assert len(set(ran)) == len(ran)
    assert all(name.startswith(ran[0]) for name in ran)
    assert "+images10-" in ran[1]
    assert "+ensemble3-" in ran[5]


def test_an_ensemble_needs_images_resized_in_one_way(photos, files, tmp_path):
    other = tmp_path / "bicubic.safetensors"
    network = build_network(TINY, 6)
    form = replace(FORMAT, interpolation="bicubic")
    settings = BackboneSettings(TINY)
    save_weights(network, other, backbone=settings, num_classes=6, input_format=form)
    with pytest.raises(ValueError, match="bicubic"):
        run.evaluate(config(photos, files[0], ensemble=[str(other)]), tmp_path)


def test_several_weights_are_evaluated_as_alone_and_every_image_is_read_once(
    photos, files, tmp_path, monkeypatch
):
    bicubic = tmp_path / "bicubic.safetensors"
    form = replace(FORMAT, interpolation="bicubic")
    torch.manual_seed(3)
    network = build_network(TINY, 6)
    settings = BackboneSettings(TINY)
    save_weights(network, bicubic, backbone=settings, num_classes=6, input_format=form)
    configs = [config(photos, files[0]), config(photos, files[1], ensemble=[files[2]])]
    alone = [run.evaluate(each, tmp_path / f"alone{i}") for i, each in enumerate(configs)]

    read = []
    monkeypatch.setattr(datasets, "read_image", lambda path: read.append(path) or read_image(path))
    runs = [(each, tmp_path / f"together{i}") for i, each in enumerate(configs)]
    together = run.evaluate_together(runs)
    assert len(read) == len(set(read)) == 18
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.metrics == other.metrics
        assert one.weights == other.weights
        assert samples(tmp_path / f"alone{index}") == samples(tmp_path / f"together{index}")
        assert other.timing.networks_in_pass == 3
        assert other.cost.latency.median_ms > 0

    # Other pixels need another pass.
    mixed = run.evaluate_together([(config(photos, str(bicubic)), tmp_path / "other"), runs[0]])
    assert len(read) == 18 * 3
    assert mixed[1].metrics == alone[0].metrics


def test_evaluation_without_weights_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r"backbone\.weights"):
        run.evaluate(config(photos), tmp_path)


# Many processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_give_the_numbers_of_one(photos, files, odd, tmp_path, count):
    settings = config(photos, files[0], images=odd, protocol="imagenet-256-224-ten-crop")
    one = run.evaluate(settings, tmp_path / "one")
    many = in_processes(run.evaluate, count, settings, tmp_path / "many")
    for key in ("metrics", "per_class", "dataset", "protocol"):
        assert many[key] == asdict(one)[key]
    assert samples(tmp_path / "many") == samples(tmp_path / "one")


@pytest.mark.parametrize(
    "norms",
    [
        # Without batch statistics the mean gradient of parts is that of the whole.
        {"freeze_norms_epochs": 2, "accumulate": 2},
        {"synced_norm": True},
    ],
)
def test_training_in_two_processes_gives_the_weights_of_one(norms, photos, odd, tmp_path):
    settings = replace(
        config(photos, images=odd),
        augment=AugmentSettings(size=32),
        train=TrainSettings(
            epochs=2,
            batch_size=8,
            **norms,
            ema_decay=0.5,
            optimizer=OptimizerSettings(lr=0.01),
            tensorboard=False,
        ),
    )
    two = in_processes(run.train, 2, settings, tmp_path / "two")
    run.train(settings, tmp_path / "one")
    ours = load_file(tmp_path / "one" / "weights.safetensors")
    theirs = load_file(tmp_path / "two" / "weights.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert two["dataset"]["images"] == 17
    # What two processes say of these weights is what one says.
    file = str(tmp_path / "two" / "weights.safetensors")
    again = run.evaluate(config(photos, file, images=odd), tmp_path / "again")
    assert again.metrics == two["metrics"]
    assert samples(tmp_path / "again") == samples(tmp_path / "two")


def resume(settings, directory):
    return run.train(settings, directory, resume=True)


def train_until_killed(settings, directory):
    """Die by SIGKILL, every process, once a checkpoint of the second epoch is there."""
    save, saved = Trainer.save, []

    def save_and_die(self):
        save(self)
        saved.append(self.step)
        self._processes.gather(None)  # the first process has written
        if len(saved) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.save = save_and_die
    return run.train(settings, directory)


def test_two_processes_killed_and_resumed_show_no_trace(photos, tmp_path):
    settings = replace(
        config(photos, every=1),
        augment=AugmentSettings(size=32),
        train=TrainSettings(
            epochs=3, batch_size=8, log_every=2, checkpoint_every=0, tensorboard=False, dropout=0.2
        ),
    )
    whole = in_processes(run.train, 2, settings, tmp_path / "unharmed")
    in_processes(train_until_killed, 2, settings, tmp_path / "killed", ends=-signal.SIGKILL)
    resumed = in_processes(resume, 2, settings, tmp_path / "killed")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["weights"] == whole["weights"]
    curves = [
        [
            {**json.loads(line), "images_per_second": None}
            for line in (tmp_path / name / "curve.jsonl").read_text().splitlines()
        ]
        for name in ("unharmed", "killed")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3 * 3
