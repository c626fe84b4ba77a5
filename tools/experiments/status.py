"""What became of the cells of a study, read from its folder alone, whoever runs them and where."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from backbones import files
from backbones.config import printable
from backbones.heartbeat import Heartbeat, read_heartbeat
from tools.experiments.job import read_failure
from tools.experiments.study import Cell, Needs
from tools.experiments.typed_json import read_typed

_LARGEST_PLAN = 64 << 20  # bytes
STALLED_AFTER = 300.0  # seconds without a heartbeat

State = Literal["to come", "waiting", "running", "stalled", "interrupted", "failed", "done"]


# Two folders, which lead nowhere else.
CellName = Annotated[
    str, StringConstraints(pattern=r"^\w[\w.=+, -]*/[\w=+,-][\w.=+,-]*$", max_length=320)
]


@dataclass(frozen=True)
class PlannedCell:
    """A cell as `cells.json` holds it."""

    number: int  # for `--cell`
    name: CellName  # ENTRY/NETWORK-seedN, its folder
    task: str
    backbone: str
    seed: int
    waits_for: int | None  # the number of the cell whose weights it starts from
    needs: Needs


@dataclass(frozen=True)
class CellState:
    """Where a cell stands."""

    cell: PlannedCell
    state: State
    detail: str = ""  # for a person: what it waits for, or the last line of its error
    heartbeat: Heartbeat | None = None  # of one that runs or is stalled

    def as_plain(self) -> dict[str, Any]:
        """Its fields as plain values."""
        beat = asdict(self.heartbeat) if self.heartbeat else None
        return {**asdict(self.cell), "state": self.state, "detail": self.detail, "heartbeat": beat}


def planned_cells(cells: Iterable[Cell]) -> list[PlannedCell]:
    """Cells without their settings."""
    numbers: dict[Path | None, int] = {}
    planned = []
    for cell in cells:
        numbers[cell.directory] = cell.number
        config = cell.experiment.config
        planned.append(
            PlannedCell(
                number=cell.number,
                name=cell.name,
                task=cell.experiment.task,
                backbone=config.backbone.name,
                seed=config.seed,
                waits_for=numbers[cell.source] if cell.source else None,
                needs=cell.needs,
            )
        )
    return planned


def write_plan(cells: Iterable[Cell], output: Path) -> None:
    """Leave the plan of a study in its folder, for `sebench status` and reports."""
    text = json.dumps([asdict(cell) for cell in planned_cells(cells)], indent=1)
    path = output / files.PLAN
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        files.write_whole(path, text)  # an array's jobs all come by: once is enough


def read_plan(output: Path) -> list[PlannedCell]:
    """What `write_plan` wrote.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = output / files.PLAN
    if not path.is_file():
        raise ValueError(
            f"{output} is no folder of a study: {files.PLAN} is missing, which `sebench run` writes"
        )
    try:
        return read_typed(path, list[PlannedCell], _LARGEST_PLAN)
    except ValueError as error:
        raise ValueError(f"{path} is damaged; `sebench run` writes it anew") from error


def read_states(planned: Sequence[PlannedCell], output: Path) -> list[CellState]:
    """The state of every cell."""
    states: dict[int, CellState] = {}
    for cell in planned:
        source = None if cell.waits_for is None else states.get(cell.waits_for)
        states[cell.number] = _state(cell, source, output)
    return list(states.values())


def _state(cell: PlannedCell, source: CellState | None, output: Path) -> CellState:
    directory = output / cell.name
    if (directory / files.RECORD).is_file():
        return CellState(cell, "done")
    beat = read_heartbeat(directory)
    why = beat and _stalled(beat)
    if beat is not None and not why:
        return CellState(cell, "running", beat.stage, beat)
    failure = read_failure(output, cell.name)
    if failure is not None:  # of a process that was killed, whose heartbeat stayed, too
        last = failure.error.strip().rpartition("\n")[2]
        return CellState(cell, "failed", printable(last))
    if why:
        return CellState(cell, "stalled", why, beat)
    if source is not None and source.state != "done":
        return CellState(cell, "waiting", f"for {source.cell.name}, {source.state}")
    if (directory / files.CHECKPOINT).is_file():
        return CellState(cell, "interrupted", "goes on from its checkpoint")
    return CellState(cell, "to come")


def _stalled(beat: Heartbeat) -> str | None:
    """Why a run seems to be at work no longer; None: it is at work."""
    if beat.host == socket.gethostname() and not _is_alive(beat.pid):
        return f"its process {beat.pid} is gone; the same command goes on"
    silent = time.time() - beat.written
    if silent > STALLED_AFTER:
        return f"silent for {silent / 60:.0f} min: process {beat.pid} on {printable(beat.host)}"
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def plans_near(paths: Iterable[str | Path]) -> list[Path]:
    """The plans of the studies that some runs or folders of runs belong to."""
    folders = [folder for path in map(Path, paths) for folder in (path, *path.parents[:2])]
    return [f / files.PLAN for f in dict.fromkeys(folders) if (f / files.PLAN).is_file()]
