"""The options about the network, --offline and --download-only, and what the latter prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from backbones.offline import go_offline
from tools.cli.arguments import say, show

if TYPE_CHECKING:
    from tools.experiments.study import Cell


def _switch(given: bool) -> bool:
    if given:
        go_offline()
    return given


OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline",
        callback=_switch,
        help="Download nothing, and name what is missing first; the same as SEBENCH_OFFLINE=1.",
    ),
]
DownloadOption = Annotated[
    bool,
    typer.Option(
        "--download-only",
        help="Fetch weights and data that can be downloaded, check all, name the rest; run nothing.",
    ),
]


def fetch_only(cells: Sequence[Cell], as_json: bool = False) -> None:
    """Download what cells need and print it, a line each.

    Raises:
        typer.Exit: with code 1, where something is missing.
    """
    from tools.cli.listing import DATASETS
    from tools.experiments.fetch import fetch

    found = []
    for one in fetch(cells):
        found.append(one)
        if not as_json:
            print(f"{one.state:8} {one.what}: {one.detail}", flush=True)
    if as_json:
        show(found, as_json)
    missing = [one for one in found if one.state == "missing"]
    for name in dict.fromkeys(one.data for one in missing if one.data):
        _, layout, source = DATASETS[name]
        if source:
            say(f"{name} is had from {source}; its folder holds {layout}")
    if missing:
        raise typer.Exit(1)
