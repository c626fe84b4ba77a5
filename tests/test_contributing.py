"""What CONTRIBUTING.md says is followed to the letter, on a copy of the sources."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
_STEP = re.compile(
    r"(?:Create `(?P<create>[^`]+)`|In `(?P<edit>[^`]+)`, after the line `(?P<line>[^`]+)`|(?P<run>Run))"
    r"[^`]*?(?:`[^`]*`[^`]*?)*?\n\n```(?:python|yaml|sh)\n(?P<text>.*?)```",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources after every step of CONTRIBUTING.md; commands are returned unrun."""
    tree = tmp_path_factory.mktemp("sebench")
    for name in ("backbones", "classification", "detection", "scene", "tools", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for step in _STEP.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if step["create"]:
            path = tree / step["create"]
            assert not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["text"], encoding="utf-8")
        elif step["edit"]:
            path = tree / step["edit"]
            before, line, after = path.read_text(encoding="utf-8").partition(f"\n{step['line']}\n")
            assert line, f"{step['edit']} has no line {step['line']!r}"
            path.write_text(before + line + step["text"] + after, encoding="utf-8")
    return tree


def _run(tree, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tree, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backbone_of_the_guide_is_counted_as_its_row_says(tree):
    command = next(
        step["text"].split()
        for step in _STEP.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
        if step["run"]
    )
    assert command[:2] == ["python", "-m"]
    assert "2 passed" in _run(tree, *command[1:])
    assert "se_tiny_net" in _run(tree, "-m", "tools", "list", "backbones")


def test_the_recipe_of_the_guide_trains_on_its_data_set_with_its_attention(tree, tmp_path):
    for split in ("beans-train", "beans-test"):
        for index in range(8):
            path = tmp_path / "data" / split / ("dry", "green")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (110, 110), (30 * index, 200, 80)).save(path)
    _run(
        tree, "-m", "tools", "train", "classification", "--recipe", "beans-short",
        "--data-root", tmp_path / "data", "--output", tmp_path / "run",
        "backbone.options.attention=halving", "backbone.options.factor=0.25",
    )  # fmt: skip
    assert (tmp_path / "run" / "record.json").is_file()


def test_the_task_of_the_guide_is_trained_recorded_and_reported_beside_its_twin(tree, tmp_path):
    for split in ("train", "val"):
        for index in range(8):
            path = tmp_path / "data" / split / ("flat", "rough")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (110, 110), (30 * index, 90, 80)).save(path)
    (tmp_path / "study.yaml").write_text(
        f"""
experiments:
  - task: texture
    recipe: texture-short
    backbones: [se_resnet_tiny]
    data_root: {tmp_path / "data"}
"""
    )
    _run(tree, "-m", "tools", "run", tmp_path / "study.yaml", "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["comparisons"]
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "texture recognition" in page.lower()
    assert "mean accuracy of the classes" in page
