"""Experiments: typed, frozen, refused when unknown, equal exactly when the result must be equal."""

import itertools
import os
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from tools import sample_data
from tools.experiments.experiment import describe_recipe, list_recipes, load_experiment
from tools.experiments.run import prepare_directory
from tools.experiments.tasks import TASKS


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        textwrap.dedent(
            """
            backbone: {name: se_resnet50, options: {reduction: 8, stride_in_1x1: false}}
            data: {name: imagenet}
            train: {epochs: 3}
            """
        )
    )
    return str(path)


def _load(recipe, *overrides, action="train", imports=(), settings=None, **named):
    """An experiment; ``named`` are settings that options of the command line stand for."""
    groups = {"data_root": ("data", "root")}
    given = dict(settings or {})
    for key, value in named.items():
        group, name = groups.get(key, ("backbone", "name" if key == "backbone" else key))
        if key == "seed":
            given["seed"] = value
        else:
            value = str(value) if isinstance(value, Path) else value
            given[group] = {**given.get(group, {}), name: value}
    return load_experiment(
        "classification", recipe, overrides, settings=given, action=action, imports=imports
    )


def test_overrides_come_after_arguments_and_arguments_after_the_recipe(recipe):
    assert _load(recipe).config.train.epochs == 3
    assert _load(recipe, settings={"train": {"epochs": 4}}).config.train.epochs == 4
    config = _load(
        recipe, "train.epochs=5", "seed=2", settings={"train": {"epochs": 4}}, seed=1
    ).config
    assert (config.train.epochs, config.seed) == (5, 2)
    with pytest.raises(AttributeError):
        config.seed = 3


def test_a_plain_twin_drops_the_attention_options_of_the_recipe(recipe):
    assert _load(recipe, backbone="resnet50").config.backbone.options == {"stride_in_1x1": False}
    assert _load(recipe, backbone="se_resnet50").config.backbone.options["reduction"] == 8


def test_options_join_those_of_the_recipe_however_they_are_given(recipe):
    joined = {"reduction": 4, "stride_in_1x1": False}
    for given in (
        _load(recipe, backbone="se_resnet50", options={"reduction": 4}),
        _load(recipe, options={"reduction": 4}),
        _load(recipe, "backbone.options.reduction=4"),
        _load(recipe, settings={"backbone": {"options": {"reduction": 4}}}),
    ):
        assert given.config.backbone.options == joined


@pytest.fixture
def trap(tmp_path):
    """A Python file that leaves a trace when it is run, and the trace."""
    trace = tmp_path / "ran"
    path = tmp_path / "trap.py"
    path.write_text(f"open({str(trace)!r}, 'w').close()\n")
    return path, trace


def test_python_files_that_settings_name_are_not_run_unless_a_person_names_one(
    recipe, trap, tmp_path, sebench
):
    path, trace = trap
    data = sample_data.make_cifar10(tmp_path / "cifar", 10, 2)
    run = tmp_path / "run"
    prepare_directory(_load(recipe), run)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings["config"]["backbone"]["imports"] = [str(path)]
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    (run / "weights.safetensors").touch()
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"backbone": {"name": "resnet20", "imports": [str(path)]}}))
    study = tmp_path / "study.yaml"
    entry = {"task": "classification", "recipe": "cifar-short", "backbones": ["resnet20"]}
    for change in ({"imports": [str(path)]}, {}):
        inside = {} if change else {"settings": {"backbone": {"imports": [str(path)]}}}
        study.write_text(yaml.safe_dump({**change, "experiments": [{**entry, **inside}]}))
        for more in ([], ["--dry-run"]):
            code, _, err = sebench("run", study, "-o", tmp_path / "out", *more)
            assert (code, trace.exists()) == (1, False)
            assert f"pass --import {path}" in err
    for more in ([], ["--dry-run"]):
        for command in (
            ["evaluate", "classification", "-w", run / "weights.safetensors"],
            ["train", "classification", "-r", mine, "--data-root", data],
        ):
            code, _, err = sebench(*command, *more)
            assert (code, trace.exists()) == (1, False)
            assert f"pass --import {path}" in err
    assert _load(str(mine), imports=[path]).config.backbone.imports == [str(path)]
    assert trace.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean train.epochs"),
        ("train.lr=3", "did you mean train.optimizer.lr"),
        ("nonsense=3", "unknown key 'nonsense'; there are backbone, data,"),
        ("train.epochs=many", "train.epochs='many': expected a whole number"),
        ("train.epochs=1.5", "train.epochs=1.5: expected a whole number"),
        ("train.epochs.x=3", "train.epochs={'x': 3}: expected a whole number"),
        ("train=3", "'train' is a group of settings; set train.epochs"),
        ("seed=null", "seed=None: expected a whole number"),
        ("data.mean=3", "data.mean=3: expected a list"),
        ("data.name=imagnet", "did you mean 'imagenet'"),
        ("backbone.name=se_resnet5", "unknown backbone 'se_resnet5'; did you mean"),
        ("train.epochs", "write an override as key=value"),
        ("train.epochs=[1,", "not readable as YAML"),
    ],
)
def test_a_bad_override_is_refused_with_its_full_name(recipe, override, message):
    with pytest.raises(ValueError, match=message) as error:
        _load(recipe, override)
    assert "\n" not in str(error.value)


def test_unknown_names_get_near_matches(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'detecton'; did you mean detection"):
        load_experiment("detecton", "tiny")
    with pytest.raises(ValueError, match="unknown detection recipe 'tny'; did you mean tiny"):
        load_experiment("detection", "tny")
    with pytest.raises(ValueError, match="it is one of detection"):
        load_experiment("classification", "tiny")
    with pytest.raises(ValueError, match="no such file"):
        load_experiment("classification", str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [1,")
    with pytest.raises(ValueError, match=r"broken\.yaml: not readable as YAML"):
        load_experiment("classification", str(broken))


@pytest.mark.parametrize(
    "change", ["device=cpu", "data.workers=0", "data.root=/elsewhere", "train.log_every=7"]
)
def test_what_cannot_change_the_result_does_not_change_the_hash(recipe, change):
    assert _load(recipe, change).hash == _load(recipe).hash


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "train.epochs=4",
        "backbone.options.reduction=16",
        "data.mean=[1,2,3]",
        "data.skip_bad_images=1",
    ],
)
def test_what_can_change_the_result_changes_the_hash(recipe, change):
    assert _load(recipe, change).hash != _load(recipe).hash


def test_twins_and_seeds_share_their_condition_and_nothing_else_does(recipe):
    condition = _load(recipe).comparison_hash
    assert _load(recipe, backbone="resnet50", seed=3).comparison_hash == condition
    assert _load(recipe, "train.epochs=4").comparison_hash != condition
    assert _load(recipe, action="evaluate").comparison_hash != condition


def test_equal_settings_are_the_same_experiment_whatever_the_recipe_is_called(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(Path(recipe).read_text().replace("epochs: 3", "epochs: 9"))
    assert _load(str(other), "train.epochs=3").hash == _load(recipe).hash


def test_weights_count_by_content_and_made_data_differ_from_real_ones(recipe, tmp_path):
    one, two, three = (tmp_path / name for name in ("1.pth", "2.pth", "3.pth"))
    one.write_bytes(b"a")
    two.write_bytes(b"a")
    three.write_bytes(b"b")
    assert _load(recipe, weights=one).hash == _load(recipe, weights=two).hash
    assert _load(recipe, weights=one).hash != _load(recipe, weights=three).hash
    made = sample_data.make_cifar10(tmp_path / "made", 1, 1)
    assert _load(recipe, data_root=made).hash != _load(recipe, data_root=tmp_path).hash


def test_evaluation_does_not_depend_on_how_one_would_train(recipe):
    first = _load(recipe, action="evaluate")
    assert first.hash == _load(recipe, "train.epochs=99", action="evaluate").hash
    assert "train" not in first.settings


def test_the_directory_of_another_experiment_is_refused_and_the_difference_named(recipe, tmp_path):
    run = tmp_path / "run"
    prepare_directory(_load(recipe), run)
    prepare_directory(_load(recipe), run)
    with pytest.raises(ValueError, match=r"another experiment.*train.epochs: there 3, here 4"):
        prepare_directory(_load(recipe, "train.epochs=4"), run)
    (run / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="interrupted; go on with --resume"):
        prepare_directory(_load(recipe), run)
    prepare_directory(_load(recipe), run, resume=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds no experiment"):
        prepare_directory(_load(recipe), full)
    with pytest.raises(ValueError, match="nothing to resume"):
        prepare_directory(_load(recipe), tmp_path / "new", resume=True)


def test_a_directory_that_a_kill_left_half_made_is_gone_on_with(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".settings.yaml.1234.partial").write_text("task: cl")
    (run / ".lock").write_text("process 1234 on elsewhere\n")
    prepare_directory(_load(recipe), run)
    assert {path.name for path in run.iterdir()} == {".lock", "settings.yaml"}
    (run / ".checkpoint.pt.1234.partial").touch()
    prepare_directory(_load(recipe), run)
    assert {path.name for path in run.iterdir()} == {".lock", "settings.yaml"}


def test_a_settings_file_follows_the_umask(recipe, tmp_path):
    before = os.umask(0o027)
    try:
        prepare_directory(_load(recipe), tmp_path / "run")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "settings.yaml").stat().st_mode & 0o777 == 0o640


def test_the_settings_of_a_run_are_a_recipe_that_gives_the_same_experiment(recipe, tmp_path):
    experiment = _load(recipe, "train.label_smoothing=0.2", seed=5)
    prepare_directory(experiment, tmp_path / "run")
    again = _load(str(tmp_path / "run" / "settings.yaml"))
    assert again.hash == experiment.hash
    with pytest.raises(ValueError, match="settings of classification, not of scene"):
        load_experiment("scene", str(tmp_path / "run" / "settings.yaml"))


@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_recipe_loads_and_opens_with_what_it_reproduces(task):
    recipes = list_recipes(task)
    assert recipes
    for name, path in recipes.items():
        assert describe_recipe(path)
        assert yaml.safe_load(path.read_text())
        load_experiment(task, name)


def test_loading_experiments_does_not_import_torch():
    import subprocess

    code = (
        "import sys; from tools.experiments.experiment import load_experiment as load;"
        "load('classification', 'cifar-preact'); load('scene', 'places365-paper');"
        "load('detection', 'tiny'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [*a]\n", "an alias stands inside what it names"),
        ("a: &a [1, 1]\n" + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
        ), "more than 100000 values"),
        ("[" * 5000, "nested too deeply"),
        ("seed: 1\nseed: 2\n", "key 'seed' stands twice"),
        ("seed: !!python/object/apply:os.system [exit]\n", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_yaml_that_grows_runs_code_or_never_ends_is_refused(tmp_path, content, message):
    path = tmp_path / "hostile.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_experiment("classification", str(path))
    assert "hostile.yaml" in str(error.value)


def test_numbers_are_read_as_people_write_them(recipe):
    assert _load(recipe, "train.optimizer.lr=1e-3").config.train.optimizer.lr == 0.001
    assert _load(recipe, "data.root=2017").config.data.root == "2017"
    assert _load(recipe, "data.root=2017-11-25").config.data.root == "2017-11-25"
    assert _load(recipe, "data.size=256").config.data.size == "256"


def test_a_wrong_value_of_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: many}")
    with pytest.raises(ValueError, match=r"mine\.yaml: train\.epochs='many'"):
        load_experiment("classification", str(path))


def test_files_that_an_evaluation_names_count_by_their_content(recipe, tmp_path):
    for name, text in (("1", "a"), ("2", "a"), ("3", "b")):
        (tmp_path / name).write_text(text)

    def found(key, name):
        value = f"[{tmp_path / name}]" if key == "ensemble" else tmp_path / name
        return _load(recipe, f"evaluate.{key}={value}", action="evaluate").hash

    for key in ("images", "ensemble"):
        assert found(key, "1") == found(key, "2")
        assert found(key, "1") != found(key, "3")


def test_settings_of_a_run_without_settings_are_refused(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("{experiment: abc, task: classification, config: 3}")
    with pytest.raises(ValueError, match="its 'config' holds no settings"):
        load_experiment("classification", str(path))
