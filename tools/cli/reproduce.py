"""The command that runs a table of the paper and prints it with measured numbers: reproduce."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tools.cli.arguments import JobsOption, JsonOption, check_file, read_pairs, say, show

if TYPE_CHECKING:
    from tools.experiments.study import Cell
    from tools.references.reproduce import Target, Wish


WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TABLE...] [KEY=VALUE]...", help="table-2, figure-4, ..., all; and settings."
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of all runs; tables go into its report/.")
]
ScaleOption = Annotated[
    Literal["paper", "smoke"],
    typer.Option(help="smoke: synthetic images and a few steps; shows that it works."),
]
RootsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[SET=]DIR", help="Where data lie: imagenet=DIR, coco=DIR, ..."),
]
InitialOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NETWORK=FILE",
        help="Detection: ImageNet weights; without, they are trained first.",
    ),
]
WhichRecipeOption = Annotated[
    str | None, typer.Option(help="Which recipe, where a table has several.")
]
ListOption = Annotated[
    bool, typer.Option("--dry-run", help="List cells, what is missing and the cost; run nothing.")
]


def reproduce(
    what: WhatArgument = None,
    output: RunsOption = Path(),
    scale: ScaleOption = "paper",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each network.")] = 1,
    data_root: RootsOption = None,
    weights: InitialOption = None,
    recipe: WhichRecipeOption = None,
    jobs: JobsOption = 1,
    dry_run: ListOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the networks of a table of the paper by its protocol, and print the table beside the paper's.

    Without a table it lists them. Rows that are trained alike share a run, and what is recorded in
    OUTPUT is not run again: repeat the command until all is done. OUTPUT/reproduce.yaml is the
    study; `sebench run` takes it to Ray or to arrays of jobs, `sebench doctor` checks it.

    [bold]Examples[/]

      sebench reproduce all --scale smoke -o smoke

      sebench reproduce table-4 -o runs --data-root data/cifar10 --seeds 3 --dry-run

      sebench reproduce table-7 -o runs --data-root imagenet=ILSVRC --data-root coco=datasets train.accumulate=4
    """
    from tools.references.reproduce import Wish, find_targets, study_of

    settings = [text for text in what or () if "=" in text]
    names = [text for text in what or () if "=" not in text]
    if not names:
        _list(as_json)
        return
    targets = find_targets(names)
    for target in targets:
        if not target.runnable:
            raise ValueError(f"{target.name}: this suite has none of its networks")
    if output == Path():
        raise ValueError("--output is missing: name the folder of all runs, e.g. -o runs")
    initial = read_pairs(weights, "write --weights NETWORK=FILE, e.g. se_resnet50=se.pth")
    for path in initial.values():
        check_file(path)
    wish = Wish(scale, seeds, _roots(data_root, targets), initial, recipe, settings)
    study = study_of(targets, wish)
    if dry_run:
        _look(study, output, as_json)
        return
    _reproduce(targets, wish, study, output, jobs, as_json)


# Parts of the command ----------------------------------------------------------------------------


def _list(as_json: bool) -> None:
    from tools.references.reproduce import list_targets

    rows = [
        {
            "name": target.name,
            "title": target.title,
            "data": target.table.dataset["name"],
            "rows": len(target.rows),
            "to run": len(target.runnable),
            "recipes": ", ".join(dict.fromkeys(r for row in target.runnable for r in row.recipes)),
        }
        for target in list_targets().values()
    ]
    show(rows, as_json)
    if not as_json:
        print(
            "Rows that are not run are of others, whose training is no recipe of this suite; "
            "sebench reproduce TABLE --dry-run -o DIR says what a table takes"
        )


def _roots(given: Sequence[str] | None, targets: Sequence[Target]) -> dict[str, str]:
    """The folder of each data set.

    Raises:
        ValueError: a folder that is not there, or one without a set where there are several.
    """
    known = dict.fromkeys(str(target.table.dataset["name"]) for target in targets)
    if any(target.table.initial == "imagenet" for target in targets):
        known["imagenet"] = None
    roots = {}
    for text in given or ():
        name, sign, folder = text.partition("=")
        if not sign:
            name, folder = next(iter(known)), text
            if len(known) > 1:
                raise ValueError(f"--data-root {text}: say of which set, {'=, '.join(known)}=")
        if name not in known:
            raise ValueError(f"--data-root {text}: the sets are {', '.join(known)}")
        check_file(folder)
        roots[name] = folder
    return roots


def _write_study(study: dict[str, Any], path: Path, output: Path) -> list[Cell]:
    """Write a study, and plan it."""
    import yaml

    from backbones.files import write_whole
    from tools.experiments.study import load_study, plan

    write_whole(path, yaml.safe_dump(study, sort_keys=False))
    return plan(load_study(path), output)


def _look(study: dict[str, Any], output: Path, as_json: bool) -> None:
    from tools.cli.display import missing_lines, print_plan, print_rows
    from tools.experiments.study import look

    with tempfile.TemporaryDirectory() as folder:
        cells = _write_study(study, Path(folder) / "reproduce.yaml", output)
    costs, missing = _costs(cells), {} if "sample_data" in study else look(cells)[1]
    if as_json:
        listed = [
            {"name": cell.name, "task": cell.experiment.task, "status": cell.status()}
            for cell in cells
        ]
        show({"cells": listed, "costs": costs, "missing": missing}, as_json)
    else:
        print_plan(cells)
        print()
        print_rows(costs)
        for line in missing_lines(missing):
            print(line)
    if missing:
        raise typer.Exit(1)


def _costs(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What each recipe costs as it was published, for all its cells."""
    from backbones import describe_backbone
    from tools.experiments.experiment import list_recipes, recipe_cost

    rows = []
    for entry, group in groupby(cells, lambda cell: cell.entry):
        same = list(group)
        first = same[0].experiment
        recipe = recipe_cost(list_recipes(first.task)[first.recipe])
        networks = [describe_backbone(cell.experiment.config.backbone.name) for cell in same]
        images = (recipe["images"] or 0) * (recipe["epochs"] or 0)
        operations = 3 * images * sum(network.multiply_adds for network in networks)
        is_fixed = "augment" in first.settings  # images of one size, as the counts are of
        rows.append(
            {
                "experiment": entry,
                "runs": len(same),
                "training images": f"{recipe['images']:,}",
                "epochs": recipe["epochs"],
                "published": recipe["published"],
                # Forward and backward, of the backbone at its usual size of input.
                "exa multiply-adds": f"{operations / 1e18:.3g}" if is_fixed else "",
            }
        )
    return rows


def _reproduce(
    targets: Sequence[Target],
    wish: Wish,
    study: dict[str, Any],
    output: Path,
    jobs: int,
    as_json: bool,
) -> None:
    from tools.cli.study import run
    from tools.experiments.run import run_experiment
    from tools.experiments.study import look

    output.mkdir(parents=True, exist_ok=True)
    path = output / "reproduce.yaml"
    entries = {cell.entry: cell for cell in _write_study(study, path, output)}
    _, missing = ({}, {}) if wish.scale == "smoke" else look(entries.values())
    if missing:
        told = "\n".join(f"  {name}: {text}" for name, text in missing.items())
        raise ValueError(
            f"nothing was run; give --data-root SET=DIR where data are missing:\n{told}"
        )
    failure = None
    try:
        run(path, output, jobs=jobs)
        for experiment, directory in _evaluations(targets, wish, output):
            run_experiment(experiment, directory)
    except ValueError as error:  # the table has gaps then, and says which
        failure = error
    _write(targets, wish, output, as_json)
    if failure is not None:
        raise failure


def _write(targets: Sequence[Target], wish: Wish, output: Path, as_json: bool) -> None:
    from tools.report.reproduced import write_sheets

    written = write_sheets(targets, wish, output)
    if as_json:
        show([sheet.as_plain() for sheet, _ in written], as_json)
    for sheet, files in written:
        if not as_json:
            print(sheet.as_markdown())
        say(f"{sheet.name}: {files[0]}")


def _evaluations(targets: Sequence[Target], wish: Wish, output: Path) -> Iterator[tuple[Any, Path]]:
    """Of rows whose protocol is not that of their training."""
    from tools.references.reproduce import evaluation_of, training_of_row

    for target in targets:
        for row in target.runnable:
            training = training_of_row(row, target.table, wish)
            for seed in range(wish.seeds) if training.protocol else ():
                directory = output / training.directory(seed)
                yield evaluation_of(training, wish, output, seed), directory
