"""What the command line prints: tables, a record, the progress of a study."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from backbones.config import flatten
from tools.experiments.record import METRICS, Record
from tools.experiments.status import CellState, PlannedCell, planned_cells, read_states
from tools.experiments.tasks import TASKS

if TYPE_CHECKING:
    from tools.experiments.cells import Outcome
    from tools.experiments.study import Cell


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of rows that have the same keys; columns of nothing are left out."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    empty: tuple[Any, ...] = (None, "", [], {})
    keys = [key for key in rows[0] if any(row[key] not in empty for row in rows)] if rows else []
    keys = [key for key in keys if key != "path"]  # for programs: --json has it
    for key in keys:
        number = any(type(row[key]) in (int, float) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(_plain(row[key])) for key in keys))
    _stdout().print(table)


def print_record(record: Record) -> None:
    """A run's metrics and costs, and what they were measured by."""
    from tools.report.sharing import protocol_line  # needs NumPy

    network = f"{record.backbone.name} on {record.dataset.name} {record.dataset.split}"
    made = ", synthetic data" if record.synthetic else ""
    print(f"{network} ({record.dataset.images:,} images{made}), {record.protocol.name}")
    values = {name: metric.value for name, metric in record.metrics.items()}
    print_metrics(values, {n: m.reason for n, m in record.metrics.items() if m.reason})
    print(f"recorded in {record.directory}; for a caption:")
    print(protocol_line([record]))


def print_metrics(values: Mapping[str, float | None], missing: Mapping[str, str]) -> None:
    """Metrics with their labels and units, and why others are missing."""
    table = Table.grid("", Column(justify="right"), Column(style="dim"), padding=(0, 2))
    for name, value in values.items():
        kind = METRICS.get(name)
        shown = "-" if value is None else f"{value:.2f} %"
        note = missing.get(name) or (kind.label if kind else "")
        table.add_row(name, shown, escape(note))
    _stdout().print(table)


def print_nested(content: Mapping[str, Any]) -> None:
    """A line for every value, by its dotted name."""
    table = Table.grid(Column(style="bold"), "", padding=(0, 2))
    for key, value in flatten(content).items():
        table.add_row(key, escape(_plain(value)))
    _stdout().print(table)


def print_plan(cells: list[Cell]) -> None:
    """The cells of a study, a row each."""
    rows = [
        {
            "experiment": cell.entry,
            "task": cell.experiment.task,
            "backbone": config.backbone.name,
            "options": config.backbone.options,
            "data": config.data.name,
            "seed": str(config.seed),
            "status": cell.status(),
        }
        for cell in cells
        for config in [cell.experiment.config]
    ]
    print_rows(rows)
    waiting = sum(row["status"] != "recorded" for row in rows)
    print(f"{len(rows)} runs, {waiting} to run")


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """What forbids networks to run, a line for each reason."""
    lines = []
    for text in dict.fromkeys(missing.values()):
        names = [name for name in missing if missing[name] == text]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"missing for {', '.join(names[:2])}{more}: {text}")
    return lines


class StudyDisplay(Live):
    """Lines for what has ended; below them, on a terminal, how far the running cells are."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._planned: dict[str, PlannedCell] = {}
        self._running: dict[str, PlannedCell] = {}
        self._total = self._count = 0
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        super().__init__(
            console=console,
            auto_refresh=console.is_terminal,
            refresh_per_second=1,
            transient=True,
        )

    def get_renderable(self) -> Group:
        """The table of `sebench status`, of the running cells alone."""
        states = read_states(list(self._running.values()), self._output)
        return _state_table(states, limit=max(5, self.console.height - 6)) if states else Group()

    def say(self, text: str) -> None:
        """A line above what is running."""
        self.console.print(escape(text))

    def begin(self, cells: Sequence[Cell], all_cells: Sequence[Cell]) -> None:
        """Say how many runs there are, of all of the study, and count them."""
        self._total = len(cells)
        self._planned = {cell.name: cell for cell in planned_cells(all_cells)}
        self.say(f"{len(cells)} runs; what they print is in {self._output / 'logs'}")

    def started(self, cell: Cell) -> None:
        """Show how far it is."""
        self._running[cell.name] = self._planned[cell.name]

    def ended(self, outcome: Outcome) -> None:
        """Say what came of it."""
        self._count += 1
        self._running.pop(outcome.cell.name, None)
        label = f"{self._count}/{self._total}  {escape(outcome.cell.label)}"
        if outcome.record is None:
            self.console.print(f"[red]failed[/]  {label}: {escape(outcome.error or '')}")
        elif outcome.skipped:
            self.console.print(f"[dim]there  {label}[/]")
        else:
            numbers = escape(headline(outcome.record))
            self.console.print(f"[green]done[/]  {label}  {numbers}  {outcome.seconds:.0f} s")


_PAUSE = 2.0  # seconds between looks


def watch_states(look: Callable[[], list[CellState]], watch: bool) -> None:
    """Show where the cells of a study stand: once, or again and again until nothing is left."""
    console = _stdout()
    if not watch:
        console.print(_state_table(look(), limit=None))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            states = look()
            live.update(_state_table(states, limit=max(5, console.height - 6)), refresh=True)
            if not any(state.state in ("running", "to come", "waiting") for state in states):
                return
            time.sleep(_PAUSE)


# What a person looks for first.
_URGENT = ("failed", "stalled", "running", "interrupted", "waiting", "to come", "done")
_COLORS = {"failed": "red", "stalled": "yellow", "running": "cyan", "done": "green"}


def _state_table(states: Sequence[CellState], limit: int | None) -> Group:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "cell", "state", "progress", "images/s", "left", ""):
        numeric = name in ("progress", "images/s", "left")
        table.add_column(name, justify="right" if numeric else "left")
    ordered = sorted(states, key=lambda state: _URGENT.index(state.state)) if limit else states
    for state in ordered[:limit]:
        beat = state.heartbeat
        share = f"{beat.step:,}/{beat.total:,}" if beat and beat.total else ""
        rate = f"{beat.images_per_second:,.0f}" if beat and beat.images_per_second else ""
        running = beat is not None and state.state == "running"
        left = beat.seconds_left if beat is not None and running else None
        color = _COLORS.get(state.state, "default")
        table.add_row(
            f"[dim]{state.cell.number}[/]",
            escape(state.cell.name),
            f"[{color}]{state.state}[/]",
            share,
            rate if running else "",
            "" if left is None else str(timedelta(seconds=round(left))),
            escape(state.detail),
        )
    counts: Counter[str] = Counter(state.state for state in states)
    parts = [f"{counts[name]:,} {name}" for name in _URGENT if counts[name]]
    more = f"; {len(states) - limit:,} cells not shown" if limit and len(states) > limit else ""
    return Group(table, Text(f"{len(states):,} cells: {', '.join(parts)}{more}"))


def headline(record: Record) -> str:
    """The numbers a task is known by, e.g. 'AP 61.2, AP50 84.0'."""
    parts = []
    for name in TASKS[record.task].headline:
        metric = record.metrics.get(name)
        if metric is not None and metric.value is not None:
            label = METRICS[name].label if name.startswith("top") else name
            parts.append(f"{label} {metric.value:.1f}")
    return ", ".join(parts)


def _stdout() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a file or a pipe has no width: keep rows whole
    return console


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
