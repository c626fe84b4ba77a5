"""The command line: quick, one clear line for what goes wrong, numbers on stdout."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tools import cli, sample_data
from tools.cli import arguments as cli_arguments
from tools.cli import listing


def test_help_and_lists_do_not_import_torch():
    lines = ("--help", "train --help", "list recipes", "list protocols", "list settings")
    for line, (code, large, _) in zip(lines, in_one_process(*lines)[0], strict=True):
        assert (line, code, "torch" in large) == (line, 0, False)


def in_one_process(*lines, **environment):
    """Run command lines: exit code, large packages, processor seconds after each; and the process."""
    code = (
        "import json, sys, time; from tools import cli\n"
        "began, told = 0.0, []\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['sebench', *line.split()]\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as end:\n"
        "        large = {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "        now = time.process_time()\n"
        "        told.append((end.code or 0, sorted(large), now - began)); began = now\n"
        "print(); print(json.dumps(told))\n"
    )
    command = [sys.executable, "-c", code, *lines]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done


def test_backbones_are_listed_with_twins_and_costs(sebench):
    code, out, _ = sebench("list", "backbones", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["se_resnet50"]["twin"] == "resnet50"
    assert rows["resnet50"]["parameters"] == 25_557_032
    code, out, _ = sebench("list", "backbones")
    assert "28,088,024" in out


@pytest.mark.parametrize("what", ["recipes", "datasets", "attentions", "protocols", "settings"])
def test_every_list_comes_as_a_table_and_as_json(sebench, what):
    code, out, _ = sebench("list", what)
    assert code == 0
    rows = json.loads(sebench("list", what, "--json")[1])
    assert rows
    assert all(row["name"] in out for row in rows)


def test_every_protocol_is_listed_with_its_views_and_source(sebench):
    from classification.protocols import PROTOCOLS

    rows = {row["name"]: row for row in json.loads(sebench("list", "protocols", "--json")[1])}
    assert set(rows) == set(PROTOCOLS)
    assert rows["imagenet-256-224-ten-crop"]["views"] == 10
    assert all(row["source"] for row in rows.values())


def test_every_setting_is_listed_with_type_default_unit_and_meaning(sebench):
    rows = json.loads(sebench("list", "settings", "detection", "--json")[1])
    assert {row["task"] for row in rows} == {"detection"}
    assert all(row["type"] and row["meaning"] for row in rows)
    found = next(row for row in rows if row["name"] == "detector.norm")
    assert (found["default"], found["type"]) == ("FrozenBN", "FrozenBN | BN | SyncBN | GN")
    every = json.loads(sebench("list", "settings", "--json")[1])
    assert {row["task"] for row in every} == {"classification", "scene", "detection"}
    for arguments, said in (
        (("settings", "detektion"), "did you mean detection"),
        (("recipes", "detection"), "only settings are listed by task"),
    ):
        code, _, err = sebench("list", *arguments)
        assert code == 1
        assert said in err


def test_a_recipe_is_listed_with_its_cost(tmp_path):
    from tools.experiments.experiment import recipe_cost

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "# What it reproduces\n# Images: 50,000; epochs: 200; published: 4.27 % (WRN)\n"
    )
    assert recipe_cost(recipe) == {"images": 50_000, "epochs": 200, "published": "4.27 % (WRN)"}
    recipe.write_text("# What it reproduces\nseed: 3\n")
    assert recipe_cost(recipe) == {"images": None, "epochs": None, "published": None}


def test_every_data_set_of_the_settings_is_listed():
    from classification.config import DATASETS
    from detection.config import DATASETS as COCO
    from tools.cli.listing import DATASETS as LISTED

    assert set(LISTED) == {*DATASETS, *COCO}


def test_a_network_of_ones_own_is_listed(sebench, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from backbones import register_backbone, build_backbone\n"
        "register_backbone('cli_test_net', lambda **o: build_backbone('resnet20', **o),"
        " family='mine', input_size=32)\n"
    )
    code, out, err = sebench("list", "backbones", "--import", mine, "--json")
    assert code == 0, err
    assert json.loads(out)[-1]["name"] == "cli_test_net"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "bakbones"], "unknown list 'bakbones'; did you mean backbones?"),
        (["train", "clasification"], "unknown task 'clasification'; did you mean classification?"),
        (["train", "scene"], "--recipe is missing: choose from places365"),
        (["train", "classification", "-r", "cifar-sort"], "did you mean cifar-short"),
        (["train", "classification", "-r", "cifar-short", "-b", "resnet2"], "did you mean resnet2"),
        (["train", "classification", "-r", "cifar-short", "train.epoch=1"], "train.epochs"),
        (["train", "classification", "-r", "cifar-short", "--data", "cifr10"], "'cifar10'"),
        (["train", "classification", "-r", "cifar-short", "--import", "no.py"], "no such file"),
        (["evaluate", "classification", "-r", "cifar-short"], "--weights is missing"),
        (["evaluate", "scene", "--results", "x.json"], "--results is for detection"),
        (["evaluate", "detection", "--results", "x.json"], "--annotations is missing"),
        (["run", "none.yaml", "-o", "out"], "unknown study 'none.yaml'"),
        (["report", "none", "-o", "out"], "no such file or folder: none"),
        (["data", "sample", "x", "--only", "mnist"], "unknown sample data 'mnist'"),
    ],
)
def test_a_wrong_argument_is_one_line_and_a_failure(
    sebench, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = sebench(*arguments)
    assert code == 1
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_mistyped_commands_and_options_get_near_matches(sebench):
    code, _, err = sebench("trian")
    assert code == 2
    assert "train" in err
    code, _, err = sebench("train", "scene", "--recpe", "x")
    assert code == 2
    assert "--recipe" in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "classification", "--epochs", "3"], "written train.epochs=VALUE"),
        (["evaluate", "scene", "--batch-size", "3"], "evaluate.batch_size=VALUE"),
        (["train", "detection", "--lr=0.1"], "written train.lr=VALUE"),
        (["report", "--epochs", "3"], "no such option: --epochs (sebench report --help)"),
    ],
)
def test_an_option_that_is_a_setting_gets_the_way_to_write_it(sebench, arguments, hint):
    code, _, err = sebench(*arguments)
    assert code == 2
    assert hint in err
    assert len(err.splitlines()) == 1


def test_simple_mistakes_are_told_before_anything_large_is_imported():
    lines = (
        "--help",
        "trian",
        "train clasification",
        "train classification --epochs 3",
        "train classification -r cifar-short train.epoch=3",
        "train classification -r none.yaml",
        "train classification -r cifar-short --weights none.pth",
        "evaluate classification -r cifar-short -w none.pth",
        "evaluate detection --results none.json --annotations none.json",
        "weights inspect none.pth",
        "weights convert none.pth out.pth --to timm",
        "report none -o out",
        "run none.yaml -o out",
    )
    for line, (code, large, seconds) in zip(lines, in_one_process(*lines)[0], strict=True):
        assert (line, bool(code), large) == (line, line != "--help", [])
        assert seconds < 1.0, line  # the first 0.35 s, with room for a busy machine


def test_a_terminal_without_unicode_is_served_whole():
    lines = ("--help", "train --help", "list recipes")
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    told, done = in_one_process(*lines, **ascii_only)
    assert [code for code, *_ in told] == [0, 0, 0]
    assert done.stdout.isascii()
    assert not done.stderr
    assert b"?" * 3 not in done.stdout


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/w"), "run/w: No space left on dev"),
        (RuntimeError("PytorchStreamWriter failed: file write failed"), "the disk is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "data.workers"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "lower the batch size"),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), "/r: Permission denied"),
        (ValueError("bad \x1b[31mname\x07"), r"bad \x1b[31mname\x07"),
        (ValueError("x" * 100_000), "x ..."),
    ],
)
def test_what_the_machine_lacks_is_no_bug_and_messages_are_clean(
    monkeypatch, sebench, error, message
):
    def fail():
        raise error

    monkeypatch.setitem(listing.LISTS, "datasets", fail)
    code, _, err = sebench("list", "datasets")
    assert code == 1
    assert message in err
    assert "bug" not in err
    assert len(err) < 2100


def test_scoring_a_file_refuses_what_it_would_not_use(sebench, tmp_path):
    arguments = ["evaluate", "detection", "--results", "x.json", "--annotations", "y.json"]
    for more in (["-o", "out"], ["-r", "tiny"], ["train.lr=3"], ["--dry-run"]):
        code, _, err = sebench(*arguments, *more)
        assert code == 1
        assert "--results scores a file as it is" in err


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch):
    for arguments in (["--debug", "list", "x"], ["list", "x", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["sebench", *arguments])
        with pytest.raises(ValueError, match="unknown list"):
            cli.main()


def test_a_fault_of_ours_says_so(monkeypatch, sebench):
    monkeypatch.setitem(listing.LISTS, "datasets", lambda: {}["oops"])
    code, _, err = sebench("list", "datasets")
    assert code == 1
    assert "KeyError: 'oops' (this is a bug in sebench; --debug prints the traceback)" in err


def test_names_are_completed():
    assert "se_resnet50" in cli_arguments.complete_backbones("se_resnet5")
    assert cli_arguments.complete_tasks("d") == ["detection"]
    assert cli_arguments.complete_datasets("cifar") == ["cifar10", "cifar100"]

    class Context:
        params = {"task": "detection"}  # noqa: RUF012

    assert cli_arguments.complete_recipes(Context(), "t") == ["tiny"]


def test_only_the_first_process_speaks(monkeypatch, sebench):
    monkeypatch.setattr(cli_arguments, "first_process", False)
    assert sebench("list", "x") == (1, "", "")


def test_sample_data_are_made_and_named(sebench, tmp_path):
    code, out, _ = sebench("data", "sample", tmp_path / "d", "--only", "coco")
    assert code == 0
    assert out.strip() == str(tmp_path / "d" / "coco")
    assert (tmp_path / "d" / "coco" / "annotations").is_dir()


def test_a_dry_run_checks_everything_and_writes_nothing(sebench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = sample_data.make_cifar10(tmp_path / "cifar", train_per_class=20, test_per_class=2)
    arguments = ["train", "classification", "-r", "cifar-short", "--data-root", root, "--dry-run"]
    code, out, err = sebench(*arguments, "train.batch_size=20", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["dataset"]["images"] == 20
    assert found["dataset"]["synthetic"] is True
    assert found["steps"] == 30 * 10
    assert [path.name for path in tmp_path.iterdir()] == ["cifar"]
    code, _, err = sebench(*arguments[:-3], "--data-root", tmp_path / "none", "--dry-run")
    assert code == 1
    assert str(tmp_path / "none") in err


def test_a_results_file_is_scored_as_json_and_as_a_table(sebench, tmp_path):
    root = sample_data.make_coco(tmp_path / "c", train=1, val=3)
    annotations = root / "annotations" / "instances_val2017.json"
    truth = json.loads(annotations.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    rows = [{**{key: row[key] for key in keys}, "score": 0.9} for row in truth]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    arguments = ["evaluate", "detection", "--results", results, "--annotations", annotations]
    for evaluator in ("hotcoco", "pycocotools"):
        code, out, err = sebench(*arguments, "--json", "--evaluator", evaluator)
        assert code == 0, err
        assert json.loads(out)["metrics"]["AP"] == pytest.approx(100.0)
    code, out, err = sebench(*arguments)
    assert code == 0, err
    assert "100.00 %" in out


@pytest.fixture
def loose_weights(tmp_path):
    """Files of a plain network and its twin, with nothing beside them."""
    from backbones import BackboneSettings, InputFormat, build_network, save_weights

    found = []
    for name in ("resnet20", "se_resnet20"):
        path = tmp_path / f"{name}.safetensors"
        settings = BackboneSettings(name)
        save_weights(
            build_network(name, 10), path, backbone=settings, num_classes=10,
            input_format=InputFormat(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7)),
        )  # fmt: skip
        found.append(path)
    return found


def test_loose_weights_of_different_networks_are_evaluated_in_one_pass(
    sebench, tmp_path, loose_weights
):
    data = sample_data.make_cifar10(tmp_path / "cifar", 2, 4)
    files = [part for path in loose_weights for part in ("-w", path)]
    arguments = ["evaluate", "classification", "-r", "cifar-short", *files, "--data-root", data]
    code, out, err = sebench(*arguments, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    records = json.loads(out)
    assert [record["backbone"]["name"] for record in records] == ["resnet20", "se_resnet20"]
    assert {record["timing"]["networks_in_pass"] for record in records} == {2}
    code, _, err = sebench(*arguments, "-b", "resnet20", "-b", "resnet20", "--dry-run")
    assert code == 1
    assert "holds a se_resnet20" in err


def test_weights_of_a_network_of_ones_own_are_inspected(sebench, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from backbones import register_backbone, build_backbone\n"
        "register_backbone('inspected_net', lambda **o: build_backbone('resnet20', **o),"
        " family='mine', input_size=32)\n"
    )
    make = (
        "from backbones import *\n"
        f"load_user_module({str(mine)!r})\n"
        "save_weights(build_network('inspected_net', 10), 'w.safetensors', num_classes=10,"
        " backbone=BackboneSettings('inspected_net'), input_format=InputFormat())\n"
    )
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True, timeout=60)
    code, out, err = sebench("weights", "inspect", tmp_path / "w.safetensors", "--import", mine)
    assert code == 0, err
    assert "inspected_net" in out


def test_a_closed_terminal_stops_a_command_unless_nohup_says_otherwise():
    code = (
        "import os, signal, sys, time\n"
        "from tools.cli import signals as e\n"
        "handler = signal.SIG_IGN if sys.argv[1] == 'nohup' else signal.SIG_DFL\n"
        "signal.signal(signal.SIGHUP, handler)\n"
        "with e.stop_hint(lambda: 'go on'):\n"
        "    os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.2); print('went on')\n"
    )
    for mode, said in (("nohup", "went on\n"), ("plain", "")):
        command = [sys.executable, "-c", code, mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == said
        assert ("stopped; go on" in done.stderr) == (mode == "plain")


def test_a_message_that_is_cut_keeps_what_is_wrong_with_a_name(sebench):
    code, _, err = sebench(
        "train", "scene", "-r", "places365-short", f"evaluate.images={'x' * 9000}"
    )
    assert code == 1
    assert len(err) < 2100
    assert err.rstrip().endswith("File name too long")
