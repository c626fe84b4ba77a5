"""The house of README.md: imports point down only, and what must start fast stays free of torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "backbones": set(),
    "classification": {"backbones"},
    "detection": {"backbones"},
    "scene": {"backbones", "classification"},
    "tools": {"backbones", "classification", "detection", "scene"},
}


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            packages.add(node.module.split(".")[0])
    return packages


def files_of(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_point_down_only(floor):
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[floor] - {floor}
    assert files_of(floor)
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in files_of(floor)
        if (found := imported_packages(path) & forbidden)
    }
    assert not wrong


@pytest.mark.parametrize("floor", sorted(set(MAY_IMPORT) - {"detection"}))
def test_only_detection_imports_detectron2(floor):
    importers = [str(path) for path in files_of(floor) if "detectron2" in imported_packages(path)]
    assert not importers


def test_there_is_no_room_for_leftovers():
    names = {path.stem for floor in MAY_IMPORT for path in files_of(floor)}
    assert not names & {"utils", "util", "common", "core", "helpers", "misc"}


@pytest.mark.parametrize(
    "module",
    ["backbones", "backbones.zoo", "classification.config", "detection.config", "tools.cli"],
)
def test_what_the_command_line_needs_to_start_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("room", ["tools/report", "tools/references"])
def test_a_task_is_known_by_its_row_and_not_by_its_name(room):
    from tools.experiments.tasks import TASKS

    named = re.compile("|".join(f"[\"']{task}[\"']" for task in TASKS))
    remeasures = ROOT / "tools/references/remeasure.py"  # released weights are classifiers
    for path in (*(ROOT / room).glob("*.py"), *(ROOT / room).glob("*.html")):
        if path != remeasures:
            assert not named.search(path.read_text(encoding="utf-8")), path
