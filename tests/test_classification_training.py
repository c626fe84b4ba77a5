"""Training end to end on tiny sets: it learns, stops and goes on without a trace, and says no."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backbones import BackboneSettings, build_network, read_weights, save_weights
from backbones.checkpoint import save_checkpoint
from backbones.files import lock_directory
from backbones.monitor import Monitor
from backbones.weights.files import read_tensors, save_state
from classification import run
from classification.config import (
    AugmentSettings,
    ClassificationConfig,
    DataSettings,
    EvaluateSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainSettings,
)
from classification.engine import Trainer
from tools import sample_data

TINY = BackboneSettings("se_resnet_tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cifar10"
    return sample_data.make_cifar10(path, train_per_class=8, test_per_class=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "imagenet"
    return sample_data.make_imagenet(path, 6, train_per_class=8, val_per_class=3, size=40)


def config(root, data=(), augment=(), evaluate=(), **train):
    """Settings for the tiny CIFAR set: two epochs of five steps unless said otherwise."""
    train = {
        "epochs": 2,
        "batch_size": 16,
        "log_every": 1,
        "tensorboard": False,
        "optimizer": OptimizerSettings(lr=0.05, nesterov=True),
        "schedule": ScheduleSettings(unit="iteration", warmup=2),
        **train,
    }
    return ClassificationConfig(
        backbone=TINY,
        data=DataSettings(root=str(root), **dict(data)),
        augment=AugmentSettings(crop="padded", size=32, **dict(augment)),
        train=TrainSettings(**train),
        evaluate=EvaluateSettings(**{"every": 0, **dict(evaluate)}),
        device="cpu",
    )


def for_files(config, photos, **data):
    """The same settings for the tiny set of files."""
    return replace(
        config,
        data=DataSettings(name="folder", root=str(photos), **data),
        augment=AugmentSettings(size=32),
        evaluate=replace(config.evaluate, protocol="imagenet-256-224", resize=36, crop=32),
    )


def weights(directory):
    return load_file(directory / "weights.safetensors")


def assert_same(one: Path, other: Path):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(directory):
    return [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]


# Learning and its result -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run long enough to learn, with what it returned."""
    base = tmp_path_factory.mktemp("learned")
    data = sample_data.make_cifar10(base / "cifar10", train_per_class=40, test_per_class=10)
    settings = config(data, epochs=9, batch_size=40, evaluate={"every": 3})
    directory = base / "run"
    return settings, directory, run.train(settings, directory)


def test_a_tiny_network_learns_far_above_chance(learned):
    _, directory, result = learned
    assert result.metrics["top1_accuracy"] > 30
    assert result.dataset.images == result.dataset.images_in_set == 100
    assert result.dataset.synthetic is True
    assert result.selection == "last epoch"
    assert (result.chance, result.steps) == (90, 90)
    rows = curve(directory)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 90
    assert losses[-1] < losses[0]
    errors = [row["train_top1_error"] for row in rows if "loss" in row]
    assert 0 <= sum(errors[-10:]) < sum(errors[:10]) <= 10 * 100
    assert [row["epoch"] for row in rows if "val_top1_error" in row] == [3, 6, 9]
    assert rows[-1]["val_top1_error"] == result.metrics["top1_error"]


def test_evaluating_the_kept_weights_gives_the_same_numbers(learned, tmp_path):
    settings, directory, trained = learned
    file = directory / "weights.safetensors"
    again = replace(settings, backbone=replace(TINY, weights=str(file)))
    result = run.evaluate(again, tmp_path / "evaluated")
    for key in ("metrics", "per_class", "input_format", "protocol"):
        assert getattr(result, key) == getattr(trained, key)
    assert result.cost == replace(trained.cost, latency=result.cost.latency)  # measured anew
    assert result.weights.sha256 == trained.weights.sha256
    json.dumps(asdict(result), allow_nan=False)


def test_the_kept_weights_say_what_they_are_for(learned):
    settings, directory, _ = learned
    kept = read_weights(directory / "weights.safetensors")
    assert kept.backbone.name == "se_resnet_tiny"
    assert list(kept.input_format.mean) == settings.data.mean
    assert kept.classes[0] == "airplane"


def test_published_weights_bring_their_own_preprocessing(learned, tmp_path):
    settings, directory, trained = learned
    file = str(directory / "weights.safetensors")
    other = replace(settings.data, mean=[0, 0, 0], std=[255, 255, 255])
    again = replace(settings, data=other, backbone=replace(TINY, weights=file))
    result = run.evaluate(again, tmp_path / "evaluated")
    assert result.metrics == trained.metrics


# Stopping and going on ---------------------------------------------------------------------------

EVERYTHING = {
    "ema_decay": 0.9,
    "dropout": 0.2,
    "clip_grad": 1.0,
    "accumulate": 2,
    "label_smoothing": 0.1,
    "checkpoint_every": 0.0,
}
DRAWS = {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.5, "cutout": 8}


def killed_while_saving(settings, directory):
    """Train until the fourth checkpoint is about to take the place of the third, then die."""
    replace, calls = os.replace, []

    def kill(source, target):
        if str(target).endswith("checkpoint.pt"):
            calls.append(target)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = kill
    run.train(settings, directory)


def test_resuming_after_a_kill_gives_the_weights_of_no_kill(root, photos, tmp_path):
    settings = for_files(config(root, **EVERYTHING), photos, workers=2)
    settings = replace(settings, augment=AugmentSettings(size=32, policy="rand_augment", **DRAWS))
    arguments = (settings, tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(
        target=killed_while_saving, args=arguments
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    # Killed at step 4 of 6 while saving it: the checkpoint of step 3, the end of an epoch, stands.
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    alone = replace(settings, data=replace(settings.data, workers=0))
    run.train(alone, tmp_path / "killed", resume=True)
    run.train(alone, tmp_path / "unharmed")
    assert_same(tmp_path / "killed", tmp_path / "unharmed")
    steps = [row["step"] for row in curve(tmp_path / "killed")]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_then_stops_and_a_resumed_run_shows_no_trace(
    root, tmp_path, monkeypatch, signal_name
):
    settings = config(root, augment=DRAWS, **{**EVERYTHING, "checkpoint_every": 60.0})
    run.train(settings, tmp_path / "unharmed")
    note = Monitor.note

    def note_and_signal(self, step, lr, loss):
        note(self, step, lr, loss)
        if step == 7:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.Signals[signal_name])

    monkeypatch.setattr(Monitor, "note", note_and_signal)
    with pytest.raises(KeyboardInterrupt, match=f"{signal_name} after step 7 of 10"):
        run.train(settings, tmp_path / "stopped")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run.train(settings, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", tmp_path / "unharmed")


def test_a_plateau_and_the_best_epoch_survive_a_stop(root, tmp_path, monkeypatch):
    schedule = ScheduleSettings(name="plateau", patience=0, decay_rate=0.5)
    more = {"select": "best", "epochs": 4, "schedule": schedule}
    settings = config(root, data={"holdout": 0.25}, checkpoint_every=0.0, **more)
    whole = run.train(settings, tmp_path / "unharmed")
    save = Trainer.save

    def save_and_stop(self):
        save(self)
        if self.step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run.train(settings, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = run.train(settings, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", tmp_path / "unharmed")
    assert resumed.selection == whole.selection
    rates = [
        [row["lr"] for row in curve(tmp_path / d) if "lr" in row] for d in ("stopped", "unharmed")
    ]
    assert rates[0] == rates[1]


def test_a_damaged_checkpoint_is_named_with_the_mend(root, tmp_path):
    settings = config(root, epochs=1)
    run.train(settings, tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*remove it"):
        run.train(settings, tmp_path, resume=True)


def test_a_checkpoint_of_other_data_or_network_is_refused(root, photos, tmp_path):
    settings = config(root, epochs=1)
    run.train(settings, tmp_path)
    with pytest.raises(ValueError, match="steps in all"):
        run.train(config(root, epochs=2), tmp_path, resume=True)
    other = replace(settings, backbone=BackboneSettings("resnet_tiny"))
    with pytest.raises(ValueError, match="of another network"):
        run.train(other, tmp_path, resume=True)


# What settings do --------------------------------------------------------------------------------


def test_the_best_epoch_is_chosen_on_held_out_images_and_the_result_says_so(root, tmp_path):
    settings = config(root, data={"holdout": 0.25}, select="best", epochs=5)
    result = run.train(settings, tmp_path)
    points = [row for row in curve(tmp_path) if "val_top1_error" in row]
    best = min(points, key=lambda row: (row["val_top1_error"], row["epoch"]))
    expected = f"best epoch, {best['epoch']:.0f}, on 20 images held out of train"
    assert result.selection == expected
    assert result.dataset.train_images == 60
    assert result.dataset.held_out_images == 20


def test_choosing_on_the_reported_split_is_refused(root):
    with pytest.raises(ValueError, match=r"data\.holdout"):
        config(root, select="best")
    with pytest.raises(ValueError, match=r"data\.holdout"):
        config(root, schedule=ScheduleSettings(name="plateau"))


def test_parts_of_a_batch_make_the_gradient_of_the_whole(root, tmp_path):
    # Without batch statistics parts and whole agree to rounding.
    def steps(directory, **train):
        settings = config(root, freeze_norms_epochs=2, iterations=3, **train)
        run.train(settings, directory)
        return weights(directory)

    whole, parts = steps(tmp_path / "1"), steps(tmp_path / "4", accumulate=4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


def test_frozen_norms_do_not_move_in_the_last_epochs(root, tmp_path):
    # Statistics, gamma and beta, whatever momentum and decay they had gathered before.
    settings = config(root, freeze_norms_epochs=1, checkpoint_every=0.0)
    frozen = {}

    def keep_the_first_epoch(self):
        save(self)
        if self.step == 5:
            frozen.update({k: v.clone() for k, v in self.final_network.state_dict().items()})

    save, Trainer.save = Trainer.save, keep_the_first_epoch
    try:
        run.train(settings, tmp_path)
    finally:
        Trainer.save = save
    kept = weights(tmp_path)
    norms = [name.removesuffix("running_mean") for name in kept if name.endswith("running_mean")]
    for norm in norms:
        for part in ("running_mean", "running_var", "weight", "bias"):
            assert torch.equal(kept[norm + part], frozen[norm + part])
    assert not torch.equal(kept["head.fc.weight"], frozen["head.fc.weight"])


def test_the_averaged_weights_are_the_product(root, tmp_path):
    run.train(config(root, epochs=1, ema_decay=0.5, iterations=2), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    kept = weights(tmp_path)
    assert all(torch.equal(kept[name], state["average"][name]) for name in kept)
    assert not torch.equal(kept["head.fc.weight"], state["network"]["head.fc.weight"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_trains_to_about_the_loss_of_float32(root, tmp_path, precision):
    losses = []
    for chosen in ("float32", precision):
        run.train(config(root, iterations=2, precision=chosen), tmp_path / chosen)
        losses.append(curve(tmp_path / chosen)[1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_training_starts_from_given_weights_with_a_new_classifier(root, tmp_path):
    network = build_network("se_resnet_tiny", 3)
    file = tmp_path / "start.safetensors"
    given = read_weights_of(network, file)
    optimizer = OptimizerSettings(lr=1e-12, weight_decay=0)
    schedule = ScheduleSettings(name="constant")
    settings = config(
        root, iterations=1, optimizer=optimizer, schedule=schedule, freeze_norms_epochs=1
    )
    settings = replace(settings, backbone=replace(TINY, weights=str(file)))
    result = run.train(settings, tmp_path / "run")
    kept = weights(tmp_path / "run")
    name = "backbone.res5.0.conv1.weight"
    torch.testing.assert_close(kept[name], given[name])
    assert kept["head.fc.weight"].shape[0] == 10
    assert result.weights.initial.sha256


# Nothing lost, nothing unsound -------------------------------------------------------------------


def train_in_a_process(settings, directory, resume=False, kill_after=None):
    """Train in a process of its own, which dies by SIGKILL after so many lines of the curve."""

    def work():
        if kill_after is not None:
            write = Monitor.write

            def write_and_die(self, step, **values):
                write(self, step, **values)
                if len(curve(directory)) == kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)

            Monitor.write = write_and_die
        run.train(settings, directory, resume=resume)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    return process.exitcode


def without_times(directory):
    return [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in curve(directory)
    ]


def test_the_curve_of_a_killed_and_resumed_run_is_that_of_an_uninterrupted_one(root, tmp_path):
    # Points every 3 steps and every epoch of 5; a checkpoint at each of them.
    settings = config(root, epochs=3, log_every=3, checkpoint_every=0.0, evaluate={"every": 1})
    assert train_in_a_process(settings, tmp_path / "unharmed") == 0
    killed = tmp_path / "killed"
    assert train_in_a_process(settings, killed, kill_after=5) == -signal.SIGKILL
    assert train_in_a_process(settings, killed, resume=True) == 0
    assert without_times(killed) == without_times(tmp_path / "unharmed")
    assert (killed / "weights.safetensors").read_bytes() == (
        tmp_path / "unharmed" / "weights.safetensors"
    ).read_bytes()


def test_the_curve_of_a_run_stopped_between_its_points_shows_no_trace(root, tmp_path, monkeypatch):
    settings = config(root, log_every=4)
    run.train(settings, tmp_path / "unharmed")
    note = Monitor.note

    def note_and_signal(self, step, lr, loss):
        note(self, step, lr, loss)
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "note", note_and_signal)
    with pytest.raises(KeyboardInterrupt, match="after step 7"):
        run.train(settings, tmp_path / "stopped")
    monkeypatch.undo()
    run.train(settings, tmp_path / "stopped", resume=True)
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "unharmed")


@pytest.mark.parametrize("place", [0.01, 0.5, 0.999])
def test_one_flipped_bit_of_a_checkpoint_is_found(root, tmp_path, place):
    settings = config(root, epochs=1)
    run.train(settings, tmp_path)
    file = tmp_path / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 8
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*remove it"):
        run.train(settings, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "7"),
        ("step", -1),
        ("step", True),
        ("network", []),
        ("network", {}),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": [{"lr": "fast", "params": [0]}]}),
        ("random", []),
        ("random", [{"torch": torch.zeros(3)}]),
        ("schedule", {}),
        ("monitor", {"seconds": "long"}),
        ("bad_images", None),
    ],
)
def test_a_checkpoint_of_wrong_content_is_one_clear_error(root, tmp_path, key, value):
    settings = config(root, epochs=1)
    run.train(settings, tmp_path)
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(torch.load(file, weights_only=True) | {key: value}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        run.train(settings, tmp_path, resume=True)


def test_a_checkpoint_runs_no_code(root, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    settings = config(root, epochs=1)
    run.train(settings, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(torch.load(file, weights_only=True) | {"step": Payload()}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged or no checkpoint"):
        run.train(settings, tmp_path / "run", resume=True)
    assert not (tmp_path / "ran").exists()


def test_two_trainers_do_not_share_a_directory(root, tmp_path):
    settings = config(root)
    with lock_directory(tmp_path), multiprocessing.get_context("fork").Pool(1) as pool:
        outcome = pool.apply(refused, (settings, tmp_path))
    assert "in use" in outcome


def refused(settings, directory):
    try:
        run.train(settings, directory)
    except ValueError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("tensor", ["norm1.running_var", "norm1.weight", "head.fc.bias"])
def test_weights_that_are_not_finite_are_refused_by_the_tensors_name(learned, tmp_path, tensor):
    settings, directory, _ = learned
    file = tmp_path / "damaged.safetensors"
    shutil.copy(directory / "weights.safetensors", file)
    held = read_tensors(file)
    state, metadata = held.tensors, held.metadata
    match = next(name for name in state if name.endswith(tensor))
    state[match].view(-1)[0] = float("nan")
    save_state(file, state, metadata)
    settings = replace(settings, backbone=replace(TINY, weights=str(file)))
    for use in (
        lambda: run.check(settings, training=False),
        lambda: run.evaluate(settings, tmp_path / "evaluated"),
    ):
        with pytest.raises(ValueError, match=rf"damaged\.safetensors: .*{match} holds 1 of"):
            use()


def test_outputs_that_overflow_are_no_measurement(learned, tmp_path):
    settings, directory, _ = learned
    file = tmp_path / "large.safetensors"
    held = read_tensors(directory / "weights.safetensors")
    state, metadata = held.tensors, held.metadata
    state["head.fc.weight"] *= 1e38 / state["head.fc.weight"].abs().max()
    save_state(file, state, metadata)
    settings = replace(settings, backbone=replace(TINY, weights=str(file)))
    with pytest.raises(ValueError, match=r"outputs for .* are infinite or not a number"):
        run.evaluate(settings, tmp_path / "evaluated")


def test_a_warm_up_longer_than_the_run_is_refused_with_the_mend(root, tmp_path):
    settings = config(root, schedule=ScheduleSettings(unit="iteration", warmup=1000))
    for use in (lambda: run.check(settings), lambda: run.train(settings, tmp_path)):
        with pytest.raises(ValueError, match=r"warmup=1000.*10 iterations.*schedule\.warmup=1"):
            use()


def test_decays_beyond_the_end_and_another_sets_mean_are_warned_of(root):
    schedule = ScheduleSettings(name="multistep", milestones=[1, 60, 120])
    (warning,) = run.check(config(root, schedule=schedule))["warnings"]
    assert "milestones=[60, 120] lie beyond the end of the run, 2 epochs" in warning
    (warning,) = run.check(config(root, data={"mean": [129.3, 124.1, 112.4]}))["warnings"]
    assert "is of cifar100, not of cifar10" in warning
    assert run.check(config(root))["warnings"] == []


def test_a_single_image_a_step_with_maps_of_one_pixel_is_refused_by_the_check(root):
    settings = replace(config(root, batch_size=4, accumulate=4), augment=AugmentSettings(size=8))
    with pytest.raises(ValueError, match=r"cannot take 1 images of 8x8.*train\.batch_size"):
        run.check(settings)
    run.check(replace(settings, train=replace(settings.train, accumulate=2)))


def test_an_optimizer_that_cannot_step_here_is_refused_by_the_check(root):
    with pytest.raises(ValueError, match=r"optimizer\.name=.*cannot make a step"):
        run.check(config(root, optimizer=OptimizerSettings(name="bnbadam")))


def test_a_plateau_at_its_floor_ends_training_and_a_resumed_run_knows(root, tmp_path):
    schedule = ScheduleSettings(name="plateau", patience=0, decay_rate=0.1, min_lr=0.05 * 0.1)
    more = {"schedule": schedule, "epochs": 40, "optimizer": OptimizerSettings(lr=0.05)}
    settings = config(root, data={"holdout": 0.25}, **more)
    result = run.train(settings, tmp_path)
    epochs = curve(tmp_path)[-1]["epoch"]
    assert epochs < 40
    assert result.selection == f"last epoch, {epochs:.0f}, after the last plateau"
    written = (tmp_path / "curve.jsonl").read_bytes()
    again = run.train(settings, tmp_path, resume=True)
    assert again.metrics == result.metrics
    assert (tmp_path / "curve.jsonl").read_bytes() == written


def read_weights_of(network, file):
    from backbones import InputFormat

    save_weights(
        network, file, backbone=TINY, num_classes=3, input_format=InputFormat(), classes=None
    )
    return network.state_dict()


# What is refused ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_learning_rate(root, tmp_path):
    optimizer = OptimizerSettings(lr=1e30)
    settings = config(root, optimizer=optimizer, schedule=ScheduleSettings(name="constant"))
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d.*learning rate 1e\+30"):
        run.train(settings, tmp_path)


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(root):
    with pytest.raises(ValueError, match=r"batch_size=16 does not divide .* 15 would"):
        run.check(config(root, accumulate=3))
    with pytest.raises(ValueError, match="80 training images"):
        run.check(config(root, batch_size=96))


def test_check_says_what_would_be_done(root):
    summary = run.check(config(root, evaluate={"flip": True}))
    assert (summary["steps_per_epoch"], summary["steps"]) == (5, 10)
    assert summary["dataset"]["train_images"] == 80
    assert summary["protocol"]["name"] == "full-image+flip"


def test_unknown_settings_are_refused_with_near_matches(root):
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        DataSettings(name="cifar1O")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        ScheduleSettings(name="cosinus")
    with pytest.raises(ValueError, match="se_resnet_tiny"):
        run.check(replace(config(root), backbone=BackboneSettings("se_resnet_tinny")))


def test_weights_of_another_architecture_are_refused(learned, root):
    settings, directory, _ = learned
    other = BackboneSettings("resnet_tiny", weights=str(directory / "weights.safetensors"))
    with pytest.raises(
        ValueError, match="holds a se_resnet_tiny; the settings ask for resnet_tiny"
    ):
        run.check(replace(settings, backbone=other), training=False)


def test_weights_for_other_classes_are_refused(learned, photos):
    settings, directory, _ = learned
    file = str(directory / "weights.safetensors")
    settings = for_files(replace(settings, backbone=replace(TINY, weights=file)), photos)
    with pytest.raises(ValueError, match=r"other classes.*'airplane' for 'n01440764'"):
        run.check(settings, training=False)


def test_bad_files_stop_a_run_before_it_starts_or_are_skipped_and_counted(root, photos, tmp_path):
    broken = shutil.copytree(photos, tmp_path / "broken")
    for split in ("train", "val"):
        file = sorted((broken / split / "n01440764").iterdir())[0]
        file.write_bytes(file.read_bytes()[:300])
    settings = for_files(config(root, epochs=1), broken)
    with pytest.raises(
        ValueError, match=r"1 unreadable images under .*n01440764.*skip_bad_images=0"
    ):
        run.check(settings)
    allowed = for_files(config(root, epochs=1), broken, skip_bad_images=1)
    result = run.train(allowed, tmp_path / "run")
    data = result.dataset
    assert (data.images_in_set, data.images, len(data.skipped_images)) == (18, 17, 1)
    assert data.skipped_images[0].startswith("n01440764/")


def test_whole_images_of_many_sizes_need_a_protocol_that_crops(root, photos):
    settings = for_files(config(root), photos)
    settings = replace(settings, evaluate=EvaluateSettings(protocol="full-image"))
    with pytest.raises(ValueError, match="imagenet-256-224"):
        run.check(settings)
