"""The commands that pack results with their proof, and check it: bundle, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.cli.arguments import JsonOption, check_file, say, show

if TYPE_CHECKING:
    from tools.proof.bundle import Bundle
    from tools.proof.verify import Verification


def bundle(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Run directories, or bundles to join.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: study.zip.")],
    allow_unequal: Annotated[
        bool, typer.Option("--allow-unequal", help="As in sebench report.")
    ] = False,
    margin: Annotated[
        float | None, typer.Option(help="As in sebench report, points.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack runs with what their numbers were made from, for others to check and to join.

    Records, a row per image, detections with their annotation file, curves, settings, plan and
    report; no weights (their hashes) and no images. Publish the SHA-256 that is printed.

    [bold]Example[/]  sebench bundle runs -o study.zip
    """
    for path in runs:
        check_file(path)
    from tools.proof.bundle import write_bundle

    made = write_bundle(runs, output, allow_unequal=allow_unequal, margin=margin)
    show(made, as_json, _print_bundle)


def _print_bundle(made: Bundle) -> None:
    counted = f"{made.runs} run{'s' * (made.runs != 1)}"
    print(f"{made.path}: {counted}, {made.bytes / 1e6:.1f} MB, sha256 {made.sha256}")
    for text in (*made.notes, *(f"begun and not recorded: {name}" for name in made.unfinished)):
        say(text)


def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE.zip", help="What sebench bundle made.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of weights whose hashes to check as well."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="What the bundle's SHA-256 must be.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: compute its numbers again from rows and detections, and name what differs.

    Exit code 1 where anything does. tools/proof/README.md says what this proves, and what not.

    [bold]Example[/]  sebench verify study.zip --weights runs
    """
    check_file(path)
    if weights is not None:
        check_file(weights)
    from tools.proof.verify import verify_bundle

    found = verify_bundle(path, weights=weights, sha256=sha256)
    show(found, as_json, _print_verification)
    if found.findings:
        count = len(found.findings)
        say(f"{path}: {count} fault{'s' * (count > 1)}, sha256 {found.sha256}")
        raise typer.Exit(1)
    say(f"{path}: sound, sha256 {found.sha256}")


def _print_verification(found: Verification) -> None:
    faults = [f"{finding.where}: {finding.what}" for finding in found.findings]
    for kind, texts in (("ok", found.checked), ("note", found.notes), ("FAULT", faults)):
        for text in texts:
            print(f"{kind}: {text}")
