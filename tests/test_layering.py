"""The house of README.md: imports point down only, and what must start fast stays free of torch."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
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

# The rooms of tools, and those whose modules each may import.
ROOMS = {
    "cli": {"experiments", "proof", "references", "report", "sample_data", "speed", "statistics"},
    "proof": {"experiments", "report", "statistics"},
    "report": {"experiments", "references", "statistics"},
    "references": {"experiments", "statistics"},
    "speed": {"experiments", "sample_data"},
    "experiments": {"sample_data", "statistics"},
    "statistics": set(),
    "sample_data": set(),
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


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for floor in MAY_IMPORT:
        for path in files_of(floor):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The product's modules that a module imports, anywhere in it but for types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    checking = [
        n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    for_types = {inner for node in checking for inner in ast.walk(node)}
    for node in nodes:
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])] if node.level else [node.module])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known or base in known:
                    yield inner if inner in known else base


def test_no_module_imports_one_that_imports_it():
    known = modules()
    graph = {
        name: set(imported_modules(name, path, known)) - {name} for name, path in known.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_tools_import_downwards_only(room):
    known = modules()
    wrong = {
        f"{name} imports {other}"
        for name, path in known.items()
        if name == f"tools.{room}" or name.startswith(f"tools.{room}.")
        for other in imported_modules(name, path, known)
        if other.startswith("tools.") and other.split(".")[1] not in ROOMS[room] | {room}
    }
    assert not wrong
