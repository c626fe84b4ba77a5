"""The table as Markdown, CSV, JSON, LaTeX and the model-index block of a model card."""

from __future__ import annotations

import csv
import dataclasses
import io
from importlib import resources
from typing import Any

import msgspec
import yaml

from backbones.result import Dataset
from tools.experiments.record import METRICS
from tools.experiments.tasks import TASKS
from tools.report import wording
from tools.report.comparison import Comparison, MetricRow
from tools.report.escape import escape_csv, escape_latex, escape_markdown
from tools.report.published import ReferenceRow
from tools.report.table import Table
from tools.statistics import Difference, Variation

SCHEMA = "report.schema.json"
_MARKDOWN_REFERENCES, _MARKDOWN_RUNS = 200, 500
_READABLE = 500  # runs


def as_json(table: Table) -> str:
    """Everything, as ``report.schema.json`` describes it."""
    candidate = wording.candidate_word(table)
    content = {
        "$schema": SCHEMA,
        "schema": 1,
        "headline": wording.headline(table),
        "synthetic": table.synthetic,
        "comparisons": [_comparison(comparison) for comparison in table.comparisons],
        "across": [
            {**vars(found), "sentence": wording.across_sentence(found, candidate)}
            for found in table.across
        ],
        "runs": [
            {
                "directory": str(run.record.directory),
                "network": run.network,
                "variant": run.variant,
                "task": run.record.task,
                "dataset": _dataset(run.record.dataset),
                "seed": run.record.seed,
                "experiment": run.record.hash,
                "condition": run.record.comparison_hash,
                "metrics": run.record.metrics,
                "cost": run.record.cost,
                "paired": run.paired,
                "why_not_paired": run.why_not,
                "references": run.references,
            }
            for run in table.runs
        ],
        "skipped": list(table.warnings),
        "methods": list(wording.METHODS),
    }
    text = msgspec.json.encode(content)
    if len(table.runs) <= _READABLE:
        text = msgspec.json.format(text, indent=1)
    return text.decode() + "\n"


def schema() -> str:
    return (resources.files("tools.report") / SCHEMA).read_text("utf-8")


def differences_csv(table: Table) -> str:
    """One row a pair and metric."""
    rows = []
    for c in table.comparisons:
        for row in c.metrics:
            found = row.difference
            rows.append(
                {
                    "task": c.task,
                    "dataset": c.dataset,
                    "images": c.images,
                    "synthetic": c.synthetic,
                    "protocol": c.protocol,
                    "recipe": c.recipe,
                    "variant": c.variant,
                    "candidate_network": c.candidate,
                    "plain_network": c.plain,
                    "seeds": " ".join(map(str, c.seeds)),
                    "metric": row.name,
                    "unit": row.unit,
                    "higher_is_better": row.higher_is_better,
                    "headline": row.headline,
                    "plain": found.plain,
                    "candidate": found.candidate,
                    "plain_sd": found.plain_sd,
                    "candidate_sd": found.candidate_sd,
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "gain": row.gain,
                    "p_value": found.p_value,
                    "p_holm": row.p_holm,
                    "verdict": row.verdict,
                    "margin": row.outcome.margin,
                    "about": "these weights" if row.outcome.about_weights else "the networks",
                    "detectable": found.detectable,
                    "compatible": found.compatible,
                    **_on_these_images(found),
                    "seed_sd": found.seed_sd,
                    "churn_sd": found.churn_sd,
                    "image_sd": found.image_sd,
                    "interval_method": found.interval_method,
                    "p_value_method": found.p_value_method,
                    **{f"effect_{name}": value for name, value in row.effects.items()},
                    "marks": "; ".join(c.marks),
                    "not_counted": "; ".join(c.not_counted),
                    "reason": found.reason,
                }
            )
    return _csv(rows)


def runs_csv(table: Table) -> str:
    """One row a run and metric."""
    rows = []
    for run in table.runs:
        record = run.record
        for name, metric in record.metrics.items():
            rows.append(
                {
                    "task": record.task,
                    "dataset": record.dataset.name,
                    "split": record.dataset.split,
                    "synthetic": record.synthetic,
                    "protocol": record.protocol.name,
                    "recipe": record.experiment.recipe,
                    "variant": run.variant,
                    "network": run.network,
                    "is_se": record.backbone.is_se,
                    "seed": record.seed,
                    "metric": name,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "value": metric.value,
                    "n": metric.n,
                    "reason": metric.reason,
                    "parameters": record.cost.parameters,
                    "multiply_adds": record.cost.multiply_adds,
                    "train_seconds": record.timing.train_seconds,
                    "evaluate_images_per_second": record.timing.evaluate_images_per_second,
                    "commit": record.git.commit,
                    "experiment": record.hash,
                    "paired": run.paired,
                    "why_not_paired": run.why_not,
                }
            )
    return _csv(rows)


def as_markdown(table: Table, title: str) -> str:
    e = escape_markdown
    lines = [f"# {e(title)}", "", f"**{e(wording.headline(table))}**", ""]
    if lede := wording.lede(table):
        lines += [f"{e(lede)}.", ""]
    if table.synthetic:
        lines += [
            "Numbers marked *synthetic* come from synthetic images: not real results.",
            "",
        ]
    if table.comparisons:
        lines += [
            "| Benchmark | Candidate | Plain | Metric | Plain % | Candidate % | Difference |"
            " 95 % interval | On these images | p (Holm) | Verdict | Parameters | Multiply-adds |"
            " Seeds |",
            "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|",
        ]
    for c in table.comparisons:
        row, found = c.headline, c.headline.difference
        made = " *synthetic*" if c.synthetic else ""
        cells = [
            f"{e(c.benchmark)}{made}",
            e(c.candidate),
            e(c.plain),
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
            str(len(c.seeds)) if len(c.seeds) > 1 else "1 only",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    marked = [
        (c, (*c.marks, *filter(None, [c.headline.difference.reason]))) for c in table.comparisons
    ]
    notes = [
        f"- {e(c.benchmark)}, {e(c.candidate)}: {e('; '.join(texts))}."
        for c, texts in marked
        if texts
    ]
    if notes:
        lines += ["", *notes]
    candidate = wording.candidate_word(table)
    lines += [f"\n{e(wording.across_sentence(found, candidate))}" for found in table.across]
    references = [row for c in table.comparisons for row in c.references]
    references += [row for run in table.runs for row in run.references]
    if references:
        lines += ["", "## Published numbers", "", *_markdown_references(references)]
    lines += ["", "## Runs", "", "| Network | Data | Recipe | Seed | Metric | % | In a pair |"]
    lines.append("|---|---|---|--:|---|--:|---|")
    for run in table.runs[:_MARKDOWN_RUNS]:
        record = run.record
        name, metric = next(iter(record.metrics.items()))
        made = " *synthetic*" if record.synthetic else ""
        value = (
            wording.number(metric.value) if metric.value is not None else f"– ({e(metric.reason)})"
        )
        paired = "yes" if run.paired else f"no: {e(run.why_not)}"
        data = f"{e(record.dataset.name)} {e(record.dataset.split)}{made}"
        data += f" ({e(run.variant)})" if run.variant else ""
        lines.append(
            f"| {e(run.network)} | {data} | {e(record.experiment.recipe)} | {record.seed} |"
            f" {METRICS[name].label} | {value} | {paired} |"
        )
    if len(table.runs) > _MARKDOWN_RUNS:
        lines += ["", f"{len(table.runs) - _MARKDOWN_RUNS} more runs are in runs.csv."]
    if table.warnings:
        lines += ["", "## Skipped", "", *(f"- {e(text)}" for text in table.warnings)]
    lines += [
        "",
        "## How these numbers were made",
        "",
        *(f"- {text}" for text in wording.METHODS),
        "",
    ]
    return "\n".join(lines)


def as_latex(table: Table) -> str:
    """A booktabs table of the headline differences: ``\\\\usepackage{booktabs}``."""
    e = escape_latex
    candidate = wording.candidate_word(table)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lllrrrrlrr}",
        r"\toprule",
        f"Benchmark & Network & Metric & Plain & {candidate} & Difference (95\\,\\%) & $p$ & Outcome &"
        r" Params & Mult-adds \\",
        r"\midrule",
    ]
    for c in table.comparisons:
        row, found = c.headline, c.headline.difference
        p_value = wording.p_text(row.p_holm)
        difference = f"{wording.signed(found.difference)} {wording.interval(found.low, found.high)}"
        cells = [
            e(c.benchmark) + (r"$^{\dagger}$" if c.synthetic else ""),
            e(c.candidate),
            e(row.label) + (r" $\uparrow$" if row.higher_is_better else r" $\downarrow$"),
            _latex_number(wording.number(found.plain)),
            _latex_number(wording.number(found.candidate)),
            _latex_number(difference.strip()) + (r"$^{1}$" if len(c.seeds) == 1 else ""),
            f"${p_value}$" if p_value != "–" else "--",
            e(row.outcome.word) + _latex_mark(row),
            _latex_number(wording.more(c.costs["parameters"])),
            _latex_number(wording.more(c.costs["multiply_adds"])),
        ]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = ["In percent; arrows point to better; $p$ after Holm's correction."]
    if any(len(c.seeds) == 1 for c in table.comparisons):
        notes.append("$^{1}$One seed: about these weights, not about the networks.")
    for c in table.comparisons:
        phrase = c.headline.outcome.phrase
        if phrase != c.headline.verdict:
            notes.append(f"{e(c.candidate)}, {e(c.benchmark)}: {_latex_phrase(e(phrase))}.")
    if table.synthetic:
        notes.append(r"$^{\dagger}$Synthetic data: not real results.")
    notes += [
        f"Unequal twins ({e(c.candidate)}, {e(c.benchmark)}): {e('; '.join(c.pair.unequal))}."
        for c in table.comparisons
        if c.unequal
    ]
    return "\n".join([*lines, r"\par\footnotesize " + " ".join(notes), ""])


def as_model_index(table: Table) -> str:
    """A ``model-index`` block for the card of each candidate, in the Hugging Face form."""
    models: dict[str, list[dict[str, Any]]] = {}
    for c in table.comparisons:
        made = " (synthetic data)" if c.synthetic else ""
        metrics = [
            {
                "type": {"top1_accuracy": "accuracy"}.get(row.name, row.name),
                "name": row.label,
                "value": round(row.difference.candidate, 4),
                "verified": False,
            }
            for row in c.metrics
            if row.difference.candidate is not None
        ]
        result = {
            "task": {"type": TASKS[c.task].hub_name, "name": TASKS[c.task].label},
            "dataset": {
                "type": c.pair.candidate[0].dataset.name,
                "name": f"{c.benchmark}{made}",
                "split": c.pair.candidate[0].dataset.split,
                "args": {"images": c.images, "protocol": c.protocol, "seeds": list(c.seeds)},
            },
            "metrics": metrics,
        }
        models.setdefault(c.candidate, []).append(result)
    index = [{"name": name, "results": results} for name, results in models.items()]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of libyaml, where there is one
    text = yaml.dump({"model-index": index}, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def _comparison(c: Comparison) -> dict[str, Any]:
    simple = (
        "key", "task", "dataset", "images", "synthetic", "protocol", "recipe", "plain",
        "candidate", "seeds", "marks", "not_counted", "variant", "unequal", "class_metric", "cost_scope",
    )  # fmt: skip
    return {
        **{name: getattr(c, name) for name in simple},
        "sentence": wording.verdict_sentence(c),
        "experiments": {
            "plain": [record.hash for record in c.pair.plain],
            "candidate": [record.hash for record in c.pair.candidate],
        },
        "metrics": [_metric(row) for row in c.metrics],
        "classes": c.classes,
        "variation": _variation(c.variation),
        "costs": {
            name: {"plain": plain, "candidate": candidate}
            for name, (plain, candidate) in c.costs.items()
        },
        "errors": {
            kind: {"plain": plain, "candidate": candidate}
            for kind, (plain, candidate) in c.tide.items()
        },
        "references": c.references,
    }


def _dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        key: getattr(dataset, key) for key in ("name", "split", "images", "classes", "synthetic")
    }


def _on_these_images(found: Difference) -> dict[str, float | None]:
    here = found.on_these_images
    names = ("low", "high", "p_value")
    return {f"{name}_these_images": getattr(here, name) if here else None for name in names}


def _metric(row: MetricRow) -> dict[str, Any]:
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    outcome = {**vars(row.outcome), "phrase": row.outcome.phrase}
    return {**fields, "outcome": outcome, "verdict": row.verdict}


def _variation(found: Variation | None) -> dict[str, float] | None:
    keys = ("q", "p_value", "mean", "sd")
    return None if found is None else {key: getattr(found, key) for key in keys}


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: escape_csv(value) for name, value in row.items()})
    return buffer.getvalue()


def _markdown_references(rows: list[ReferenceRow]) -> list[str]:
    e = escape_markdown
    lines = [
        "| Network | Published as | Metric | Published | Measured | Verdict | Mark |",
        "|---|---|---|--:|--:|---|---|",
    ]
    for row in rows[:_MARKDOWN_REFERENCES]:
        lines.append(
            f"| {e(row.network)} | {e(row.published_network)}, {e(row.where)} |"
            f" {METRICS[row.metric].label} | {row.printed} |"
            f" {wording.number(row.measured)} | **{row.verdict}**: {e(row.reason)} | {row.mark} |"
        )
    notes = dict.fromkeys((row.where, note) for row in rows for note in row.notes)
    return [*lines, "", *(f"- {e(where)}: {e(note)}" for where, note in notes)]


def _latex_mark(row: MetricRow) -> str:
    return r"$^{1}$" if row.outcome.about_weights else ""


def _latex_phrase(text: str) -> str:
    return text.replace("±", r"$\pm$")


def _latex_number(text: str) -> str:
    return (
        text.replace("\u00a0", " ")
        .replace("−", "$-$")
        .replace("–", "--")
        .replace("%", r"\,\%")
        .replace(" \\,", r"\,")
    )
