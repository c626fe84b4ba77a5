"""The commands about studies: run, demo, status."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backbones.offline import SWITCH, switches
from tools.cli.arguments import (
    ImportOption,
    JobsOption,
    JsonOption,
    first_process,
    read_pairs,
    say,
    show,
)
from tools.cli.fetch import DownloadOption, OfflineOption, fetch_only
from tools.cli.signals import stop_hint

if TYPE_CHECKING:
    from tools.experiments.cells import Outcome
    from tools.experiments.executors import Executor
    from tools.experiments.status import CellState
    from tools.experiments.study import Cell, Looks, Study

RunsOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of all its runs.")]
PlanOnlyOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan, run nothing.")]

_DEMO_JOBS = min(2, os.cpu_count() or 1)


OptionsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the executor.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only cells of this name: 'imagenet/se_*-seed0'."),
]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the cluster, host:port; the same as address=...")
]
RetriesOption = Annotated[
    int, typer.Option(min=0, max=20, help="Further attempts after a failure that can pass.")
]
CellOption = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Run this cell alone, here.")
]
CellsOption = Annotated[
    bool, typer.Option("--cells", help="Print the cells as JSON, for jobs that use --cell.")
]
ExampleOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="With --cells: print a script for bash, slurm-array, kubernetes, sagemaker.",
    ),
]


def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The matrix to run.")],
    output: RunsOption,
    options: OptionsArgument = None,
    jobs: JobsOption = 1,
    only: OnlyOption = None,
    executor: Annotated[str, typer.Option(help="Where cells run: local, ray, slurm.")] = "local",
    address: AddressOption = None,
    retries: RetriesOption = 2,
    cell: CellOption = None,
    cells: CellsOption = False,
    example: ExampleOption = None,
    imports: ImportOption = None,
    dry_run: PlanOnlyOption = False,
    download_only: DownloadOption = False,
    offline: OfflineOption = False,
) -> None:
    r"""Run networks x tasks x seeds, each SE network beside its plain twin, and report.

    What is recorded is skipped, what was interrupted goes on, and a failed run does not stop
    the others: repeat the command until all is done; `sebench status OUTPUT` tells how far it is, OUTPUT/logs what each run printed.

    [bold]Example[/]  sebench run study.yaml -o runs, with this study.yaml (tools/experiments/README.md explains every key):

      seeds: [0, 1]

      experiments: \[{task: classification, recipe: cifar-short, backbones: \[se_resnet20], data_root: data/cifar10}]

    [bold]Elsewhere[/]  a Ray cluster, or an array of jobs, each of which runs the cell of its number:

      sebench run study.yaml -o runs --executor ray --address head:6379 store=s3://bucket/study

      sebench run study.yaml -o runs --cells --example kubernetes
    """
    _check_cell(example, cells, cell, bool(only or jobs > 1 or executor != "local"))
    open_executor = _find_executor(executor, options, address)
    matrix, everything, chosen = _plan(study, output, imports or (), only or (), cell)
    command = ["sebench", "run", str(study), "-o", str(output)]
    command += [text for path in imports or () for text in ("--import", str(path))]
    if cells:
        _print_cells(everything, chosen, output, example, command)
        return
    _check(matrix, everything, chosen, output, None if download_only else command)
    if dry_run or download_only:
        _look(study, matrix, chosen, output, download_only)
    elif cell is not None:
        _run_one(matrix, everything, chosen[0], output)
    else:
        _run(matrix, everything, chosen, output, partial(open_executor, chosen, jobs), retries)


def demo(
    output: RunsOption = Path("demo"),
    jobs: JobsOption = _DEMO_JOBS,
    dry_run: PlanOnlyOption = False,
) -> None:
    """Four benchmarks, plain network beside SE twin, on synthetic data, in minutes: all of sebench."""
    study = Path(__file__).parent.parent / "experiments" / "studies" / "demo.yaml"
    run(study, output, jobs=jobs, dry_run=dry_run)


def status(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder of a study's runs.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again until all is done or failed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """How far a study is: to come, waiting, running with time left, stalled, failed, done.

    It reads the study's folder alone, so it works wherever the runs are, and while they are.

    [bold]Examples[/]

      sebench status runs --watch

      sebench status runs --json | jq '.[] | select(.state == "failed") | .detail'
    """
    from tools.cli.display import watch_states
    from tools.experiments.status import read_plan, read_states

    planned = read_plan(output)

    def look() -> list[CellState]:
        return read_states(planned, output)

    if as_json:
        show([state.as_plain() for state in look()], as_json)
    else:
        watch_states(look, watch)


# Parts of the commands ---------------------------------------------------------------------------


def _check_cell(example: str | None, cells: bool, cell: int | None, several: bool) -> None:
    """Refuse options that do not go together."""
    if example and not cells:
        raise ValueError(f"--example {example} is for --cells: it prints a script that runs them")
    if cell is not None and (cells or several):
        raise ValueError(
            f"--cell {cell} runs one cell here: leave out --cells, --only, --jobs, --executor"
        )


def _find_executor(
    name: str, options: Sequence[str] | None, address: str | None
) -> Callable[[Sequence[Cell], int], Executor]:
    from tools.experiments.executors import find_executor

    told = read_pairs(options, f"options of --executor {name} are written key=value")
    return find_executor(name, told | ({"address": address} if address else {}))


def _plan(
    path: Path, output: Path, imports: Sequence[Path], only: Sequence[str], cell: int | None
) -> tuple[Study, list[Cell], list[Cell]]:
    """A study, all its cells, and those that are asked for."""
    from tools.experiments.study import load_study, plan, require_sources, select

    study = load_study(path)
    try:
        cells = plan(study, output, imports)
    except ValueError as error:
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    chosen = cells
    if only:
        chosen = select(cells, only, "--only")
        require_sources(chosen, cells)
    if cell is not None:
        if cell >= len(cells):
            raise ValueError(f"--cell {cell}: there are cells 0 to {len(cells) - 1}")
        chosen = [cells[cell]]
    return study, cells, chosen


def _check(
    study: Study,
    everything: Sequence[Cell],
    cells: Sequence[Cell],
    output: Path,
    command: list[str] | None,
) -> None:
    """What a fixed plan, and a node without a network, allow; no command: the network is there."""
    from tools.experiments.fetch import require_fetched
    from tools.experiments.plan import check_lock  # and with it scipy
    from tools.experiments.study import DATA

    check_lock(everything, output, study.looks)
    if command is not None:
        lacking = (each.experiment for each in cells if each.status() != "recorded")
        require_fetched(lacking, shlex.join(command), made_in=output / DATA)


def _look(path: Path, study: Study, cells: list[Cell], output: Path, download: bool) -> None:
    """Show the plan and what forbids it, or fetch what it needs; nothing is run."""
    from tools.cli.display import missing_lines, print_plan
    from tools.experiments.study import look, make_sample_data

    if download:
        make_sample_data(study, output)
        fetch_only(cells)
        return
    print_plan(cells)
    _, missing = look(c for c in cells if c.status() != "recorded" and not c.makes_data)
    if missing:
        raise ValueError(f"{path}: not all can run\n" + "\n".join(missing_lines(missing)))


def _run(
    study: Study,
    everything: list[Cell],
    cells: list[Cell],
    output: Path,
    open_executor: Callable[[], Executor],
    retries: int,
) -> None:
    from backbones.files import lock_directory, remove_partial_files
    from tools.cli.display import StudyDisplay
    from tools.experiments.cells import Schedule
    from tools.experiments.run import typed_command
    from tools.experiments.status import write_plan
    from tools.experiments.study import REPORT, make_sample_data

    output.mkdir(parents=True, exist_ok=True)
    with stop_hint(lambda: "go on with the same command"), lock_directory(output):
        remove_partial_files(output)
        write_plan(everything, output)
        # Closed whatever ends this, so that no run is left behind.
        with StudyDisplay(output) as display, closing(open_executor()) as executor:
            if study.sample_data:
                display.say("making synthetic data")
                make_sample_data(study, output)
            display.begin(cells, everything)
            outcomes = []
            how: dict[str, Any] = {
                "command": typed_command(),
                "retries": retries,
                "started": display.started,
            }
            for look, stage in _stages(cells, study.looks):
                for one in Schedule(stage, executor, **how).run():
                    display.ended(one)
                    outcomes.append(one)
                failed = any(one.record is None for one in outcomes)
                if failed or (look and _ends(everything, look, output, study.looks, display.say)):
                    break
        _conclude(outcomes, len(cells), output / REPORT)


def _conclude(outcomes: Sequence[Outcome], count: int, report: Path) -> None:
    """Report on what was recorded, and say what failed, of so many cells."""
    from tools.report import write_report

    recorded = [one.cell.directory for one in outcomes if one.record is not None]
    for written in write_report(recorded, report) if recorded else ():
        if written.suffix == ".html":
            say(f"report: {written}")
    if failed := [one for one in outcomes if one.record is None]:
        listed = "\n".join(f"  {one.cell.label}: {one.error}" for one in failed)
        where = failed[0].cell.log.parent
        raise ValueError(f"{len(failed)} of {count} runs failed (more in {where}):\n{listed}")


def _stages(cells: list[Cell], looks: Looks | None) -> list[tuple[int, list[Cell]]]:
    """Each look, as a number of seeds, and the cells before it; 0 and all where there is none."""
    if looks is None:
        return [(0, cells)]
    bounds = pairwise([0, *looks.looks])
    return [(high, [c for c in cells if low <= c.seed < high]) for low, high in bounds]


def _ends(
    cells: Sequence[Cell], look: int, output: Path, looks: Looks | None, tell: Callable[[str], None]
) -> bool:
    """Take a look at all cells of so many seeds; whether nothing more is run."""
    from tools.report.looks import take_look

    assert looks is not None
    needed = [cell for cell in cells if cell.seed < look]
    missing = [cell for cell in needed if cell.status() != "recorded"]
    if missing:
        tell(f"the look at {look} seeds waits for {len(missing)} cells: {missing[0].name}, ...")
        return True
    ended, lines = take_look(output, [cell.directory for cell in needed], looks)
    for line in lines:
        tell(line)
    if ended:
        tell(f"every comparison is {looks.stop}: the study ends with the look at {look} seeds")
    return ended


def _require_look(cells: Sequence[Cell], cell: Cell, output: Path, looks: Looks | None) -> None:
    """Refuse a cell of seeds that no look has asked for.

    Raises:
        ValueError: the look before it ended the study.
        typer.Exit: that look has not been taken yet.
    """
    from tools.experiments.job import TRY_AGAIN

    before = max((look for look in looks.looks if look <= cell.seed), default=0) if looks else 0
    if not before:
        return
    told: list[str] = []
    if not _ends(cells, before, output, looks, told.append):
        return
    if "waits for" in told[-1]:
        say(f"{cell.name}: {told[-1]}")
        raise typer.Exit(TRY_AGAIN)
    raise ValueError(f"{cell.name} is outside the plan: {told[-1]}")


def _print_cells(
    everything: Sequence[Cell],
    chosen: Sequence[Cell],
    output: Path,
    example: str | None,
    command: Sequence[str],
) -> None:
    from tools.experiments.array_jobs import example_script
    from tools.experiments.status import planned_cells, read_states

    numbers = {cell.number for cell in chosen}
    planned = [cell for cell in planned_cells(everything) if cell.number in numbers]
    if example is None:
        show([state.as_plain() for state in read_states(planned, output)], as_json=True)
    else:
        switched = ["--offline"] if SWITCH in switches() else []
        print(example_script(example, planned, [*command, *switched]), end="")


def _run_one(study: Study, cells: Sequence[Cell], cell: Cell, output: Path) -> None:
    """Run a cell in this process; what else there is may run elsewhere meanwhile."""
    from backbones.files import lock_directory
    from tools.cli.display import print_record
    from tools.experiments.job import TRY_AGAIN, Job, read_failure, run_job
    from tools.experiments.record import read_git
    from tools.experiments.run import read_recorded, typed_command
    from tools.experiments.status import write_plan
    from tools.experiments.study import DATA, make_sample_data

    _require_look(cells, cell, output, study.looks)
    output.mkdir(parents=True, exist_ok=True)
    if study.sample_data:
        (output / DATA).mkdir(exist_ok=True)
        with lock_directory(output / DATA, wait=600):
            make_sample_data(study, output)
    write_plan(cells, output)
    source = next((other for other in cells if other.directory == cell.source), None)
    if source is not None and source.status() != "recorded":
        failure = read_failure(output, source.name)
        if failure is not None and not failure.can_pass:
            raise ValueError(f"{cell.name} waits for {source.name}: {failure.error}")
        say(f"{cell.name} waits for {source.name}, cell {source.number}: run that first")
        raise typer.Exit(TRY_AGAIN)
    with stop_hint(lambda: "go on with the same command"):
        failure = run_job(Job(cell, typed_command(), read_git()))
    if failure is not None:
        say(f"sebench: {cell.name}: {failure.error}")
        raise typer.Exit(TRY_AGAIN if failure.can_pass else 1)
    record = read_recorded(cell.experiment, cell.directory)
    if record is not None and first_process:
        print_record(record)
