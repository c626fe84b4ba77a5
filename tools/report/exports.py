"""The table as CSV, LaTeX and the model-index block of a model card."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

import yaml

from tools.experiments.measured import RATIOS, Ratio
from tools.experiments.record import METRICS
from tools.experiments.tasks import TASKS
from tools.report import wording
from tools.report.comparison import Comparison, MetricRow
from tools.report.escape import escape_csv, escape_latex
from tools.report.table import Table, published_rows
from tools.statistics.published import NOT_COMPARABLE


def differences_csv(table: Table) -> str:
    """One row a pair and metric."""
    return _csv([_difference_row(c, row) for c in table.comparisons for row in c.metrics])


def _difference_row(c: Comparison, row: MetricRow) -> dict[str, Any]:
    found, here = row.difference, row.difference.on_these_images
    return {
        **_picked(c, "task dataset images synthetic protocol recipe variant"),
        "candidate_network": c.candidate,
        "plain_network": c.plain,
        "at": c.at,
        "seeds": " ".join(map(str, c.seeds)),
        "metric": row.name,
        **_picked(row, "unit higher_is_better headline"),
        **_picked(found, "plain candidate plain_sd candidate_sd difference low high"),
        "gain": row.gain,
        "p_value": found.p_value,
        **_picked(row, "p_holm verdict"),
        "margin": row.outcome.margin,
        "about": "these weights" if row.outcome.about_weights else "the networks",
        **_picked(found, "detectable compatible"),
        **{
            f"{name}_these_images": getattr(here, name, None) for name in ("low", "high", "p_value")
        },
        **_picked(found, "seed_sd churn_sd image_sd interval_method p_value_method"),
        **{f"effect_{name}": value for name, value in row.effects.items()},
        **_measured(c),
        "marks": "; ".join(c.marks),
        "not_counted": "; ".join(c.not_counted),
        "reason": found.reason,
        "caption": c.caption,
    }


def runs_csv(table: Table) -> str:
    """One row a run and metric."""
    return _csv(
        [
            {
                "task": run.task,
                "dataset": run.dataset.name,
                "split": run.dataset.split,
                "synthetic": run.record.synthetic,
                "protocol": run.record.protocol.name,
                "recipe": run.record.experiment.recipe,
                **_picked(run, "variant network"),
                "is_se": run.record.backbone.is_se,
                "seed": run.seed,
                "metric": name,
                **_picked(metric, "unit higher_is_better value n reason"),
                **_picked(run.cost, "parameters multiply_adds"),
                **_picked(run.record.timing, "train_seconds evaluate_images_per_second"),
                "commit": run.record.git.commit,
                **_picked(run, "experiment paired why_not_paired caption"),
            }
            for run in table.runs
            for name, metric in run.metrics.items()
        ]
    )


def _picked(of: object, names: str) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names.split()}


def published_csv(table: Table) -> str:
    """One row a published number, or effect of twins, beside the measured one."""
    rows = [asdict(row) | {"notes": " ".join(row.notes)} for row in published_rows(table)]
    return _csv([{key: row[key] for key in row if key != "printed"} for row in rows])


def _measured(c: Comparison) -> dict[str, float | None]:
    """Ratios of the costs that were measured side by side, candidate over plain."""
    bounds: dict[str, float | None] = {}
    for name in RATIOS:
        ratio = getattr(c.measured, name) if c.measured else Ratio(None)
        bounds |= {
            f"{name}_ratio{b and '_'}{b}": getattr(ratio, b or "value") for b in ("", "low", "high")
        }
    return bounds


def as_latex(table: Table) -> str:
    r"""A booktabs table of the headline differences: ``\usepackage{booktabs}``."""
    e = escape_latex
    candidate = wording.candidate_word(table.comparisons)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lllrrrrlrr}",
        r"\toprule",
        f"Benchmark & Network & Metric & Plain & {candidate} & Difference (95\\,\\%) & $p$ & Outcome &"
        r" Params & Mult-adds \\",
        r"\midrule",
    ]
    lines += [_latex_row(c) for c in table.comparisons]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = ["In percent; arrows point to better; $p$ after Holm's correction."]
    if any(len(c.seeds) == 1 for c in table.comparisons):
        notes.append("$^{1}$One seed: about these weights, not about the networks.")
    for c in table.comparisons:
        phrase = c.headline.outcome.phrase
        if phrase != c.headline.verdict:
            notes.append(f"{e(c.candidate)}, {e(c.benchmark)}: {e(phrase)}.")
    notes += [
        f"{e(r.network)}, {e(METRICS[r.metric].label)}, {e(r.where)}: published {_latex_number(r.printed)},"
        f" measured {_latex_number(wording.number(r.measured))}, {e(r.verdict)}."
        for r in published_rows(table)
        if r.verdict != NOT_COMPARABLE
    ]
    if table.synthetic:
        notes.append(r"$^{\dagger}$Synthetic data: not real results.")
    notes += [
        f"Unequal twins ({e(c.candidate)}, {e(c.benchmark)}): {e('; '.join(c.pair.unequal))}."
        for c in table.comparisons
        if c.unequal
    ]
    captions = [f"% {e(f'{c.candidate}: {c.caption}')}" for c in table.comparisons]
    return "\n".join([*lines, *captions, r"\par\footnotesize " + " ".join(notes), ""])


def _latex_row(c: Comparison) -> str:
    e = escape_latex
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
        e(row.outcome.word) + (r"$^{1}$" if row.outcome.about_weights else ""),
        _latex_number(wording.more(c.costs["parameters"])),
        _latex_number(wording.more(c.costs["multiply_adds"])),
    ]
    return " & ".join(cells) + r" \\"


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


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: escape_csv(value) for name, value in row.items()})
    return buffer.getvalue()


def _latex_number(text: str) -> str:
    return (
        text.replace("\u00a0", " ")
        .replace("−", "$-$")
        .replace("–", "--")
        .replace("%", r"\,\%")
        .replace(" \\,", r"\,")
    )
