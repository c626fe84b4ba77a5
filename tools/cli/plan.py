"""The command that says what a study can tell, and what it costs, before it runs: plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.arguments import ImportOption, JsonOption, check_file, complete_backbones, say

if TYPE_CHECKING:
    from tools.experiments.plan import PlannedComparison
    from tools.experiments.probe import Cost
    from tools.experiments.study import Cell, Study


def plan(
    what: Annotated[
        str, typer.Argument(metavar="STUDY.yaml|TASK", help="A study, or a task with --backbone.")
    ],
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone", "-b", help="TASK: a network.", autocompletion=complete_backbones
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="TASK: the recipe.")] = None,
    data_root: Annotated[str | None, typer.Option(help="TASK: where its data lie.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="TASK: seeds of each.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that the study is to run in.")
    ] = Path("runs"),
    detect: Annotated[
        float | None, typer.Option(metavar="POINTS", help="A difference that is to be seen.")
    ] = None,
    recorded: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="RUNS", help="Earlier runs, whose noise is expected again."),
    ] = None,
    probe: Annotated[
        bool, typer.Option(help="Time real steps of each network here: a minute for each.")
    ] = True,
    probe_seconds: Annotated[float, typer.Option(min=0.5, help="Of steady steps.")] = 10.0,
    lock: Annotated[
        bool, typer.Option("--lock", help="Fix this plan: other cells will not run in OUTPUT.")
    ] = False,
    amend: Annotated[
        str | None,
        typer.Option(metavar="WHY", help="Change a plan that is fixed; reports list it."),
    ] = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a study will be able to tell, what it needs, and what it costs, before it runs.

    For each comparison: the smallest difference that it sees in 80 % of such studies, and the seeds or
    images that a difference asked for needs; hours, memory and disk from steps measured here; what is
    recorded already, and what is missing.

    [bold]Examples[/]

      sebench plan study.yaml -o runs --detect 0.3 --from earlier/runs

      sebench plan classification -b se_resnet50 --recipe imagenet-paper --seeds 3 --no-probe

      sebench plan study.yaml -o runs --lock
    """
    if lock and amend is not None:
        raise ValueError("--lock fixes a plan, --amend changes one that is fixed: give one of them")
    if detect is not None and not detect > 0:
        raise ValueError(f"--detect {detect}: a difference to be seen is above 0 points")
    for path in recorded or ():
        check_file(path)
    from tools.experiments.plan import check_lockable, compare_cells
    from tools.experiments.plan import lock as fix
    from tools.experiments.study import make_sample_data
    from tools.experiments.study import plan as plan_cells
    from tools.report.looks import read_noise

    if lock or amend is not None:
        check_lockable(output, amend)
    study = _read(what, backbones, recipe, data_root, seeds)
    cells = plan_cells(study, output, imports or ())
    noise = read_noise(recorded) if recorded else {}
    if study.sample_data:
        make_sample_data(study, output)
    images, missing = _look(cells)
    comparisons = compare_cells(cells, images, noise, detect)
    costs = _probe(cells, missing, probe_seconds) if probe else {}
    shown = _summary(cells, comparisons, costs, missing)
    print(json.dumps(shown, indent=1)) if as_json else _print(shown, comparisons)
    if lock or amend is not None:
        say(f"fixed: {fix(cells, output, study.looks, comparisons, costs, amend)}")
    if missing:
        raise typer.Exit(1)


def _read(
    what: str,
    backbones: Sequence[str] | None,
    recipe: str | None,
    data_root: str | None,
    seeds: int,
) -> Study:
    from tools.experiments.study import Study, StudyEntry, load_study
    from tools.experiments.tasks import TASKS

    if what not in TASKS:
        if backbones or recipe or data_root:
            raise ValueError(
                f"--backbone, --recipe, --data-root go with a task ({', '.join(TASKS)}), not with {what}"
            )
        return load_study(Path(what))
    if not backbones or not recipe:
        raise ValueError(f"{what}: name its networks and recipe, --backbone NAME --recipe NAME")
    entry = StudyEntry(what, recipe, list(backbones), data_root=data_root)
    return Study([entry], seeds=list(range(seeds)))


def _networks(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells that differ in their seed alone, by ENTRY/NETWORK."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.name.rpartition("-seed")[0], []).append(cell)
    return found


def _look(cells: Sequence[Cell]) -> tuple[dict[str, int], dict[str, str]]:
    """Reported images of each entry; and what is missing, by ENTRY/NETWORK."""
    images: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name, (cell, *_) in _networks(cells).items():
        config = cell.experiment.config
        if cell.source is not None:  # its weights are still to be made
            config = replace(config, backbone=replace(config.backbone, weights=None))
        try:
            found = cell.experiment.entry_points().check(config)
            images[cell.entry] = found["dataset"]["images"]
        except (ValueError, OSError) as error:
            missing[name] = str(error)
    return images, missing


def _probe(cells: Sequence[Cell], missing: Mapping[str, str], seconds: float) -> dict[str, Cost]:
    from tools.experiments.probe import measure

    costs = {}
    networks = {name: same for name, same in _networks(cells).items() if name not in missing}
    for number, (name, (cell, *_)) in enumerate(networks.items(), start=1):
        say(f"probe {number} of {len(networks)}: {name}")
        costs[name] = measure(cell.experiment, seconds)
    return costs


def _summary(
    cells: Sequence[Cell],
    comparisons: Sequence[PlannedComparison],
    costs: Mapping[str, Cost],
    missing: Mapping[str, str],
) -> dict[str, Any]:
    runs = []
    for name, same in _networks(cells).items():
        done = sum(cell.status() == "recorded" for cell in same)
        cost = costs.get(name)
        runs.append(
            {
                "network": name,
                "runs": len(same),
                "recorded": done,
                "missing": missing.get(name),
                "cost": cost and {**asdict(cost), "seconds": cost.seconds},
                "seconds_to_come": cost and cost.seconds * (len(same) - done),
            }
        )
    known = [run["seconds_to_come"] for run in runs if run["seconds_to_come"] is not None]
    return {
        "comparisons": [asdict(each) for each in comparisons],
        "networks": runs,
        "hours": sum(known) / 3600 if known else None,
        "disk_bytes": sum(run["cost"]["disk_bytes"] * run["runs"] for run in runs if run["cost"]),
    }


def _print(shown: Mapping[str, Any], comparisons: Sequence[PlannedComparison]) -> None:
    from tools.cli.display import print_rows

    rows = []
    for each in comparisons:
        row = {
            "experiment": each.entry,
            "candidate": each.candidate,
            "plain": each.plain,
            "seeds": str(each.seeds),
            "images": f"{each.images:,}",
            f"sees of {each.metric}": f"{each.detectable:.2f} points",
            "interval": f"±{each.half_width:.2f}",
            "about": "networks" if each.seeds > 1 else "these weights",
            "noise": f"seed {each.noise.seed_sd:.2f}, churn {each.noise.churn_sd:.2f}, images "
            f"{each.noise.image_sd:.2f} ({each.noise.source})",
        }
        if each.wanted is not None:
            row[f"{each.wanted:g} points need"] = (
                f"{_count(each.seeds_needed)} seeds, or {_count(each.images_needed)} images"
            )
        rows.append(row)
    for part in {tuple(row): None for row in rows}:  # a metric each
        print_rows([row for row in rows if tuple(row) == part])
        print()
    print_rows(
        [
            {
                "network": run["network"],
                "recorded": f"{run['recorded']} of {run['runs']}",
                "a run": _duration(run["cost"]["seconds"]) if run["cost"] else "not probed",
                "memory": _size(run["cost"]["memory_bytes"]) if run["cost"] else "",
                "disk": _size(run["cost"]["disk_bytes"]) if run["cost"] else "",
                "missing": (run["missing"] or "").partition("\n")[0],
            }
            for run in shown["networks"]
        ]
    )
    if shown["hours"] is not None:
        print(
            f"{_duration(shown['hours'] * 3600)} to come on this machine, one run at a time; "
            f"{_size(shown['disk_bytes'])} of disk"
        )


def _count(number: int | None) -> str:
    return "no number of" if number is None else f"{number:,}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
