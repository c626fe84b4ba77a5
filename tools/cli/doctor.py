"""The command that looks for what will fail before any compute is spent: doctor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.arguments import ImportOption, JsonOption, show

if TYPE_CHECKING:
    from tools.experiments.doctor import Finding


def doctor(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY.yaml]", help="Without it, the machine alone.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that runs are to be written to.")
    ] = Path("runs"),
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough",
            help="Open every image of large sets, and compare train and val by content: minutes.",
        ),
    ] = False,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """What will fail, or is likely a mistake, in a study and on this machine, each with its mend.

    Data (counts, labels, ids, damaged files, images both trained on and reported), weights, settings
    against recipe and data, memory of a batch, disk, GPU and driver, clock. Exit code 1: something
    will fail; doubts alone give 0.

    [bold]Examples[/]

      sebench doctor study.yaml -o runs

      sebench doctor study.yaml -o runs --thorough --json | jq '.[] | select(.fails)'
    """
    from tools.experiments.doctor import examine
    from tools.experiments.study import load_study, make_sample_data, plan

    with tempfile.TemporaryDirectory() as folder:
        cells = []
        if study is not None:
            planned = load_study(study)
            # Sample data are made when the study runs: here they are made to be looked at.
            place = Path(folder) if planned.sample_data else output
            cells = plan(planned, place, imports or ())
            if planned.sample_data:
                make_sample_data(planned, place)
        found = examine(cells, output, thorough)
    show(found, as_json, lambda found: _print(found, len(cells)))
    if any(finding.fails for finding in found):
        raise typer.Exit(1)


def _print(found: Sequence[Finding], cells: int) -> None:
    for finding in found:
        print(f"{'fails' if finding.fails else 'doubt'}  {finding.where}: {finding.what}")
        if finding.mend:
            print(f"       mend: {finding.mend}")
    failing = sum(finding.fails for finding in found)
    looked = f"{cells} cell{'s' * (cells != 1)} and this machine" if cells else "this machine"
    print(
        f"{looked}: {failing} will fail, {len(found) - failing} in doubt"
        if found
        else f"{looked}: well"
    )
