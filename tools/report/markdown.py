"""The table as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
        _rows([_pair(c) for c in table.comparisons]),
        _notes(table),
        _scores(table.comparisons),
        section(
            "Captions",
            bullets(f"{c.candidate}, {c.plain}: {c.caption}" for c in table.comparisons),
        ),
        _published(references) if references else "",
        _runs(table.runs),
        *(_plan(plan) for plan in table.plans),
        section("More than once", bullets(r.text for r in table.repeats[:_REFERENCES])),
        section("Left out", bullets(table.skipped)),
        section("How these numbers were made", "\n".join(f"- {text}" for text in table.methods)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _head(table: Table, title: str) -> str:
    lines = [f"# {e(title)}", f"**{e(table.headline)}**"]
    if lede := wording.lede(table.comparisons):
        lines.append(f"{e(lede)}.")
    if table.synthetic:
        lines.append("Numbers marked *synthetic* come from synthetic images: not real results.")
    return "\n\n".join(lines)


def _pair(c: Comparison) -> dict[str, str]:
    row, found = c.headline, c.headline.difference
    return {
        "Benchmark": e(c.benchmark) + (_MADE if c.synthetic else ""),
        "Candidate": e(c.candidate),
        "Plain": e(f"{c.plain}, at {c.at}" if c.at else c.plain),
        "Metric": f"{e(row.label)}, {'higher' if row.higher_is_better else 'lower'} is better",
        "Plain %:": wording.number(found.plain),
        "Candidate %:": wording.number(found.candidate),
        "Difference:": f"{wording.signed(found.difference)} ({wording.change_in_words(row)})",
        "95 % interval:": wording.interval(found.low, found.high) or "–",
        "On these images:": e(wording.these_images(found)) or "–",
        "p (Holm):": e(wording.p_text(row.p_holm)),
        "Verdict": row.outcome.phrase + (", these weights" if row.outcome.about_weights else ""),
        "Parameters:": wording.more(c.costs["parameters"]),
        "Multiply-adds:": wording.more(c.costs["multiply_adds"]),
        "Latency:": wording.ratio_in_words(c.measured.latency) if c.measured else "–",
        "Seeds:": str(len(c.seeds)) if len(c.seeds) > 1 else "1 only",
    }


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
    rows = [
        {
            "Benchmark": e(row.benchmark),
            "Network": e(row.candidate),
            "Interval, planned:": f"± {wording.number(row.half_width_planned)}",
            "80 % of studies:": wording.planned_range(row.half_width_range),
            "found:": "–" if row.half_width is None else f"± {wording.number(row.half_width)}",
            "Seconds, planned:": wording.number(row.seconds_planned),
            "taken:": wording.number(row.seconds),
        }
        for row in plan.rows
    ]
    return section("Planned and found", "\n\n".join(filter(None, [e(plan.sentence), _rows(rows)])))


def _scores(comparisons: Sequence[Comparison]) -> str:
    """Losses of probabilities, lower is better; without a word, for nothing is corrected."""
    rows = [
        {
            "Benchmark": e(c.benchmark),
            "Networks": f"{e(c.candidate)}, {e(c.plain)}",
            "Loss": f"{score.label}, {score.unit}",
            "Plain:": wording.number(score.difference.plain, 4),
            "Candidate:": wording.number(score.difference.candidate, 4),
            "Difference:": wording.signed(score.difference.difference, 4),
            "95 % interval:": wording.interval(score.difference.low, score.difference.high, 4)
            or "–",
        }
        for c in comparisons
        for score in c.scores
    ]
    return section("Probabilities", _rows(rows))


def _published(references: Sequence[ReferenceRow]) -> str:
    rows = [
        {
            "Network": e(row.network),
            "Published as": f"{e(row.published_network)}, {e(row.where)}",
            "Metric": METRICS[row.metric].label,
            "Published:": row.printed,
            "Measured:": wording.number(row.measured),
            "Verdict": f"**{row.verdict}**: {e(row.reason)}",
            "Mark": row.mark,
        }
        for row in references[:_REFERENCES]
    ]
    notes = dict.fromkeys(f"{row.where}: {note}" for row in references for note in row.notes)
    return section("Published numbers", f"{_rows(rows)}\n\n{bullets(notes)}")


def _runs(runs: Sequence[Run]) -> str:
    text = _rows([_run(run) for run in runs[:_RUNS]])
    if len(runs) > _RUNS:
        text += f"\n\n{len(runs) - _RUNS} more runs are in runs.csv."
    return section("Runs", text)


def _run(run: Run) -> dict[str, str]:
    name, metric = next(iter(run.metrics.items()))
    made = _MADE if run.record.synthetic else ""
    variant = f" ({e(run.variant)})" if run.variant else ""
    value = wording.number(metric.value)
    return {
        "Network": e(run.network),
        "Data": f"{e(run.dataset.name)} {e(run.dataset.split)}{made}{variant}",
        "Recipe": e(run.record.experiment.recipe),
        "Seed:": str(run.seed),
        "Metric": METRICS[name].label,
        "%:": value if metric.value is not None else f"{value} ({e(metric.reason)})",
        "In a pair": "yes" if run.paired else f"no: {e(run.why_not_paired)}",
    }


def _rows(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of rows by their headings; nothing of none."""
    return as_table(list(rows[0]), (list(row.values()) for row in rows)) if rows else ""


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped already; a heading that ends in ":" is of numbers."""
    rules = ["--:" if head.endswith(_NUMBER) else "---" for head in heads]
    lines = [[head.removesuffix(_NUMBER) for head in heads], rules, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(texts: Iterable[str]) -> str:
    """A list of texts, escaped; nothing of none."""
    return "\n".join(f"- {e(text)}" for text in texts)


def section(title: str, text: str) -> str:
    """Text under a heading; nothing where there is none."""
    return f"## {title}\n\n{text}" if text else ""
