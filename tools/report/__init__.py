"""Records in, a report out: which candidate is better, on which tasks, by how much, at what cost.

``report.html`` is the page; Markdown, CSV, JSON, LaTeX and a model-index block hold the same
numbers, all from one table in memory (``build_table``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.config import printable
from backbones.files import write_whole
from tools.experiments.archive import open_runs

if TYPE_CHECKING:
    from tools.report.table import Table


def write_report(
    paths: Iterable[str | Path],
    directory: str | Path,
    *,
    title: str = "sebench report",
    allow_unequal: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    margin: float | None = None,
    run_sd: float | None = None,
) -> list[Path]:
    """Report on every record in or under ``paths``.

    Args:
        directory: made if it is not there; files of an earlier report are replaced, each whole.
        allow_unequal: pair twins that differ in recipe, data, protocol, commit or seed, and mark
            them; otherwise they are listed with what differs.
        resamples, seed: of the bootstrap.
        margin: a difference that does not matter, points; None for 0.3 of top-k and 0.5 of AP.
        run_sd: stated standard deviation over seeds, points, for single runs beside published ones.

    Returns the files written, ``report.html`` first.

    Raises:
        ValueError: a path does not exist, there is no sound record in any, or ``margin`` is not
            above 0.
    """
    from tools.experiments.status import plans_near
    from tools.report.planned import read_plans
    from tools.report.table import build_table

    paths = list(paths)
    with open_runs(paths) as found:
        if not found.records:
            skipped = f"; {found.warnings[0]}" if found.warnings else ""
            where = ", ".join(map(str, paths))
            raise ValueError(printable(f"no record.json in or under {where}{skipped}"))
        table = build_table(
            found.records,
            found.warnings,
            allow_unequal=allow_unequal,
            resamples=resamples,
            seed=seed,
            margin=margin,
            run_sd=run_sd,
            measured=found.measured,
            plans=read_plans([*found.plans, *plans_near(paths)]),
        )
        files = _render(table, title)
    return _write(files, Path(directory))


def _render(table: Table, title: str) -> dict[str, str]:
    """The report's files: name -> text."""
    from tools.report import document, exports
    from tools.report.markdown import as_markdown
    from tools.report.page import render_page
    from tools.report.sharing import eval_results

    return {
        "report.html": render_page(table, title),
        "report.md": as_markdown(table, title),
        "report.json": document.as_json(table),
        document.SCHEMA: document.shipped_schema(),
        "differences.csv": exports.differences_csv(table),
        "runs.csv": exports.runs_csv(table),
        "published.csv": exports.published_csv(table),
        "report.tex": exports.as_latex(table),
        "model-index.yaml": exports.as_model_index(table),
        **{f"eval_results/{name}": text for name, text in eval_results(table).items()},
    }


def _write(files: dict[str, str], directory: Path) -> list[Path]:
    from tools.report.sharing import HEAD

    directory.mkdir(parents=True, exist_ok=True)
    for stale in (directory / "eval_results").glob("*.yaml"):
        if stale.read_text("utf-8", errors="replace").startswith(HEAD):
            stale.unlink()  # of an earlier report: no number that is not in this one
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_whole(directory / name, text)
    return [directory / name for name in files]
