"""What several commands share: arguments, with the names that a shell completes, and how results are printed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

first_process = int(os.environ.get("RANK", "0")) == 0  # of those that torchrun started


def say(text: str) -> None:
    """Print to stderr, once however many processes there are."""
    if first_process:
        print(text, file=sys.stderr)


def check_file(path: str | Path) -> None:
    """Raise a ValueError for a file or folder that does not exist, before anything is imported."""
    from backbones.registry import EXTERNAL

    if not str(path).startswith(EXTERNAL) and not Path(path).exists():
        raise ValueError(f"no such file or folder: {path}")


def show(found: Any, as_json: bool, print_text: Callable[[Any], None] | None = None) -> None:
    """Print what a command found: for programs, or for people.

    Args:
        found: plain values, or dataclasses anywhere among them.
        print_text: default: a table of rows, or a line for every value of a mapping.
    """
    if as_json:
        print(json.dumps(found, indent=1, default=_as_plain))
        return
    from tools.cli.display import print_nested, print_rows  # needs rich

    (print_text or (print_rows if isinstance(found, list) else print_nested))(found)


def _as_plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


def load_imports(paths: Iterable[Path] | None) -> None:
    """Run the files that register networks of one's own."""
    from backbones.registry import load_user_module

    for path in paths or ():
        load_user_module(path)


def read_pairs(texts: Iterable[str] | None, mend: str) -> dict[str, str]:
    """KEY=VALUE texts as a mapping; a ValueError for another text, which `mend` ends."""
    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{text!r}: {mend}")
        pairs[key] = value
    return pairs


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ImportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="Python file that registers networks of your own; it is run. Files that settings name "
        "are run only where you name them here.",
    ),
]


def complete_recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Recipes of the task that is typed, or of all."""
    from tools.experiments.experiment import list_recipes
    from tools.experiments.tasks import TASKS

    task = ctx.params.get("task")
    tasks = [task] if task in TASKS else list(TASKS)
    return [name for task in tasks for name in list_recipes(task) if name.startswith(incomplete)]


def complete_backbones(incomplete: str) -> list[str]:
    """Networks of this beginning."""
    from backbones.registry import list_backbones

    return [info.name for info in list_backbones() if info.name.startswith(incomplete)]


def complete_datasets(incomplete: str) -> list[str]:
    """Data sets of this beginning."""
    from tools.cli.listing import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


def complete_tasks(incomplete: str) -> list[str]:
    """Tasks of this beginning."""
    from tools.experiments.tasks import TASKS

    return [task for task in TASKS if task.startswith(incomplete)]


TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="classification, scene or detection.",
        autocompletion=complete_tasks,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: train.epochs=10"),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="Name (sebench list recipes), a YAML file, or a run's settings.yaml.",
        autocompletion=complete_recipes,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", "-b", help="Network.", autocompletion=complete_backbones),
]
DataOption = Annotated[str | None, typer.Option(help="Data set.", autocompletion=complete_datasets)]
DataRootOption = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run directory.", show_default="runs/...")
]
JobsOption = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, run nothing.")]
