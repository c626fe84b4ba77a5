"""Commands that look things up or make something of them: lists, reports, references, synthetic data, benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.arguments import ImportOption, JsonOption, check_file, load_imports, show

if TYPE_CHECKING:
    from tools.references.tables import Table

data_app = typer.Typer(no_args_is_help=True, help="Make synthetic data sets.")


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="backbones, attentions, datasets, protocols, recipes or settings.",
        ),
    ],
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="settings: of this task only.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="backbones: our costs beside those the paper prints.")
    ] = False,
    as_json: JsonOption = False,
    imports: ImportOption = None,
) -> None:
    """List what can be named in settings, and the settings: networks, recipes, protocols, ...

    [bold]Examples[/]

      sebench list backbones --paper

      sebench list recipes --json

      sebench list settings detection
    """
    from backbones.config import unknown
    from tools.cli.listing import LISTS, settings

    if what not in LISTS:
        raise ValueError(unknown("list", what, LISTS))
    if task is not None and what != "settings":
        raise ValueError(f"{task}: only settings are listed by task: sebench list settings {task}")
    if paper and what != "backbones":
        raise ValueError("--paper is for backbones: sebench list backbones --paper")
    load_imports(imports)
    if not paper:
        show(settings(task) if what == "settings" else LISTS[what](), as_json)
        return
    from tools.references.costs import paper_costs

    show(paper_costs(), as_json, _print_paper_costs)


def _print_paper_costs(compared: list[dict[str, Any]]) -> None:
    """Our costs of the paper's networks beside those it prints."""
    show([_in_short(row) for row in compared], as_json=False)
    print(_words_about_gating(compared))
    for row in compared:
        if row["note"]:
            print(f"* table {row['table']}, {row['row']}: {row['note']}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "sebench report",
    allow_unequal: Annotated[
        bool,
        typer.Option("--allow-unequal", help="Pair twins of other recipe, data or commit; marked."),
    ] = False,
    margin: Annotated[
        float | None,
        typer.Option(help="A difference that does not matter, points [0.3 for top-k, 0.5 for AP]."),
    ] = None,
    run_sd: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation over seeds, points, that is known of a single run: it is held "
            "against published numbers with it, and marked."
        ),
    ] = None,
) -> None:
    """Compare recorded runs, twin by twin: HTML, Markdown, CSV, JSON, LaTeX.

    [bold]Example[/]  sebench report runs --output report
    """
    for path in runs:
        check_file(path)
    from tools.report import write_report

    options: dict[str, Any] = {"allow_unequal": allow_unequal, "margin": margin, "run_sd": run_sd}
    for path in write_report(runs, output, title=title, **options):
        print(path)


def reference(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="table-7, or list.")] = "list",
    as_json: JsonOption = False,
) -> None:
    """Print a table of the paper, or of published weights, with its protocol and its traps.

    [bold]Example[/]  sebench reference table-7
    """
    from tools.references import load_references
    from tools.references import reference as find

    if name == "list":
        tables = load_references().values()
        show([{"name": t.name, "task": t.task, "title": t.title} for t in tables], as_json)
    else:
        show(find(name), as_json, _print_table)


def _print_table(table: Table) -> None:
    print(f"{table.where}: {table.title}")
    rows = []
    for row in table.rows:
        values = {ref.metric: ref.printed for ref in row.references}
        protocols = ", ".join(dict.fromkeys(ref.protocol for ref in row.references))
        rows.append({"network": row.network, "backbone": row.backbone, **values, "on": protocols})
    columns = dict.fromkeys(key for row in rows for key in row)
    show([{key: row.get(key) for key in columns} for row in rows], as_json=False)
    of_rows = (note for row in table.rows for ref in row.references for note in ref.notes)
    for note in dict.fromkeys((*table.notes, *of_rows)):
        print(f"- {note}")


def benchmark(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A benchmark, list, or all of them.")
    ] = "list",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With all: the Markdown file to write.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what this suite claims about speed and memory, against its peers, on this machine."""
    from tools.speed import BENCHMARKS, measure_all, print_result, run_benchmark

    if name == "list":
        rows = [
            {"name": key, "compares": b.compares, "target": b.target_in_words}
            for key, b in BENCHMARKS.items()
        ]
        show(rows, as_json)
    elif name == "all":
        measure_all(output or Path("benchmarks.md"))
    else:
        show(run_benchmark(name), as_json, print_result)


def statistics_check(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A Markdown file whose tables to replace."),
    ] = None,
    share: Annotated[
        float,
        typer.Option(help="Of the studies, for a quicker and rougher look.", min=0.001, max=1),
    ] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
) -> None:
    """Measure how often this suite's own verdicts err, on simulated studies (about 20 minutes).

    [bold]Example[/]  sebench statistics-check --share 0.05
    """
    from backbones.files import write_whole
    from tools.statistics.simulation import (
        as_markdown,
        replace_tables,
        settings_of_table,
        shortcomings,
        simulate_all,
    )

    wanted = {setting: max(20, round(share * n)) for setting, n in settings_of_table().items()}
    found = simulate_all(wanted, workers)
    tables = as_markdown(found)
    print(tables)
    if output is not None:
        write_whole(output, replace_tables(output.read_text("utf-8"), tables))
    if broken := shortcomings(found):
        raise ValueError(f"promises not kept: {'; '.join(broken)}")


@data_app.command("sample")
def data_sample(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make them.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="cifar10, cifar100, fashion_mnist, imagenet, places365, coco."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Other pictures of the same kind.")] = 0,
) -> None:
    """Make tiny data sets in the layouts of the real ones, to try everything out.

    [bold]Example[/]  sebench data sample data --only coco
    """
    from tools.sample_data import make_all

    for root in make_all(directory, only, seed).values():
        print(root)


def _in_short(row: dict[str, Any]) -> dict[str, str]:
    """A row of `--paper` that fits a terminal: millions or billions, as the paper prints them."""

    def ours(quantity: str) -> str:
        printed = row[f"paper_{quantity.removesuffix('_with_gating')}"]
        unit = printed[-1] if printed else {"parameters": "M"}.get(quantity, "G")
        return f"{row[quantity] / {'M': 1e6, 'G': 1e9}[unit]:.3f} {unit}"

    def difference(quantity: str) -> str:
        value = row[f"{quantity}_difference"]
        return "" if value is None else f"{value:+.2f} %"

    return {
        "table": str(row["table"]),
        "row": row["row"] + (" *" if row["note"] else ""),
        "parameters": ours("parameters"),
        "paper": row["paper_parameters"] or "",
        "differs": difference("parameters"),
        "multiply-adds": ours("multiply_adds"),
        "paper's": row["paper_multiply_adds"] or "",
        "differ": difference("multiply_adds"),
        "with gating": ours("multiply_adds_with_gating"),
        "they differ": difference("multiply_adds_with_gating"),
        "digit met by": row["met_by"] or "",
    }


def _words_about_gating(compared: list[dict[str, Any]]) -> str:
    """What SE adds to ResNet-50 by each rule, beside what section 4 of the paper says."""
    plain, se = (
        next(row for row in compared if row["row"] == name)
        for name in ("ResNet-50", "SE-ResNet-50")
    )
    first, second = (
        100 * (se[rule] / plain[rule] - 1)
        for rule in ("multiply_adds", "multiply_adds_with_gating")
    )
    return (
        "The first count has convolutions, matrix products and residual sums; with gating, one more for"
        " each element that a global pooling reads and each that a gate scales. SE adds to ResNet-50"
        f" {first:.2f} % by the first, {second:.2f} % with gating; the paper prints 0.26 %,"
        " the ratio of its rounded 3.87 and 3.86 G."
    )
