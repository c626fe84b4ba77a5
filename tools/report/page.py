"""The report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from importlib import resources

import jinja2
from markupsafe import Markup

from tools.experiments.record import METRICS
from tools.experiments.tasks import TASKS
from tools.report import plots, wording
from tools.report.compared import find_pictures
from tools.report.comparison import Comparison
from tools.report.table import Table
from tools.statistics.outcomes import BETTER, WORSE

# What a browser should be asked to show; the CSV and JSON files hold everything.
CARDS, PICTURED, ROWS, SETTINGS = 12, 10, 500, 120
DETAILED, DETAILED_OF_MANY = 60, 8  # pairs; plots take time
COST_PLOTS = 8
OPEN = 6  # so many pairs are shown unfolded and in full


def render_page(table: Table, title: str) -> str:
    """The whole page. Every text of a record is escaped by Jinja2."""
    comparisons = table.comparisons
    detailed = comparisons
    if len(comparisons) > DETAILED:
        detailed = comparisons[:DETAILED_OF_MANY]
    ends = 200 if len(detailed) <= OPEN else 15  # classes shown of each end, in a page for people
    page = environment().get_template("page.html")
    return page.render(
        title=title,
        lede=wording.lede(comparisons),
        candidate=wording.candidate_word(comparisons),
        table=table,
        cards=comparisons[:CARDS],
        rows=comparisons[:ROWS],
        details=[_details(c, number < PICTURED, ends) for number, c in enumerate(detailed)],
        runs=table.runs[:ROWS],
        settings=table.runs[:SETTINGS],
        refused=_reasons(table),
        forest=plots.forest_plot(comparisons[:40], table.across),
        across=[found.sentence for found in table.across],
        these_weights=wording.THESE_WEIGHTS,
        cost_plots=_cost_plots(comparisons),
        unfolded=len(detailed) <= OPEN,
        tasks=TASKS,
        metrics=METRICS,
    )


def environment() -> jinja2.Environment:
    """Templates of this folder; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tools.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    home = resources.files("tools.report")
    environment.globals["file"] = lambda name: Markup((home / name).read_text("utf-8"))
    environment.filters |= {
        "number": wording.number,
        "planned_range": wording.planned_range,
        "signed": wording.signed,
        "interval": wording.interval,
        "count": wording.count,
        "more": wording.more,
        "ratio": wording.ratio_in_words,
        "measured": wording.measured_sentence,
        "p": wording.p_text,
        "change": wording.change_in_words,
        "detail": wording.detail,
        "here": wording.these_images,
        "noise": wording.noise,
        "classes_sentence": wording.classes_sentence,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "tone": lambda verdict: verdict if verdict in (BETTER, WORSE) else "unclear",
        "pretty": lambda value: json.dumps(value, indent=1, default=str, ensure_ascii=False),
    }
    return environment


def _details(comparison: Comparison, pictured: bool, ends: int) -> dict:
    firsts = comparison.pair.plain[0], comparison.pair.candidate[0]
    pictures, why_none = find_pictures(*firsts) if pictured else ([], None)
    classes = comparison.classes
    return {
        "comparison": comparison,
        "curve": plots.curve_plot(comparison),
        "class_plot": plots.class_plot(comparison),
        "classes": classes if len(classes) <= ends * 2 else (*classes[:ends], *classes[-ends:]),
        "pictures": pictures,
        "boxed": any(picture.is_boxed for picture in pictures),
        "why_no_pictures": why_none,
    }


def _reasons(table: Table) -> list[tuple[str, int]]:
    """Why runs with a plain twin are in no pair, and how many for each reason."""
    return Counter(
        f"{run.network} on {run.dataset.name}: {run.why_not_paired}"
        for run in table.runs
        if run.why_not_paired and run.record.backbone.twin is not None
    ).most_common(ROWS)


def _cost_plots(comparisons: tuple[Comparison, ...]) -> list[tuple[str, str]]:
    groups: dict[tuple, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.task, comparison.dataset, comparison.synthetic].append(comparison)
    drawn = []
    for number, ((task, dataset, _), group) in enumerate(list(groups.items())[:COST_PLOTS]):
        svg = plots.cost_plot(group[:60], f"cost-{number}")
        if svg:
            made = " (synthetic data)" if group[0].synthetic else ""
            drawn.append((f"{TASKS[task].label}: {dataset}{made}", svg))
    return drawn
