"""A table of the paper in its own form: what was measured, beside what was printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backbones.files import RECORD, write_whole
from tools.experiments.record import METRICS, Record, read_record
from tools.experiments.study import REPORT
from tools.references import Published, Reference, Row, judge, training_of
from tools.references.reproduce import Target, Wish, training_of_row
from tools.report import plots
from tools.report.escape import escape_markdown as e
from tools.report.escape import harmless
from tools.report.markdown import as_table, bullets, section
from tools.report.page import environment
from tools.statistics.outcomes import margin_of

# Tables that print an SE network in the row of its plain one, and curves that do.
_SIDE_BY_SIDE = ("table-2", "table-3", "table-4", "table-5", "figure-4")
_WITH_GAINS = ("table-2", "table-3")  # in brackets behind the SE network's errors
_ORIGINAL, _AGAIN, _SENET = "original", "re-implementation", "SENet"
_UNITS = {"percent": (1.0, "%"), "million": (1e6, "M"), "billion": (1e9, "G")}
SMOKE = (
    "Smoke scale: synthetic images and a few steps of training. The numbers show that these networks "
    "run; they are no results, and nothing here is compared with the paper."
)


@dataclass(frozen=True)
class Column:
    """A column of numbers."""

    group: str  # "original", "SENet", "224", ...; "" where the table has one group
    metric: str
    label: str
    unit: str  # "%", "M" or "G"


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    network: str  # as published
    published: str | None  # as printed; None at the smoke scale
    measured: float | None  # mean of the runs, in the column's unit
    sd: float | None  # of the runs, where there are several
    runs: int
    verdict: str  # reproduced, not reproduced, undecided, not comparable; "" where there is none
    reason: str
    published_gain: float | None = None  # over the plain network, points
    measured_gain: float | None = None

    def __str__(self) -> str:
        """Measured, and in brackets what was printed."""
        text = "–" if self.measured is None else f"{self.measured:.2f}"
        if self.sd is not None:
            text += f" ± {self.sd:.2f}"
        if self.measured_gain is not None:
            text += f", gain {self.measured_gain:.2f}"
        if self.published is not None:
            printed = self.published
            if self.published_gain is not None:
                printed += f", gain {self.published_gain:.2f}"
            text += f" ({printed})"
        return text


@dataclass(frozen=True)
class Line:
    """A row of the table: a cell, or None, for every column."""

    label: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Sheet:
    """The table, and what there is to say of it."""

    name: str
    title: str
    scale: str
    columns: list[Column]
    lines: list[Line]
    not_run: list[str]  # rows without a run, and why
    notes: list[str]
    curves: str | None = None  # Figure 4 as SVG

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if key != "curves"}

    def as_markdown(self) -> str:
        """The table, its verdicts, and what is missing."""
        heads = ["", *(f"{c.group} {c.label} ({c.unit})".strip() for c in self.columns)]
        rows = [[line.label, *(str(c) if c else "" for c in line.cells)] for line in self.lines]
        verdicts = self.verdicts()
        parts = [
            f"# {e(self.title)}",
            f"**{SMOKE}**" if self.scale == "smoke" else _HOW,
            _escaped_table(heads, rows),
            section("Verdicts", _escaped_table(_VERDICT_HEADS, verdicts) if verdicts else ""),
            section("Not run", bullets(self.not_run)),
            section("Notes", bullets(self.notes)),
        ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def verdicts(self) -> list[list[str]]:
        """Network, metric, measured beside printed, word and reason of every judged cell."""
        return [
            [cell.network, column.label, str(cell), cell.verdict, cell.reason]
            for line in self.lines
            for column, cell in zip(self.columns, line.cells, strict=True)
            if cell is not None and cell.verdict
        ]

    def as_page(self) -> str:
        """One HTML file that needs no other. Jinja2 escapes every text."""
        template = environment().get_template("reproduced.html")
        return template.render(
            sheet=self,
            how=SMOKE if self.scale == "smoke" else _HOW,
            heads=_VERDICT_HEADS,
        )


_HOW = "Measured, and in brackets what the paper printed; – is not measured."
_VERDICT_HEADS = ["network", "metric", "measured (printed)", "verdict", "why"]


def build_sheet(target: Target, wish: Wish, output: Path) -> Sheet:
    """The table of what is recorded under ``output``; a number without a record is a gap.

    Raises:
        ValueError: a record is damaged.
    """
    placed: dict[str, dict[tuple[str, str], Cell]] = {}
    not_run, curves = [], []
    notes = list(target.table.notes)
    for row in target.rows if wish.scale == "paper" else target.runnable:
        label, group = _place(target, row)
        runs = _runs(row, target, wish, output)
        if row not in target.runnable:
            not_run.append(f"{row.network}: of others, whose training is no recipe of this suite")
        elif len(runs) < wish.seeds:
            not_run.append(f"{row.network}: {len(runs)} of {wish.seeds} runs are recorded")
        curves += [(label, group == _SENET, run) for run in runs]
        for reference in row.references:
            cell = _cell(target, row, reference, runs, wish)
            placed.setdefault(label, {})[group, reference.metric] = cell
            notes += [f"{row.network}: {note}" for note in reference.notes]
    columns = _columns(target, placed.values())
    if target.name in _WITH_GAINS:
        for cells in placed.values():
            _add_gains(cells)
    lines = [
        Line(label, [cells.get((column.group, column.metric)) for column in columns])
        for label, cells in placed.items()
    ]
    if wish.scale == "smoke":
        notes = []  # they speak of the paper's numbers
    svg = plots.error_curves(curves) if target.name.startswith("figure") else None
    title = f"{target.where}: {target.title}"
    return Sheet(
        target.name, title, wish.scale, columns, lines, not_run, list(dict.fromkeys(notes)), svg
    )


def write_sheets(
    targets: Sequence[Target], wish: Wish, output: Path
) -> list[tuple[Sheet, list[Path]]]:
    """Write each target's table to ``output/report`` as a page, Markdown and JSON."""
    written = []
    for target in targets:
        sheet = build_sheet(target, wish, output)
        name = sheet.name if wish.scale == "paper" else f"smoke-{sheet.name}"
        files = {
            output / REPORT / f"{name}.html": sheet.as_page(),
            output / REPORT / f"{name}.md": sheet.as_markdown(),
            output / REPORT / f"{name}.json": json.dumps(sheet.as_plain(), indent=1) + "\n",
        }
        (output / REPORT).mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_whole(path, text)
        written.append((sheet, list(files)))
    return written


# Parts -------------------------------------------------------------------------------------------


def _place(target: Target, row: Row) -> tuple[str, str]:
    """In which row and group of columns the paper printed a network."""
    name = row.network
    if target.name in _SIDE_BY_SIDE:
        if name.endswith(f" ({_ORIGINAL})"):
            return name.removesuffix(f" ({_ORIGINAL})"), _ORIGINAL
        if name.startswith("SE-"):
            return name.removeprefix("SE-"), _SENET
        return name, _ORIGINAL if target.name in ("table-4", "table-5") else _AGAIN
    label, found, side = name.rpartition(" at ")
    if found and target.name == "table-8":
        return label, side if side == "224" else "320 or 299"
    return name, ""


def _runs(row: Row, target: Target, wish: Wish, output: Path) -> list[Record]:
    if row not in target.runnable:
        return []
    training = training_of_row(row, target.table, wish)
    paths = [output / training.directory(seed) / RECORD for seed in range(wish.seeds)]
    return [harmless(read_record(path)) for path in paths if path.is_file()]


def _cell(
    target: Target, row: Row, reference: Reference, runs: Sequence[Record], wish: Wish
) -> Cell:
    scale, _ = _UNITS[reference.unit]
    values = [value for run in runs if (value := _value(run, reference.metric)) is not None]
    measured = statistics.fmean(values) / scale if values else None
    sd = statistics.stdev(values) / scale if len(values) > 1 else None
    word = reason = ""
    if wish.scale == "paper" and runs and reference.metric in METRICS:
        published = Published(target.table, row, reference)
        trained = [training_of(run, {}) for run in runs]
        verdict = judge(runs, published, margin_of(reference.metric), trained)
        word, reason = verdict.word, verdict.reason
    printed = reference.printed if wish.scale == "paper" else None
    costs = reference.metric not in METRICS
    return Cell(row.network, printed, measured, None if costs else sd, len(values), word, reason)


def _value(run: Record, metric: str) -> float | None:
    if metric in METRICS:
        found = run.metrics.get(metric)
        return found.value if found else None
    return float(getattr(run.cost, metric))


def _columns(target: Target, placed: Iterable[dict[tuple[str, str], Cell]]) -> list[Column]:
    filled = {key for cells in placed for key in cells}
    references = [r for row in target.rows for r in row.references]
    units = {r.metric: _UNITS[r.unit][1] for r in references}
    order = (_ORIGINAL, _AGAIN, _SENET)
    groups = sorted(
        dict.fromkeys(group for group, _ in filled),
        key=lambda group: (order.index(group) if group in order else 0, group),
    )
    return [
        Column(group, metric, _label(metric), units[metric])
        for group in groups
        for metric in units
        if (group, metric) in filled
    ]


def _label(metric: str) -> str:
    return METRICS[metric].label if metric in METRICS else metric.replace("_", "-")


def _add_gains(cells: dict[tuple[str, str], Cell]) -> None:
    """What SE takes off each error of its plain network, as the paper has it in brackets."""
    for (group, metric), cell in list(cells.items()):
        plain = cells.get((_AGAIN, metric))
        if group != _SENET or plain is None or metric not in METRICS:
            continue
        gains: dict[str, Any] = {}
        if plain.published is not None and cell.published is not None:
            gains["published_gain"] = float(plain.published) - float(cell.published)
        if plain.measured is not None and cell.measured is not None:
            gains["measured_gain"] = plain.measured - cell.measured
        cells[group, metric] = replace(cell, **gains)


def _escaped_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return as_table([e(head) for head in heads], ([e(text) for text in row] for row in rows))
