"""The command that says what a study can tell, and what it costs, before it runs: plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.arguments import (
    DataOption,
    ImportOption,
    JsonOption,
    OverridesArgument,
    RecipeOption,
    check_file,
    complete_backbones,
    say,
)

if TYPE_CHECKING:
    from tools.experiments.plan import PlannedComparison
    from tools.experiments.probe import Cost
    from tools.experiments.study import Cell, Study


WhatArgument = Annotated[
    str, typer.Argument(metavar="STUDY.yaml|TASK", help="A study, or a task with --backbone.")
]
BackbonesOption = Annotated[
    list[str] | None,
    typer.Option("--backbone", "-b", help="TASK: a network.", autocompletion=complete_backbones),
]
PlaceOption = Annotated[str | None, typer.Option(help="TASK: where its data lie.")]
SeedsOption = Annotated[int, typer.Option(min=1, max=1000, help="TASK: seeds of each.")]
FolderOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder that the study is to run in.")
]
DetectOption = Annotated[
    float | None, typer.Option(metavar="POINTS", help="A difference that is to be seen.")
]
FromOption = Annotated[
    list[Path] | None,
    typer.Option("--from", metavar="RUNS", help="Earlier runs, whose noise is expected again."),
]
ProbeOption = Annotated[
    bool, typer.Option(help="Time real steps of each network here: a minute for each.")
]
LockOption = Annotated[
    bool, typer.Option("--lock", help="Fix this plan: other cells will not run in OUTPUT.")
]
AmendOption = Annotated[
    str | None, typer.Option(metavar="WHY", help="Change a plan that is fixed; reports list it.")
]


def plan(
    what: WhatArgument,
    overrides: OverridesArgument = None,
    backbones: BackbonesOption = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    data_root: PlaceOption = None,
    seeds: SeedsOption = 1,
    output: FolderOption = Path("runs"),
    detect: DetectOption = None,
    recorded: FromOption = None,
    probe: ProbeOption = True,
    probe_seconds: Annotated[float, typer.Option(min=0.5, help="Of steady steps.")] = 10.0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    lock: LockOption = False,
    amend: AmendOption = None,
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
    _check(lock, amend, detect, recorded or (), output)
    from tools.experiments.plan import compare_cells
    from tools.experiments.plan import lock as fix
    from tools.experiments.study import look
    from tools.report.looks import read_noise

    study = _read(what, backbones, recipe, data, data_root, seeds, overrides or ())
    cells = _cells(study, output, imports or ())
    noise = read_noise(recorded) if recorded else {}
    images, missing = look(cells)
    comparisons = compare_cells(cells, images, noise, detect, study.looks)
    costs = _probe(cells, missing, probe_seconds) if probe else {}
    _show(_summary(cells, comparisons, costs, missing, jobs), comparisons, study, as_json)
    if lock or amend is not None:
        say(f"fixed: {fix(cells, output, study.looks, comparisons, costs, amend)}")
    if missing:
        raise typer.Exit(1)


def _check(
    lock: bool, amend: str | None, detect: float | None, recorded: Sequence[Path], output: Path
) -> None:
    if lock and amend is not None:
        raise ValueError("--lock fixes a plan, --amend changes one that is fixed: give one of them")
    if detect is not None and not detect > 0:
        raise ValueError(f"--detect {detect}: a difference to be seen is above 0 points")
    for path in recorded:
        check_file(path)
    if lock or amend is not None:
        from tools.experiments.plan import check_lockable

        check_lockable(output, amend)


def _cells(study: Study, output: Path, imports: Sequence[Path]) -> list[Cell]:
    """The cells of a study, whose synthetic data are made."""
    from tools.experiments.study import make_sample_data, plan

    cells = plan(study, output, imports)
    if study.sample_data:
        make_sample_data(study, output)
    return cells


def _read(
    what: str,
    backbones: Sequence[str] | None,
    recipe: str | None,
    data: str | None,
    data_root: str | None,
    seeds: int,
    overrides: Sequence[str],
) -> Study:
    from tools.experiments.settings import merge, parse_override
    from tools.experiments.study import Study, StudyEntry, load_study
    from tools.experiments.tasks import TASKS

    if what not in TASKS:
        if backbones or recipe or data or data_root or overrides:
            raise ValueError(
                f"--backbone, --recipe, --data, --data-root and settings go with a task "
                f"({', '.join(TASKS)}), not with {what}"
            )
        return load_study(Path(what))
    if not backbones or not recipe:
        raise ValueError(f"{what}: name its networks and recipe, --backbone NAME --recipe NAME")
    settings: dict[str, Any] = {}
    for text in overrides:
        settings = merge(settings, parse_override(text))
    entry = StudyEntry(
        what, recipe, list(backbones), data=data, data_root=data_root, settings=settings
    )
    return Study([entry], seeds=list(range(seeds)))


def _probe(cells: Sequence[Cell], missing: Mapping[str, str], seconds: float) -> dict[str, Cost]:
    from tools.experiments.probe import measure
    from tools.experiments.study import networks_of

    costs = {}
    networks = {name: same for name, same in networks_of(cells).items() if name not in missing}
    for number, (name, (cell, *_)) in enumerate(networks.items(), start=1):
        say(f"probe {number} of {len(networks)}: {name}")
        try:
            costs[name] = measure(cell.experiment, seconds)
        except (ValueError, RuntimeError, OSError) as error:
            say(f"no cost of {name}: {error}")
    return costs


def _summary(
    cells: Sequence[Cell],
    comparisons: Sequence[PlannedComparison],
    costs: Mapping[str, Cost],
    missing: Mapping[str, str],
    jobs: int,
) -> dict[str, Any]:
    from tools.experiments.study import networks_of

    runs: list[dict[str, Any]] = []
    for name, same in networks_of(cells).items():
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
                "device_hours_to_come": cost
                and cost.seconds * cost.devices * (len(same) - done) / 3600,
            }
        )
    known = [run for run in runs if run["cost"]]
    return {
        "comparisons": [asdict(each) for each in comparisons],
        "networks": runs,
        "jobs": jobs,
        "hours": sum(run["seconds_to_come"] for run in known) / 3600 / jobs if known else None,
        "device_hours": sum(run["device_hours_to_come"] for run in known) if known else None,
        "device": (known and ("GPU" if known[0]["cost"]["gpu"] else "core")) or None,
        "disk_bytes": sum(
            run["cost"]["disk_bytes"] * (run["runs"] - run["recorded"]) for run in known
        ),
    }


def _show(
    shown: Mapping[str, Any],
    comparisons: Sequence[PlannedComparison],
    study: Study,
    as_json: bool,
) -> None:
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    _print_comparisons(comparisons)
    print()
    _print_networks(shown)
    if study.looks is not None:
        listed = ", ".join(map(str, study.looks.looks))
        print(f"looks at {listed} seeds until {study.looks.stop}: all of this is of the last")


def _print_comparisons(comparisons: Sequence[PlannedComparison]) -> None:
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
            "80 % of such studies": _range(each.half_width_range),
            "about": "networks" if each.seeds > 1 else "these weights",
        }
        if each.wanted is not None:
            row[f"{each.wanted:g} points need"] = (
                f"{_count(each.seeds_needed)} seeds, or {_count(each.images_needed)} images"
            )
        rows.append(row)
    for part in {tuple(row): None for row in rows}:  # a metric each
        print_rows([row for row in rows if tuple(row) == part])
    noises = {
        f"noise of one pair of runs on {each.images:,} images: seed {each.noise.seed_sd:.2f}, churn "
        f"{each.noise.churn_sd:.2f}, images {each.noise.image_sd:.2f} points ({each.noise.source})"
        for each in comparisons
    }
    print("\n".join(sorted(noises)) or "no candidate with its plain twin: nothing is compared")


def _print_networks(shown: Mapping[str, Any]) -> None:
    from tools.cli.display import missing_lines, print_rows

    print_rows(
        [
            {
                "network": run["network"],
                "recorded": f"{run['recorded']} of {run['runs']}",
                "a run": _duration(run["cost"]["seconds"]) if run["cost"] else "not timed",
                "memory": _size(run["cost"]["memory_bytes"]) if run["cost"] else "",
                "disk": _size(run["cost"]["disk_bytes"]) if run["cost"] else "",
            }
            for run in shown["networks"]
        ]
    )
    missing = {run["network"]: run["missing"] for run in shown["networks"] if run["missing"]}
    for line in missing_lines(missing):
        print(line)
    if shown["hours"] is not None:
        unknown = sum(run["cost"] is None for run in shown["networks"])
        jobs = shown["jobs"]
        print(
            f"to come: {_duration(shown['hours'] * 3600)} on this machine, {jobs} "
            f"run{'s' * (jobs > 1)} at a time; {shown['device_hours']:.3g} {shown['device']}-hours; "
            f"{_size(shown['disk_bytes'])} of disk"
            + (f"; without {unknown} networks that were not probed" if unknown else "")
        )


def _range(found: tuple[float, float] | None) -> str:
    return "not known" if found is None else f"±{found[0]:.2f} to ±{found[1]:.2f}"


def _count(number: int | None) -> str:
    return "no number of" if number is None else f"{number:,}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
