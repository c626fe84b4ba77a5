"""The table as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tools.experiments.record import METRICS
from tools.report import wording
from tools.report.comparison import Comparison
from tools.report.escape import escape_markdown as e
from tools.report.planned import FixedPlan
from tools.report.published import ReferenceRow
from tools.report.table import Run, Table, published_rows

_REFERENCES, _RUNS = 200, 500  # rows; the CSV and JSON files hold all
_MADE = " *synthetic*"
_NUMBER = ":"  # at the end of a heading: a column of numbers, to the right


def as_markdown(table: Table, title: str) -> str:
    """Write the headline, the pairs, published numbers, every run, and how numbers were made."""
    references = published_rows(table)
    sections = [
        _head(table, title),
        _pairs(table.comparisons),
        _notes(table),
        _scores(table.comparisons),
        _section("Captions", _captions(table.comparisons)) if table.comparisons else "",
        _published(references) if references else "",
        _runs(table.runs),
        *(_plan(plan) for plan in table.plans),
        _section("More than once", _bullets(r.text for r in table.repeats[:_REFERENCES]))
        if table.repeats
        else "",
        _section("Left out", _bullets(table.skipped)) if table.skipped else "",
        _section("How these numbers were made", "\n".join(f"- {text}" for text in table.methods)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _head(table: Table, title: str) -> str:
    lines = [f"# {e(title)}", f"**{e(table.headline)}**"]
    if lede := wording.lede(table.comparisons):
        lines.append(f"{e(lede)}.")
    if table.synthetic:
        lines.append("Numbers marked *synthetic* come from synthetic images: not real results.")
    return "\n\n".join(lines)


def _pairs(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    heads = [
        "Benchmark", "Candidate", "Plain", "Metric", "Plain %:", "Candidate %:", "Difference:",
        "95 % interval:", "On these images:", "p (Holm):", "Verdict", "Parameters:",
        "Multiply-adds:", "Latency:", "Seeds:",
    ]  # fmt: skip
    return as_table(heads, [_pair(c) for c in comparisons])


def _pair(c: Comparison) -> list[str]:
    row, found = c.headline, c.headline.difference
    return [
        e(c.benchmark) + (_MADE if c.synthetic else ""),
        e(c.candidate),
        e(f"{c.plain}, at {c.at}" if c.at else c.plain),
        f"{e(row.label)}, {'higher' if row.higher_is_better else 'lower'} is better",
        wording.number(found.plain),
        wording.number(found.candidate),
        f"{wording.signed(found.difference)} ({wording.change_in_words(row)})",
        wording.interval(found.low, found.high) or "–",
        e(wording.these_images(found)) or "–",
        e(wording.p_text(row.p_holm)),
        row.outcome.phrase + (", these weights" if row.outcome.about_weights else ""),
        wording.more(c.costs["parameters"]),
        wording.more(c.costs["multiply_adds"]),
        wording.ratio_in_words(c.measured.latency) if c.measured else "–",
        str(len(c.seeds)) if len(c.seeds) > 1 else "1 only",
    ]


def _notes(table: Table) -> str:
    """Marks of the pairs, and what holds over several data sets."""
    lines = []
    for c in table.comparisons:
        reason = c.headline.difference.reason
        if texts := [*c.marks, *([reason] if reason else [])]:
            lines.append(f"- {e(c.benchmark)}, {e(c.candidate)}: {e('; '.join(texts))}.")
    across = [e(found.sentence) for found in table.across]
    return "\n\n".join(filter(None, ["\n".join(lines), *across]))


def _plan(plan: FixedPlan) -> str:
    heads = [
        "Benchmark",
        "Network",
        "Interval, planned:",
        "80 % of studies:",
        "found:",
        "Seconds, planned:",
        "taken:",
    ]
    cells = [
        [
            e(row.benchmark),
            e(row.candidate),
            f"± {wording.number(row.half_width_planned)}",
            wording.planned_range(row.half_width_range),
            "–" if row.half_width is None else f"± {wording.number(row.half_width)}",
            wording.number(row.seconds_planned),
            wording.number(row.seconds),
        ]
        for row in plan.rows
    ]
    table = f"\n\n{as_table(heads, cells)}" if cells else ""
    return _section("Planned and found", e(plan.sentence) + table)


def _scores(comparisons: Sequence[Comparison]) -> str:
    """Losses of probabilities, lower is better; without a word, for nothing is corrected."""
    heads = [
        "Benchmark",
        "Networks",
        "Loss",
        "Plain:",
        "Candidate:",
        "Difference:",
        "95 % interval:",
    ]
    cells = [
        [
            e(c.benchmark),
            f"{e(c.candidate)}, {e(c.plain)}",
            f"{score.label}, {score.unit}",
            wording.number(score.difference.plain, 4),
            wording.number(score.difference.candidate, 4),
            wording.signed(score.difference.difference, 4),
            wording.interval(score.difference.low, score.difference.high, 4) or "–",
        ]
        for c in comparisons
        for score in c.scores
    ]
    return _section("Probabilities", as_table(heads, cells)) if cells else ""


def _captions(comparisons: Sequence[Comparison]) -> str:
    """What each number of a pair was measured by, in a line that fits a caption."""
    return _bullets(f"{c.candidate}, {c.plain}: {c.caption}" for c in comparisons)


def _published(rows: Sequence[ReferenceRow]) -> str:
    heads = ["Network", "Published as", "Metric", "Published:", "Measured:", "Verdict", "Mark"]
    cells = [
        [
            e(row.network),
            f"{e(row.published_network)}, {e(row.where)}",
            METRICS[row.metric].label,
            row.printed,
            wording.number(row.measured),
            f"**{row.verdict}**: {e(row.reason)}",
            row.mark,
        ]
        for row in rows[:_REFERENCES]
    ]
    notes = dict.fromkeys(f"{row.where}: {note}" for row in rows for note in row.notes)
    return _section("Published numbers", f"{as_table(heads, cells)}\n\n{_bullets(notes)}")


def _runs(runs: Sequence[Run]) -> str:
    heads = ["Network", "Data", "Recipe", "Seed:", "Metric", "%:", "In a pair"]
    text = as_table(heads, [_run(run) for run in runs[:_RUNS]])
    if len(runs) > _RUNS:
        text += f"\n\n{len(runs) - _RUNS} more runs are in runs.csv."
    return _section("Runs", text)


def _run(run: Run) -> list[str]:
    record = run.record
    name, metric = next(iter(record.metrics.items()))
    data = f"{e(record.dataset.name)} {e(record.dataset.split)}"
    data += _MADE if record.synthetic else ""
    data += f" ({e(run.variant)})" if run.variant else ""
    value = wording.number(metric.value)
    return [
        e(run.network),
        data,
        e(record.experiment.recipe),
        str(record.seed),
        METRICS[name].label,
        value if metric.value is not None else f"{value} ({e(metric.reason)})",
        "yes" if run.paired else f"no: {e(run.why_not_paired)}",
    ]


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped already; a heading that ends in ":" is of numbers."""
    rules = ["--:" if head.endswith(_NUMBER) else "---" for head in heads]
    lines = [[head.removesuffix(_NUMBER) for head in heads], rules, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {e(text)}" for text in texts)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"
