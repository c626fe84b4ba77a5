"""Every shipped recipe is whole, and the paper's say what the paper says."""

import re
from importlib import resources
from operator import attrgetter

import pytest

from backbones import describe_backbone
from classification.protocols import PROTOCOLS
from tools.experiments.experiment import list_recipes, load_experiment

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
        ("cifar100-preact", {"iterations": 64000, "batch_size": 128, "schedule.milestones": [32000, 48000]}),
        ("cifar100-wrn", {"epochs": 200, "optimizer.weight_decay": 5e-4, "schedule.milestones": [60, 120, 160]}),
        ("imagenet-paper-299", {"batch_size": 1024, "dropout": 0.2}),
        ("imagenet-paper-vgg", {"batch_size": 1024, "optimizer.lr": 0.6, "dropout": 0.5}),
        ("cifar10-shake-shake", {"epochs": 1800, "optimizer.lr": 0.2, "optimizer.weight_decay": 1e-4, "schedule.name": "cosine", "schedule.unit": "iteration"}),
        ("cifar100-shake-even", {"epochs": 1800, "batch_size": 32, "optimizer.lr": 0.025, "optimizer.weight_decay": 5e-4}),
    ],
)  # fmt: skip
def test_a_published_recipe_has_the_published_values(name, settings):
    train = load_experiment("classification", name).config.train
    for key, value in settings.items():
        assert attrgetter(key)(train) == value, key


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipe_says_what_it_costs_in_a_line_of_fixed_form(task, name):
    line = (resources.files(task) / "recipes" / f"{name}.yaml").read_text().splitlines()[1]
    found = re.fullmatch(r"# Images: ([\d,]+); epochs: (\d+); published: (none|\d.*)", line)
    assert found, line
    train = load_experiment(task, name).config.train
    images, epochs = int(found[1].replace(",", "")), int(found[2])
    row = f"| `{name}` | {found[1]} | {found[2]} | {found[3]} |"
    assert row in (resources.files(task) / "README.md").read_text()
    steps = images // train.batch_size
    assert epochs == round((train.iterations or train.epochs * steps) / steps)


@pytest.mark.parametrize("name", ["cifar100-preact", "cifar100-wrn", "cifar100-shake-even"])
def test_recipes_of_cifar100_normalise_by_its_own_mean(name):
    data = load_experiment("classification", name).config.data
    assert (data.name, data.mean, data.std) == (
        "cifar100",
        [129.3, 124.1, 112.4],
        [68.2, 65.4, 70.4],
    )


@pytest.mark.parametrize("task", ["classification", "scene"])
def test_recipes_cite_sections_of_the_fourth_version(task):
    for path in list_recipes(task).values():
        cited = re.findall(r"1709\.01507v4, section ([\d.]+\d|\d)", path.read_text())
        assert set(cited) <= {"5.1", "5.2", "6"}, path


def test_ablations_have_no_bias_in_the_excitation_and_hold_images_out():
    config = load_experiment("classification", "imagenet-ablation").config
    assert config.backbone.options == {"se_bias": False}
    assert config.data.holdout > 0


@pytest.mark.parametrize(
    ("name", "side"), [("cifar10-shake-shake", 16), ("cifar100-shake-even", 8)]
)
def test_cutout_has_the_published_side(name, side):
    assert load_experiment("classification", name).config.augment.cutout == side
