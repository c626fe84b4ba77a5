"""A task is one row: what stands above its folder asks the row, and knows no task by name."""

import re
from pathlib import Path

import pytest

from tools.experiments.tasks import TASKS, find_task, load_function

TOOLS = Path(__file__).parent.parent / "tools"
ROOMS = ("cli", "experiments", "references", "report")


@pytest.mark.parametrize("room", ROOMS)
def test_no_task_is_compared_by_its_name(room):
    compared = re.compile(rf"""[=!]=\s*["']({"|".join(TASKS)})["']""")
    for path in (TOOLS / room).rglob("*"):
        if path.suffix in (".py", ".html"):
            assert not compared.search(path.read_text()), path


@pytest.mark.parametrize("name", TASKS)
def test_what_a_row_names_is_there(name):
    row = TASKS[name]
    for function in (row.settings, row.compare, row.find_pictures, row.score):
        assert function is None or callable(load_function(function))
    entry_points = load_function(f"{row.module}:__dict__")
    assert {"check", "train", "evaluate"} <= set(entry_points)


def test_an_unknown_task_gets_near_matches():
    with pytest.raises(ValueError, match="unknown task 'detektion'; did you mean detection"):
        find_task("detektion")
