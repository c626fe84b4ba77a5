"""Commands that look things up or turn them into something else.

Lists, reports, references, weights, synthetic data, benchmarks; `tools.cli` puts them on the command
line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.cli.arguments import ImportOption, JsonOption, check_file

data_app = typer.Typer(no_args_is_help=True, help="Make synthetic data sets.")
weights_app = typer.Typer(
    no_args_is_help=True, help="Inspect, convert and verify files of weights."
)


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
    _import(imports)
    if not paper:
        _print(settings(task) if what == "settings" else LISTS[what](), as_json)
        return
    _print_paper_costs(as_json)


def _print_paper_costs(as_json: bool) -> None:
    """Our costs of the paper's networks beside those it prints."""
    from tools.references.costs import paper_costs

    compared = paper_costs()
    if as_json:
        print(json.dumps(compared, indent=1))
        return
    _print([_in_short(row) for row in compared], False)
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
        _print([{"name": t.name, "task": t.task, "title": t.title} for t in tables], as_json)
        return
    table = find(name)
    if as_json:
        print(json.dumps(dataclasses.asdict(table), indent=1))
        return
    print(f"{table.where}: {table.title}")
    rows = []
    for row in table.rows:
        values = {ref.metric: ref.printed for ref in row.references}
        protocols = ", ".join(dict.fromkeys(ref.protocol for ref in row.references))
        rows.append({"network": row.network, "backbone": row.backbone, **values, "on": protocols})
    columns = dict.fromkeys(key for row in rows for key in row)
    _print([{key: row.get(key) for key in columns} for row in rows], False)
    notes = dict.fromkeys(
        (
            *table.notes,
            *(note for row in table.rows for ref in row.references for note in ref.notes),
        )
    )
    for note in notes:
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
        _print(rows, as_json)
    elif name == "all":
        measure_all(output or Path("benchmarks.md"))
    elif as_json:
        print(json.dumps(run_benchmark(name), indent=1))
    else:
        print_result(run_benchmark(name))


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


WeightsArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")]


@weights_app.command("inspect")
def weights_inspect(
    path: WeightsArgument, imports: ImportOption = None, as_json: JsonOption = False
) -> None:
    """Say what a file holds: format, network, tasks it can serve, input, missing and extra keys.

    For the weights of a network of your own, name the file that registers it with --import.
    """
    check_file(path)
    _import(imports)
    from backbones.weights.convert import inspect_weights

    _print_nested(inspect_weights(path), as_json)


@weights_app.command("convert")
def weights_convert(
    path: WeightsArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    to: Annotated[str, typer.Option(help="safetensors, timm, torchvision or detectron2.")],
    as_json: JsonOption = False,
    imports: ImportOption = None,
) -> None:
    """Write weights under another library's names, so that they load there strictly.

    [bold]Example[/]  sebench weights convert run/weights.safetensors se50.pth --to timm
    """
    check_file(path)
    from backbones.weights.convert import convert_weights

    _import(imports)
    _print_nested(convert_weights(path, to, out), as_json)


@weights_app.command("verify")
def weights_verify(
    path: WeightsArgument,
    against: Annotated[str, typer.Option(help="timm:NAME or torchvision:NAME.")],
    size: Annotated[int | None, typer.Option(help="Pixels a side; default: theirs.")] = None,
    as_json: JsonOption = False,
    imports: ImportOption = None,
) -> None:
    """Feed both networks the same picture: the largest difference of every stage and the logits.

    [bold]Example[/]  sebench weights verify se50.pth --against timm:legacy_seresnet50
    """
    check_file(path)
    from backbones.weights.convert import verify_weights

    _import(imports)
    found = verify_weights(path, against, size)
    _print_nested(found, as_json)
    if not found["equal"]:
        raise typer.Exit(1)


@weights_app.command("remeasure")
def weights_remeasure(
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|timm:NAME]...",
            help="Default: all released weights that libraries download.",
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Folder of ImageNet, its val split.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the records.")] = Path(
        "runs/remeasure"
    ),
    subset: Annotated[
        bool, typer.Option("--subset", help="The folder holds some of the 1000 classes only.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate released weights on ImageNet val; print measured beside published accuracies.

    [bold]Example[/]  sebench weights remeasure timm:legacy_seresnet50.in1k --data-root imagenet
    """
    from tools.references.remeasure import checkpoints_of, remeasure

    if data_root is None:
        raise ValueError("--data-root is missing: name the folder of ImageNet")
    checkpoints = checkpoints_of(weights or ())
    rows = list(remeasure(checkpoints, data_root, output, "subset" if subset else "all"))
    _print(rows, as_json)
    if all(row["reason"] for row in rows):
        raise typer.Exit(1)


def _import(paths: list[Path] | None) -> None:
    from backbones.registry import load_user_module

    for path in paths or ():
        load_user_module(path)


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


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    from tools.cli.display import print_rows

    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_rows(rows)


def _print_nested(content: dict[str, Any], as_json: bool) -> None:
    from tools.cli.display import print_nested

    if as_json:
        print(json.dumps(content, indent=1))
    else:
        print_nested(content)
