"""Studies: twins join by themselves, what is recorded is skipped, a failure stops nothing else."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from backbones import files, heartbeat
from tools import cli
from tools.experiments import cells as scheduler
from tools.experiments import study
from tools.experiments.study import load_study, plan

DEMO = Path(study.__file__).parent / "studies" / "demo.yaml"


def _write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def _study(tmp_path: Path, *entries: dict, **study: object) -> Path:
    base = {"task": "classification", "recipe": "cifar-short", "backbones": ["se_resnet20"]}
    experiments = [{**base, **entry} for entry in entries or ({},)]
    return _write(tmp_path / "study.yaml", {**study, "experiments": experiments})


def _networks(cells) -> list[tuple[str, dict, int]]:
    backbones = [(cell.experiment.config.backbone, cell.experiment.config.seed) for cell in cells]
    return [(backbone.name, backbone.options, seed) for backbone, seed in backbones]


def test_the_plain_twin_of_an_se_network_joins_for_every_seed(tmp_path):
    cells = plan(load_study(_study(tmp_path, seeds=[0, 1])), tmp_path / "out")
    assert _networks(cells) == [
        ("resnet20", {}, 0),
        ("resnet20", {}, 1),
        ("se_resnet20", {}, 0),
        ("se_resnet20", {}, 1),
    ]
    assert len({cell.experiment.comparison_hash for cell in cells}) == 1
    alone = plan(load_study(_study(tmp_path, twins=False)), tmp_path / "out")
    assert [name for name, _, _ in _networks(alone)] == ["se_resnet20"]


def test_variants_of_one_network_share_their_twin(tmp_path):
    variants = [{"name": "se_resnet20", "options": {"reduction": r}} for r in (4, 8)]
    cells = plan(load_study(_study(tmp_path, {"backbones": variants})), tmp_path / "out")
    assert [cell.directory.name for cell in cells] == [
        "resnet20-seed0",
        "se_resnet20-reduction=4-seed0",
        "se_resnet20-reduction=8-seed0",
    ]
    assert len({cell.experiment.hash for cell in cells}) == 3


def test_a_declared_twin_joins_and_is_what_the_record_pairs_with(tmp_path):
    entry = {"backbones": [{"name": "timm:skresnet18", "twin": "timm:resnet18"}]}
    cells = plan(load_study(_study(tmp_path, entry)), tmp_path / "out")
    assert _networks(cells) == [("timm:resnet18", {}, 0), ("timm:skresnet18", {}, 0)]
    assert cells[1].experiment.config.backbone.twin == "timm:resnet18"
    entry["backbones"][0] = {
        "name": "se_resnet50", "twin": {"name": "resnet50", "options": {"stride_in_1x1": True}}
    }  # fmt: skip
    cells = plan(load_study(_study(tmp_path, entry)), tmp_path / "out")
    assert _networks(cells)[0] == ("resnet50", {"stride_in_1x1": True}, 0)
    assert cells[1].experiment.config.backbone.twin_options == {"stride_in_1x1": True}
    entry["backbones"][0] = {"name": "timm:skresnet18", "twin": "timm:resnet1O"}
    with pytest.raises(ValueError, match="did you mean timm:resnet1"):
        plan(load_study(_study(tmp_path, entry)), tmp_path / "out")


def test_a_network_starts_from_the_weights_of_its_own_cell(tmp_path):
    study = load_study(
        _study(tmp_path, {"name": "first"}, {"name": "second", "weights_from": "first"})
    )
    cells = {cell.label: cell for cell in plan(study, tmp_path / "out")}
    for network in ("resnet20-seed0", "se_resnet20-seed0"):
        weights = cells[f"second · {network}"].experiment.config.backbone.weights
        assert weights == str(cells[f"first · {network}"].directory / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "clasification"}, "unknown task 'clasification'; did you mean classification"),
        ({"recipe": "cifar"}, "unknown classification recipe"),
        ({"backbones": ["se_resnet21"]}, "unknown backbone 'se_resnet21'"),
        ({"backbones": [{"nme": "x"}]}, "give a name"),
        ({"backbones": "se_resnet20"}, "backbones='se_resnet20': expected a list"),
        ({"sample": "cifar10"}, "unknown sample 'cifar10'"),
        ({"weights_from": "other"}, "unknown weights_from 'other'"),
        ({"name": "../elsewhere"}, "name='../elsewhere': it names a folder"),
        ({"name": "logs"}, "not data, logs or report"),
        ({"name": "/tmp"}, "name='/tmp'"),
        ({"backbones": [{"name": "se_resnet20", "twin": {"nme": "x"}}]}, "give a name, or a name"),
        ({"backbones": [{"name": "se_resnet20", "options": 3}]}, "give a name, or name, options"),
        ({"backbones": [{"name": "resnet20", "weights": f"{x}/w.pth"} for x in "ab"]}, "share the"),
        ({"settings": {"train": {"epoch": 3}}}, "unknown key 'train.epoch' in settings"),
        ({"seed": [1]}, "unknown key 'seed' in .*experiment 1; did you mean seeds"),
        ({"seeds": ["one"]}, "seeds='one': expected a whole number"),
        ({"backbones": ["se_resmet*"]}, "unknown backbone pattern 'se_resmet\\*'; did you mean"),
        ({"backbones": ["timm:se*"]}, "a pattern stands for networks of"),
        ({"needs": {"gpu": 1}}, "unknown key 'gpu' in cifar-short: needs; did you mean gpus"),
        ({"needs": {"gpus": -1}}, "gpus=-1: must be at least 0"),
        ({"recipe": []}, r"recipe=\[\]: give a name, or a list"),
        ({"variants": {"a": 3}}, "variants.a=3: give settings"),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_runs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plan(load_study(_study(tmp_path, change)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"exclude": ["cifar-shrt/*"]},
            "exclude: 'cifar-shrt/.*' matches no cell.*did you mean cifar-short",
        ),
        ({"exclude": ["*"]}, "include and exclude leave no cell"),
        (
            {"overrides": {"x": {}}},
            "overrides: 'x' matches no cell; they are called cifar-short/resnet20-seed0 and",
        ),
        ({"overrides": {"*": {"seeds": 1}}}, "resnet20-seed0: unknown key 'seeds'"),
        ({"needs": {"cores": 0}}, "cores=0: must be at least 1"),
    ],
)
def test_wrong_patterns_of_a_study_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plan(load_study(_study(tmp_path, **change)), tmp_path / "out")


def test_a_cell_whose_weights_are_left_out_is_refused(tmp_path, sebench):
    entries = ({"name": "first"}, {"name": "second", "weights_from": "first"})
    with pytest.raises(
        ValueError, match=r"second/resnet20-seed0 starts from .*first/resnet20-seed0"
    ):
        plan(load_study(_study(tmp_path, *entries, exclude=["first/*"])), tmp_path / "out")
    study = _study(tmp_path, *entries)
    _, _, err = sebench("run", study, "-o", tmp_path / "out", "--only", "second/*", "--dry-run")
    assert "first/resnet20-seed0, which is not recorded; choose that too: --only" in err
    _, out, _ = sebench("run", study, "-o", tmp_path / "out", "--only", "first/*", "--dry-run")
    assert "2 runs, 2 to run" in out
    _, _, err = sebench("run", study, "-o", tmp_path / "out", "--only", "frist/*", "--dry-run")
    assert "--only: 'frist/*' matches no cell" in err
    assert "did you mean first" in err


def test_a_file_that_is_no_suite_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="lacks 'experiments'"):
        load_study(_write(tmp_path / "x.yaml", {"seeds": [1]}))
    with pytest.raises(ValueError, match="experiment 1: lacks 'recipe'"):
        load_study(_write(tmp_path / "x.yaml", {"experiments": [{"task": "scene"}]}))
    with pytest.raises(ValueError, match=r"did you mean .*x.yaml"):
        load_study(tmp_path / "xx.yaml")
    with pytest.raises(ValueError, match="two experiments are called"):
        plan(load_study(_study(tmp_path, {}, {})), tmp_path / "out")


def test_every_shipped_suite_can_be_planned(tmp_path):
    for path in DEMO.parent.glob("*.yaml"):
        assert plan(load_study(path), tmp_path)


def test_the_demo_covers_four_benchmarks_with_twins(tmp_path):
    cells = plan(load_study(DEMO), tmp_path)
    data = {(cell.experiment.task, cell.experiment.config.data.name) for cell in cells}
    assert data == {
        ("classification", "cifar10"),
        ("classification", "imagenet"),
        ("scene", "places365"),
        ("detection", "coco_2017"),
    }
    assert len(cells) == 8


def test_patterns_recipes_and_variants_span_the_matrix(tmp_path):
    entry = {
        "name": "short",
        "recipe": ["cifar-short", "cifar-preact"],
        "backbones": ["se_resnet2*", "se_resnet20"],
        "variants": {"small": {"train": {"batch_size": 32}}, "large": {}},
    }
    cells = plan(load_study(_study(tmp_path, entry)), tmp_path / "out")
    folders = [f"short-{r}-{v}" for r in entry["recipe"] for v in ("large", "small")]
    assert list(dict.fromkeys(cell.entry for cell in cells)) == folders
    assert [cell.number for cell in cells] == list(range(len(cells)))
    small = [cell for cell in cells if cell.entry == folders[1]]
    assert {cell.experiment.config.train.batch_size for cell in small} == {32}
    names = [name for name, _, _ in _networks(small)]
    assert names == ["resnet20", "se_resnet20"]  # none twice


def test_cells_are_included_excluded_and_overridden_by_name(tmp_path):
    several = {"backbones": ["se_resnet20", "se_resnet56"], "name": "c"}
    content = {
        "seeds": [0, 1, 2],
        "include": ["c/*resnet20-*"],
        "exclude": ["*-seed1"],
        "overrides": {"c/se_*-seed2": {"train": {"optimizer": {"lr": 0.5}}}},
        "needs": {"cores": 4},
    }
    cells = plan(load_study(_study(tmp_path, several, **content)), tmp_path / "out")
    assert [cell.name for cell in cells] == [
        "c/resnet20-seed0", "c/resnet20-seed2", "c/se_resnet20-seed0", "c/se_resnet20-seed2"
    ]  # fmt: skip
    rates = [cell.experiment.config.train.optimizer.lr for cell in cells]
    assert rates[:3] == [rates[0]] * 3
    assert rates[3] == 0.5
    assert {cell.needs.cores for cell in cells} == {4}


def test_every_seed_may_start_from_the_weights_of_one(tmp_path):
    first, second = {"name": "first", "seeds": [7]}, {"name": "second", "weights_from": "first"}
    entries = (first, second | {"seeds": [0, 1], "weights_seed": 7})
    cells = plan(load_study(_study(tmp_path, *entries)), tmp_path / "out")
    assert {cell.source and cell.source.name for cell in cells if cell.entry == "second"} == {
        "resnet20-seed7", "se_resnet20-seed7"
    }  # fmt: skip


@pytest.fixture(scope="module")
def smallest_demo(tmp_path_factory) -> Path:
    """The demo with a few steps a network, and one entry more that must fail."""
    study = yaml.safe_load(DEMO.read_text())
    study["sample_data"] = {
        "cifar10": {"train_per_class": 10, "test_per_class": 2},
        "imagenet": {"classes": 3, "train_per_class": 8, "val_per_class": 2, "size": 64},
        "places365": {"classes": 3, "train_per_class": 8, "val_per_class": 2, "size": 64},
        "coco": {"train": 6, "val": 4},
    }
    for entry in study["experiments"]:
        train = entry.setdefault("settings", {}).setdefault("train", {})
        if entry["task"] == "detection":
            train.update(iterations=2, batch_size=2, warmup_iterations=0, lr=0.001)
            entry["settings"]["data"] = {"workers": -1}  # the default; the recipe reads by itself
        else:
            train.update(epochs=1, batch_size=50 if entry["name"] == "cifar10" else 8)
            train["schedule"] = {**train.get("schedule", {}), "warmup": 0}
            entry["settings"]["evaluate"] = {"batch_size": 8}
            if entry["recipe"] != "cifar-short":
                entry["settings"]["augment"] = {"size": 32}
                entry["settings"]["evaluate"].update(resize=40, crop=32)
    failing = {"name": "absent", "task": "classification", "recipe": "cifar-short"}
    failing |= {"backbones": ["resnet20"], "data": "folder", "data_root": "/nonexistent"}
    study["experiments"].insert(0, failing)
    return _write(tmp_path_factory.mktemp("demo") / "demo.yaml", study)


@pytest.fixture(scope="module")
def finished(smallest_demo):
    """The smallest demo, run once: (exit code, output folder)."""
    output = smallest_demo.parent / "out"
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["sebench", "run", str(smallest_demo), "-o", str(output)])
    with pytest.raises(SystemExit) as end, patch.context():
        cli.main()
    patch.undo()
    return end.value.code, output


def test_a_failed_run_is_named_and_the_others_are_recorded_and_reported(finished):
    code, output = finished
    assert code == 1
    records = {
        path.parent.name: json.loads(path.read_text()) for path in output.glob("*/*/record.json")
    }
    tasks = sorted(path.parent.parent.name for path in output.glob("*/*/record.json"))
    assert tasks == sorted(["imagenet", "coco", "places365", "cifar10"] * 2)
    assert not (output / "absent" / "resnet20-seed0" / "record.json").exists()
    assert all(record["dataset"]["synthetic"] for record in records.values())
    page = (output / "report" / "report.html").read_text()
    assert "se_resnet_tiny" in page
    detection = json.loads((output / "coco" / "se_resnet_tiny-seed0" / "record.json").read_text())
    source = json.loads((output / "imagenet" / "se_resnet_tiny-seed0" / "record.json").read_text())
    assert detection["weights"]["initial"]["sha256"] == source["weights"]["sha256"]


def test_every_run_directory_holds_what_it_promises(finished):
    _, output = finished
    for record in output.glob("*/*/record.json"):
        names = {path.name for path in record.parent.iterdir()}
        wanted = {"settings.yaml", "log.txt", "curve.jsonl", "weights.safetensors"}
        rows = "detections.json" if record.parent.parent.name == "coco" else "samples.parquet"
        assert wanted | {rows} <= names


def test_twins_differ_in_nothing_but_the_backbone(finished):
    _, output = finished
    for folder in ("imagenet", "coco", "places365", "cifar10"):
        plain, candidate = (
            json.loads(path.read_text()) for path in sorted((output / folder).glob("*/record.json"))
        )
        assert candidate["backbone"]["twin"]["name"] == plain["backbone"]["name"]
        for key in ("dataset", "protocol", "git", "seed", "selection"):
            assert candidate[key] == plain[key]
        assert candidate["experiment"]["comparison_hash"] == plain["experiment"]["comparison_hash"]
        assert candidate["cost"]["parameters"] > plain["cost"]["parameters"]


def test_a_second_run_does_only_what_is_missing(finished, smallest_demo, sebench):
    _, output = finished
    missing = output / "cifar10" / "resnet20-seed0" / "record.json"
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/*/record.json") if p != missing}
    for path in list(missing.parent.iterdir()):
        path.unlink()
    code, _, err = sebench("run", smallest_demo, "-o", output)
    assert code == 1
    assert err.count("there  ") == 7
    assert err.count("done  ") == 1
    assert "failed" in err
    assert "/nonexistent" in err
    assert missing.is_file()
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_dry_run_shows_what_is_there_and_what_is_not(finished, smallest_demo, sebench):
    _, output = finished
    code, out, err = sebench("run", smallest_demo, "-o", output, "--dry-run")
    assert out.count("recorded") == 8
    assert "9 runs, 1 to run" in out
    assert "missing for absent/resnet20" in err
    assert code == 1


def test_a_cell_run_by_its_number_has_the_weights_of_the_scheduler(
    finished, smallest_demo, sebench, tmp_path, monkeypatch
):
    _, output = finished
    told = []
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    monkeypatch.setattr(heartbeat, "write_whole", lambda path, text: told.append(json.loads(text)))
    code, out, _ = sebench("run", smallest_demo, "-o", tmp_path, "--cells")
    cells = {cell["name"]: cell for cell in json.loads(out)}
    name = "cifar10/se_resnet20-seed0"
    assert (code, cells[name]["state"]) == (0, "to come")
    code, out, _ = sebench("run", smallest_demo, "-o", tmp_path, "--cell", cells[name]["number"])
    assert (code, "se_resnet20 on cifar10" in out) == (0, True)
    weights, curve = (
        (tmp_path / name / f, output / name / f) for f in (files.WEIGHTS, files.CURVE)
    )
    assert weights[0].read_bytes() == weights[1].read_bytes()
    losses = [[json.loads(line)["step"] for line in path.open()] for path in curve]
    assert losses[0] == losses[1]
    training = [beat for beat in told if beat["stage"] == "training"]
    assert [beat["step"] for beat in training] == [1, 2]
    assert {beat["total"] for beat in training} == {2}
    assert training[-1]["images_per_second"] > 0
    assert training[-1]["seconds_left"] == 0
    assert told[-1]["stage"] == "evaluating"
    assert told[-1]["step"] == told[-1]["total"] == 20
    # The weights that the detector starts from are not there yet.
    number = cells["coco/se_resnet_tiny-seed0"]["number"]
    code, _, err = sebench("run", smallest_demo, "-o", tmp_path, "--cell", number)
    assert (code, "waits for imagenet/se_resnet_tiny-seed0, cell" in err) == (75, True)
    code, _, err = sebench("run", smallest_demo, "-o", tmp_path, "--cell", 99)
    assert (code, "there are cells 0 to 8" in err) == (1, True)


def test_a_detector_tells_how_far_it_is(finished, sebench, tmp_path, monkeypatch):
    _, output = finished
    told = []
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    monkeypatch.setattr(heartbeat, "write_whole", lambda path, text: told.append(json.loads(text)))
    changes = ("train.iterations=2", "train.batch_size=2", "train.warmup_iterations=0")
    root = ("--data-root", output / "data" / "coco", "-o", tmp_path / "run")
    code, _, err = sebench("train", "detection", "-r", "tiny", "-b", "resnet_tiny", *root, *changes)
    assert code == 0, err
    steps = {s: [b["step"] for b in told if b["stage"] == s] for s in ("training", "evaluating")}
    assert steps == {"training": [1, 2], "evaluating": [1, 2, 3, 4]}


def test_a_cell_whose_process_is_killed_is_started_again(finished, sebench, tmp_path, monkeypatch):
    """Killed once, as the system does where memory is short: the study ends all the same."""
    monkeypatch.setattr(scheduler, "PAUSE", 0.1)
    mark = tmp_path / "killed"
    (tmp_path / "net.py").write_text(
        "import os, pathlib, signal\n"
        "from backbones import build_backbone, register_backbone\n"
        "def build():\n"
        f"    mark = pathlib.Path({str(mark)!r})\n"
        "    if os.getpid() != " + str(os.getpid()) + " and not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return build_backbone('resnet20')\n"
        "register_backbone('mortal', build, family='test', input_size=32)\n"
    )
    _, output = finished
    train = {"epochs": 1, "batch_size": 50, "tensorboard": False, "schedule": {"warmup": 0}}
    entry = {
        "name": "c", "backbones": ["mortal"], "data_root": str(output / "data" / "cifar10"),
        "settings": {"train": train},
    }  # fmt: skip
    arguments = ("-o", tmp_path / "out", "--import", tmp_path / "net.py")
    code, _, err = sebench("run", _study(tmp_path, entry), *arguments)
    assert code == 0, err
    assert mark.exists()
    assert (tmp_path / "out" / "c" / "mortal-seed0" / "record.json").is_file()


def test_status_and_report_of_a_partial_study_name_what_is_missing(finished, sebench):
    _, output = finished
    code, out, _ = sebench("status", output, "--json")
    states = {cell["name"]: cell for cell in json.loads(out)}
    assert code == 0
    assert states.pop("absent/resnet20-seed0")["state"] == "failed"
    assert {cell["state"] for cell in states.values()} == {"done"}
    assert states["coco/se_resnet_tiny-seed0"]["waits_for"] is not None
    _, out, _ = sebench("status", output)
    assert "1 failed, 8 done" in out
    assert "/nonexistent" in out
    page = (output / "report" / "report.md").read_text()
    assert "not complete: 8 of 9 cells are recorded; 1 failed: absent/resnet20-seed0" in page


def test_several_weights_of_one_evaluate_are_recorded_each_for_itself(finished, sebench, tmp_path):
    _, output = finished
    for task, folder in (("scene", "places365"), ("detection", "coco")):
        runs = sorted((output / folder).glob("*/record.json"))
        trained = [json.loads(path.read_text()) for path in runs]
        weights = [part for path in runs for part in ("-w", path.parent / "weights.safetensors")]
        code, out, _ = sebench("evaluate", task, *weights, "-o", tmp_path / folder, "--json")
        assert code == 0
        found = json.loads(out)
        for before, after in zip(trained, found, strict=True):
            assert after["metrics"] == before["metrics"]
            assert after["backbone"] == before["backbone"]
            assert after["weights"]["sha256"] == before["weights"]["sha256"]
        assert len(list((tmp_path / folder).glob("*/record.json"))) == 2


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_killed_leaves_no_process_and_goes_on(tmp_path, blow):
    content = {
        "sample_data": {"imagenet": {"classes": 3, "train_per_class": 40, "size": 64}},
        "experiments": [
            {
                "name": "images",
                "task": "classification",
                "recipe": "imagenet-paper",
                "backbones": ["resnet_tiny"],
                "sample": "imagenet",
                "settings": {
                    "data": {"classes": "folders"},
                    "augment": {"size": 32},
                    "train": {"epochs": 5, "batch_size": 8, "tensorboard": False, "log_every": 1},
                    "evaluate": {"resize": 40, "crop": 32, "every": 0},
                },
            }
        ],
    }
    output = tmp_path / "out"
    mark = f"SEBENCH_TEST={os.getpid()}-{blow}"
    command = [sys.executable, "-m", "tools", "run", _write(tmp_path / "s.yaml", content)]
    command = ["env", mark, *map(str, command), "-o", str(output)]
    curve = output / "images" / "resnet_tiny-seed0" / "curve.jsonl"

    def processes() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(path.parent.name)
        return found

    def wait_for(condition) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: curve.is_file() or first.poll() is not None)
        first.send_signal(blow)
        _, err = first.communicate(timeout=60)
        wait_for(lambda: not processes())
    finally:
        first.kill()
    if blow == signal.SIGTERM:
        assert first.returncode == 143
        assert "go on with the same command" in err
    before = [json.loads(line)["step"] for line in curve.read_text().splitlines()]
    assert before[-1] < 5 * 15
    assert (curve.parent / "checkpoint.pt").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    steps = [json.loads(line) for line in curve.read_text().splitlines()]
    trained = [line["step"] for line in steps if "loss" in line]
    assert trained == sorted(set(trained))
    assert (curve.parent / "record.json").is_file()
    assert not list(output.rglob(".*"))


def test_a_second_study_in_the_same_folder_is_refused(tmp_path, sebench):
    from backbones.files import lock_directory

    output = tmp_path / "out"
    output.mkdir()
    with lock_directory(output):
        code, _, err = sebench("run", _study(tmp_path), "-o", output)
    assert code == 1
    assert "already in use" in err


def test_cells_know_what_became_of_them(finished, smallest_demo):
    _, output = finished
    cells = plan(load_study(smallest_demo), output)
    assert [cell.status() for cell in cells] == ["to run"] + ["recorded"] * 8
    other = dataclasses.replace(cells[1], experiment=dataclasses.replace(cells[2].experiment))
    assert other.status() != "recorded"


def test_the_page_on_studies_names_every_key_and_every_file():
    page = (DEMO.parent.parent / "README.md").read_text()
    example = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    keys = {item.name for item in dataclasses.fields(study.Study)}
    assert set(example) == keys
    told = {key for entry in example["experiments"] for key in entry} | {"sample"}
    assert told == {item.name for item in dataclasses.fields(study.StudyEntry)}
    names = (
        files.HEARTBEAT,
        files.LOCK,
        files.SETTINGS,
        files.LOG,
        files.CURVE,
        files.CHECKPOINT,
        files.WEIGHTS,
    )
    for name in (*names, files.SAMPLES, files.DETECTIONS, files.RECORD):
        assert f"`{name}`" in page
