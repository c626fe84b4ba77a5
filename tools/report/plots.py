"""The report's plots, as SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.experiments.record import METRICS, Record
from tools.report.across import Across
from tools.report.comparison import Comparison
from tools.statistics.outcomes import BETTER, WORSE

# Colours that stand for the page's own, so that one SVG serves light and dark.
_INK, _LINE, _PLAIN, _CANDIDATE = "#010203", "#040506", "#070809", "#0a0b0c"
_BETTER, _WORSE, _PANEL = "#0d0e0f", "#101112", "#131415"
_THEME = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    _PLAIN: "var(--plain)",
    _CANDIDATE: "var(--candidate)",
    _BETTER: "var(--better)",
    _WORSE: "var(--worse)",
    _PANEL: "var(--panel)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # names may hold a dollar sign
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}
_DECIMALS = re.compile(r"(\d+\.\d{2})\d+")  # a hundredth of a point is enough
_WIDTH = 4.6  # inches: a phone shows it at about its own size
CURVE_POINTS = 150
CLASSES_SHOWN = 24
_LARGEST_CURVE = 1 << 26  # bytes; a million lines


def forest_plot(comparisons: Sequence[Comparison], across: Sequence[Across] = ()) -> str | None:
    """Headline differences with their intervals, better to the right.

    Below, means over data sets as diamonds, with a thin line to where the next data set is expected.
    """
    rows = [c for c in comparisons if c.headline.gain is not None]
    if not rows:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 0.75 + 0.52 * (len(rows) + len(across))), layout="constrained")
        axes = figure.subplots()
        for place, found in enumerate(across, start=1):
            pooled, y = found.pooled, -place
            if pooled.prediction_low is not None and pooled.prediction_high is not None:
                reach = [pooled.prediction_low, pooled.prediction_high]
                axes.plot(reach, [y, y], color=_INK, linewidth=0.8)
            shape = (
                [pooled.low, pooled.mean, pooled.high, pooled.mean],
                [y, y + 0.16, y, y - 0.16],
            )
            axes.fill(*shape, color=_INK)
            made = ", synthetic" if found.synthetic else ""
            _label_row(axes, y, f"mean over {pooled.tasks} data sets, {found.label}{made}")
        for place, comparison in enumerate(reversed(rows)):
            row, difference = comparison.headline, comparison.headline.difference
            colour = {BETTER: _BETTER, WORSE: _WORSE}.get(row.verdict, _INK)
            if difference.low is not None and difference.high is not None:
                bounds = sorted((difference.low, difference.high))
                if not row.higher_is_better:
                    bounds = [-bounds[1], -bounds[0]]
                axes.plot(bounds, [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([row.gain or 0.0], [place], "o", color=colour, markersize=6)
            label = f"{comparison.benchmark}, {row.label}: {comparison.candidate}"
            _label_row(axes, place, label)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_ylim(-0.5 - len(across), len(rows) - 0.3)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.tick_params(labelsize=8)
        gap = "\u2003"  # plain spaces would be drawn as one
        axes.set_xlabel(f"← worse{gap}percent points{gap}better →", fontsize=9)
        shown = "; ".join(
            f"{c.benchmark}: {c.headline.gain:+.2f} points, {c.headline.verdict}" for c in rows[:12]
        )
        return _svg(figure, "forest", f"Differences with their 95 % intervals. {shown}")


def _label_row(axes: Axes, place: float, label: str) -> None:
    """Name a row above its line, on the page's own ground: lines must not cross the words."""
    axes.annotate(
        _short(label, 58), (0, place + 0.22), (0, 0), textcoords="offset points",
        xycoords=("axes fraction", "data"), fontsize=9,
        bbox={"facecolor": _PANEL, "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def cost_plot(comparisons: Sequence[Comparison], key: str) -> str | None:
    """One metric of one data set against multiply-adds and parameters, twins joined.

    Latencies were measured at different moments, on machines that may have been busy: none are here.
    """
    rows = [c for c in comparisons if c.headline.difference.difference is not None]
    if not rows:
        return None
    most = max(c.costs["multiply_adds"].candidate or 0 for c in rows)
    unit, letter = (1e9, "G") if most >= 1e9 else (1e6, "M")
    panels = (
        ("multiply_adds", unit, f"multiply-adds ({letter})"),
        ("parameters", 1e6, "parameters (M)"),
    )
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 2.3), layout="constrained")
        for axes, (cost, unit, label) in zip(
            figure.subplots(1, 2, sharey=True), panels, strict=True
        ):
            x: list[float] = []
            for c in rows:
                found = c.headline.difference
                sides = c.costs[cost]
                x = [v / unit for v in (sides.plain, sides.candidate) if v is not None]
                y = [value for value in (found.plain, found.candidate) if value is not None]
                if len(x) < 2 or len(y) < 2:
                    continue
                axes.plot(x, y, color=_INK, linewidth=0.8)
                axes.plot(x[:1], y[:1], "o", color=_PLAIN, markersize=6)
                axes.plot(x[1:], y[1:], "s", color=_CANDIDATE, markersize=6)
            axes.margins(0.3)
            if len(rows) == 1 and len(set(x)) == 2:
                axes.set_xticks(x, [f"{value:.5g}" for value in x])
            else:
                axes.locator_params(axis="x", nbins=2)
                axes.ticklabel_format(useOffset=False)
            axes.tick_params(labelsize=8)
            axes.set_xlabel(label, fontsize=8)
        figure.axes[0].set_ylabel(f"{rows[0].headline.label} (%)", fontsize=9)
        spoken = f"{rows[0].headline.label} on {rows[0].dataset} against cost; plain as circles, "
        return _svg(figure, key, f"{spoken} their twins as squares, each pair joined by a line")


def curve_plot(comparison: Comparison) -> str | None:
    """Training loss and validation metric of both twins, a line a seed."""
    pair, metric = comparison.pair, comparison.headline.name
    sides = ((pair.plain, comparison.plain, False), (pair.candidate, comparison.candidate, True))
    curves = [
        (_read_curve(record), is_candidate, name if place == 0 else None)
        for records, name, is_candidate in sides
        for place, record in enumerate(records)
    ]
    known = {name for curve, *_ in curves for point in curve for name in point}
    if "loss" not in known:
        return None
    shown = [("loss", "training loss")]
    if f"val_{metric}" in known:
        shown.append((f"val_{metric}", f"validation {METRICS[metric].label} (%)"))
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (key, title) in zip(panels, shown, strict=True):
            _draw_curves(axes, curves, key)
            axes.set_xlabel("step", fontsize=9)
            axes.set_title(_short(title, 32), fontsize=9)
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
        )
        spoken = f"Training curves of {comparison.plain} (dashed) and {comparison.candidate}"
        return _svg(figure, f"{comparison.key}-curve", f"{spoken} on {comparison.dataset}")


def error_curves(runs: Sequence[tuple[str, bool, Record]]) -> str | None:
    """Figure 4: top-1 error over epochs, in training dashed, of validation solid; a panel a network.

    Args:
        runs: name of the panel, whether the network holds SE, and its run.
    """
    panels = list(dict.fromkeys(name for name, _, _ in runs))
    if not panels:
        return None
    errors = (("train_top1_error", "--", "training"), ("val_top1_error", "-", "validation"))
    with matplotlib.rc_context(_STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure((_WIDTH, 0.6 + 2.1 * rows), layout="constrained")
        places = figure.subplots(rows, 2, squeeze=False).flat
        for panel, axes in zip(panels, places, strict=False):
            curves = [(_read_curve(run), with_se) for name, with_se, run in runs if name == panel]
            for key, style, split in errors:
                named = [(c, se, f"{'with' if se else 'without'} SE, {split}") for c, se in curves]
                _draw_curves(axes, named, key, over="epoch", style=style)
            axes.set_title(_short(panel, 32), fontsize=9)
            axes.set_xlabel("epoch", fontsize=8)
            axes.set_ylabel("top-1 error (%)", fontsize=8)
        for axes in places:
            axes.set_visible(False)
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(
            list(lines.values()), list(lines), loc="outside lower center", ncols=2, fontsize=8
        )
        spoken = "Top-1 error over epochs with and without SE; dashed: training, solid: validation"
        return _svg(figure, "figure-4", f"{spoken}. Panels: {', '.join(panels)}")


def _draw_curves(
    axes: Axes,
    curves: Sequence[tuple[list, bool, str | None]],
    key: str,
    over: str = "step",
    style: str | None = None,
) -> None:
    """One number of each curve: points, whether it is of the candidate, label.

    Without a `style` the candidate's are solid, the others dashed.
    """
    for points, is_candidate, label in curves:
        if shown := _thinned([(p[over], p[key]) for p in points if key in p and over in p]):
            colour, usual = (_CANDIDATE, "-") if is_candidate else (_PLAIN, "--")
            line = style or usual
            axes.plot(*zip(*shown, strict=True), line, color=colour, linewidth=1.3, label=label)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=4)


def class_plot(comparison: Comparison) -> str | None:
    """Differences of the classes, sorted; of many the two ends."""
    rows = [row for row in comparison.classes if row.difference is not None]
    if len(rows) < 2:
        return None
    half = CLASSES_SHOWN // 2
    shown = rows if len(rows) <= CLASSES_SHOWN else [*rows[:half], *rows[-half:]]
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 0.7 + 0.2 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(reversed(shown)):
            change = row.difference or 0.0
            axes.barh(place, change, color=_BETTER if change > 0 else _WORSE, height=0.65)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=_INK, linewidth=1)
        axes.set_yticks(
            range(len(shown)), [_short(row.name, 26) for row in reversed(shown)], fontsize=8
        )
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel(f"{METRICS[comparison.class_metric].label}: points, better →", fontsize=9)
        up, down = rows[0], rows[-1]
        spoken = (
            f"Differences of {len(rows)} classes, from {up.name} {up.difference:+.1f}"
            f" to {down.name} {down.difference:+.1f} points; the table below has them all"
        )
        return _svg(figure, f"{comparison.key}-classes", spoken)


def _read_curve(record: Record) -> list[dict[str, float]]:
    """The points of a curve, steps and numbers; none where the file is gone or far too large."""
    path, points = record.file("curve"), []
    try:
        known = path is not None and path.stat().st_size <= _LARGEST_CURVE
        lines = path.read_text("utf-8", errors="replace").splitlines() if path and known else []
    except OSError:
        return []
    for line in lines:
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a run that was killed may leave half a line
        if isinstance(point, dict) and isinstance(point.get("step"), (int, float)):
            points.append({k: v for k, v in point.items() if isinstance(v, (int, float))})
    return points


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = max(1, -(-len(points) // CURVE_POINTS))
    return points if step == 1 else [*points[::step], points[-1]]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _svg(figure: Figure, key: str, description: str) -> str:
    """The figure as an SVG element; ``key`` keeps its ids apart from those of others."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has other fonts
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{key}-", text)
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r' d="[^"]*"', lambda m: _DECIMALS.sub(r"\1", m[0]), text)
    escaped = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    (head, *_) = re.findall(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    return (
        f'<svg {head} role="img" aria-label="{escaped}" xmlns="http://www.w3.org/2000/svg"'
        f' xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
