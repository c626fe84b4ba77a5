"""Every shipped recipe is whole, and the paper's say what the paper says."""

from importlib import resources
from operator import attrgetter

import pytest

from backbones import describe_backbone
from classification.protocols import PROTOCOLS
from tools.experiments.run import list_recipes, load_experiment

RECIPES = [(task, name) for task in ("classification", "scene") for name in list_recipes(task)]


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipe_opens_with_its_source_and_command_and_loads(task, name):
    file = resources.files(task) / "recipes" / f"{name}.yaml"
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    assert len(comment[0]) > 30
    assert f"train {task} --recipe {name}" in text
    assert "Source:" in text or "Ours throughout" in text
    config = load_experiment(task, name, ["data.root=anywhere"]).config
    assert config.evaluate.protocol in PROTOCOLS
    info = describe_backbone(config.backbone.name)
    crop = PROTOCOLS[config.evaluate.protocol].crop or info.input_size
    # Networks are published at one size; the recipe trains and evaluates at it.
    assert crop == info.input_size
    assert config.augment.size == (28 if config.data.name == "fashion_mnist" else info.input_size)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("imagenet-paper", {"batch_size": 1024, "epochs": 100, "optimizer.lr": 0.6, "optimizer.momentum": 0.9, "schedule.step_size": 30, "label_smoothing": 0.0}),
        ("imagenet-ablation", {"optimizer.lr": 0.1, "schedule.name": "plateau", "epochs": 300}),
        ("imagenet-ablation-fixed", {"epochs": 270, "schedule.milestones": [125, 200, 250]}),
        ("imagenet-mobile", {"batch_size": 256, "optimizer.lr": 0.1, "epochs": 400, "optimizer.weight_decay": 4e-5}),
        ("imagenet-senet154", {"batch_size": 2048, "optimizer.lr": 1.0, "dropout": 0.2}),
        ("cifar-preact", {"iterations": 64000, "batch_size": 128, "optimizer.weight_decay": 1e-4, "schedule.milestones": [32000, 48000], "schedule.warmup": 400, "schedule.warmup_lr": 0.01}),
        ("cifar-wrn", {"epochs": 200, "optimizer.nesterov": True, "optimizer.weight_decay": 5e-4, "schedule.decay_rate": 0.2, "schedule.milestones": [60, 120, 160]}),
        ("cifar10-shake-shake", {"epochs": 1800, "optimizer.lr": 0.2, "optimizer.weight_decay": 1e-4, "schedule.name": "cosine", "schedule.unit": "iteration"}),
        ("cifar100-shake-even", {"epochs": 1800, "batch_size": 32, "optimizer.lr": 0.025, "optimizer.weight_decay": 5e-4}),
    ],
)  # fmt: skip
def test_a_published_recipe_has_the_published_values(name, settings):
    train = load_experiment("classification", name).config.train
    for key, value in settings.items():
        assert attrgetter(key)(train) == value, key


def test_ablations_have_no_bias_in_the_excitation_and_hold_images_out():
    config = load_experiment("classification", "imagenet-ablation").config
    assert config.backbone.options == {"se_bias": False}
    assert config.data.holdout > 0


@pytest.mark.parametrize(
    ("name", "side"), [("cifar10-shake-shake", 16), ("cifar100-shake-even", 8)]
)
def test_cutout_has_the_published_side(name, side):
    assert load_experiment("classification", name).config.augment.cutout == side
