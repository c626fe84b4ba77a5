"""The commands about files of weights: inspect, convert, verify, remeasure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tools.cli.arguments import ImportOption, JsonOption, check_file, load_imports, show

weights_app = typer.Typer(
    no_args_is_help=True, help="Inspect, convert and verify files of weights."
)
WeightsArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights.")]


@weights_app.command("inspect")
def weights_inspect(
    path: WeightsArgument, imports: ImportOption = None, as_json: JsonOption = False
) -> None:
    """Say what a file holds: format, network, tasks it can serve, input, missing and extra keys.

    For the weights of a network of your own, name the file that registers it with --import.
    """
    check_file(path)
    load_imports(imports)
    from backbones.weights.convert import inspect_weights

    show(inspect_weights(path), as_json)


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

    load_imports(imports)
    show(convert_weights(path, to, out), as_json)


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

    load_imports(imports)
    found = verify_weights(path, against, size)
    show(found, as_json)
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
    show(rows, as_json)
    if all(row["reason"] for row in rows):
        raise typer.Exit(1)
