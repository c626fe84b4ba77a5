"""The commands about what networks cost: measure two side by side, find a plain one of equal cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.arguments import (
    ImportOption,
    JsonOption,
    complete_backbones,
    load_imports,
    say,
    show,
)

if TYPE_CHECKING:
    from tools.experiments.measured import Measured, Ratio
    from tools.experiments.record import Network

_NETWORK = "NAME, 'NAME option=value ...' in quotes, or a run directory"
BatchOption = Annotated[
    int, typer.Option("--batch-size", help="Images at once, for throughput, memory and energy.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="N|HxW", help="Pixels.", show_default="what the networks are made for"),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
RoundsOption = Annotated[
    int | None,
    typer.Option(help="How often each is run.", show_default="as time allows, from 7 on"),
]
SecondsOption = Annotated[float, typer.Option(help="For latency, and again for throughput.")]
ModeOption = Annotated[
    str, typer.Option(help="As evaluate.inference: auto, plain, eager, compiled.")
]
ClassesOption = Annotated[
    int | None,
    typer.Option(min=0, help="Of the classifier; 0: none is there.", show_default="as published"),
]


def measure(
    first: Annotated[
        str, typer.Argument(metavar="A", help=_NETWORK, autocompletion=complete_backbones)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The same.", autocompletion=complete_backbones)
    ],
    batch_size: BatchOption = 16,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    rounds: RoundsOption = None,
    seconds: SecondsOption = 60.0,
    mode: ModeOption = "auto",
    classes: ClassesOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, NAME.cost.json, or a folder for it."),
    ] = None,
    as_json: JsonOption = False,
    imports: ImportOption = None,
) -> None:
    """Measure latency, throughput, peak memory and energy of B over A, in turns in one process.

    Medians of ratios with 95 % intervals; weights are fresh. Put the file among the runs: a report
    takes it as the cost comparison of the pair.

    [bold]Example[/]  sebench measure resnet50 se_resnet50 -o runs
    """
    networks = _read(first, imports), _read(second, imports)
    from tools.experiments.measured import write_measured
    from tools.speed.twins import How
    from tools.speed.twins import measure as run

    path = output and _file(output, networks)
    how = How(batch_size, _pixels(size), device, rounds, seconds, mode, classes)
    found = run(*networks, how)
    if path:
        write_measured(found, path)
    show(found, as_json, _print)
    if path and not as_json:
        print(path)


TwinOfArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="SE network: NAME, or 'NAME option=value ...' in quotes.",
        autocompletion=complete_backbones,
    ),
]
MatchOption = Annotated[
    str, typer.Option(help="parameters, multiply_adds, or latency, which is measured.")
]
ByOption = Annotated[
    str | None,
    typer.Option(
        help="wider or deeper.", show_default="the plain twin as it is, if equal; wider; deeper"
    ),
]


def twin(
    name: TwinOfArgument,
    match: MatchOption,
    by: ByOption = None,
    within: Annotated[float, typer.Option(min=0.0, help="Percent.")] = 1.0,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    rounds: RoundsOption = None,
    seconds: SecondsOption = 60.0,
    mode: ModeOption = "auto",
    classes: ClassesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the plain network, wider or deeper, that costs what an SE network costs.

    Train it like any other network: a report pairs it with the SE network, beside the plain twin of
    equal depth. In a study, `twins: [equal_depth, parameters]` adds it.

    [bold]Example[/]  sebench twin se_resnet50 --match parameters
    """
    from backbones.config import check_choice
    from backbones.equal_cost import COUNTED, find_equal_cost, spell

    check_choice("match", match, [*COUNTED, "latency"])
    network = _read(name, None)
    if match in COUNTED:
        found = find_equal_cost(network.name, network.options, match, by, within, classes)
    else:
        from tools.speed.twins import How, find_equal_latency

        how = How(1, _pixels(size), device, rounds, seconds, mode, classes)
        found = find_equal_latency(network.name, network.options, by, within, how, say)
    if as_json:
        show(found, as_json)
        return
    spelled = spell(found.name, found.options)
    what = match.replace("_", "-")
    print(f"{spelled}\n{found.way}: {100 * found.ratio:.2f} % of the {what} of {name}")
    told = "".join(f" backbone.options.{text}" for text in spelled.split(" ")[1:])
    print(f"train it by: --backbone {found.name}{told}")
    if match == "latency":
        print(f"for the report: sebench measure '{spelled}' '{name}' -o RUNS")


def _read(text: str, imports: list[Path] | None) -> Network:
    """A network as it is given on the command line."""
    from backbones.registry import describe_backbone
    from tools.experiments.record import Network, read_record
    from tools.experiments.settings import parse_override

    load_imports(imports)
    if (record := Path(text) / "record.json").is_file():
        backbone = read_record(record).backbone
        return Network(backbone.name, backbone.options)
    name, *given = text.split()[:50] or [""]
    describe_backbone(name)
    options: dict[str, Any] = {}
    for option in given:
        options |= parse_override(option)
    return Network(name, options)


def _pixels(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
    if found is None or not int(found[1]) or (found[2] and not int(found[2])):
        raise ValueError(f"size={size!r}: give pixels a side, 224, or height and width, 800x1088")
    return int(found[1]), int(found[2] or found[1])


def _file(output: Path, networks: tuple[Network, Network]) -> Path:
    """The file to write, refused before anything is measured."""
    from backbones.equal_cost import spell
    from tools.experiments.measured import SUFFIX

    if output.is_dir():
        names = [re.sub(r"[^\w.=]+", "_", spell(n.name, n.options)).strip("_") for n in networks]
        return output / (f"{names[0]}-{names[1]}"[:200] + SUFFIX)
    if not output.name.endswith(SUFFIX) or not output.parent.is_dir():
        raise ValueError(
            f"{output}: no folder, and no file NAME{SUFFIX} in one; a report finds measured costs by"
            " that name"
        )
    return output


def _print(found: Measured) -> None:
    from backbones.equal_cost import spell

    a, b, on = found.first, found.second, found.conditions
    names = [spell(side.network.name, side.network.options) for side in (a, b)]
    device = f"{on.device_name}, {on.threads} thread{'s' * (on.threads > 1)}"
    print(
        f"{names[1]} over {names[0]}, {device}, images {'x'.join(map(str, on.image))}, {on.clock}"
    )
    rows: list[tuple[str, Ratio | None, str, float, str]] = [
        ("latency, one image", found.latency, "latency_ms", 1, "ms"),
        ("images/s", found.throughput, "images_per_second", 1, ""),
        ("peak memory", found.peak_memory, "peak_memory_bytes", 2**20, "MiB"),
        ("energy an image", found.energy, "joules_per_image", 1, "J"),
        ("parameters", None, "parameters", 1e6, "M"),
        ("multiply-adds", None, "multiply_adds", 1e9, "G"),
    ]
    for label, ratio, key, scale, unit in rows:
        if ratio is not None and ratio.value is None:
            print(f"  {label:20} – {ratio.reason}")
            continue
        one, other = (getattr(side, key) / scale for side in (a, b))
        value = ratio.value if ratio and ratio.value else other / (one or 1)
        shown = f"{one:.4g} -> {other:.4g} {unit}"
        print(f"  {label:20} {value:6.3f}{_bounds(ratio):18} {shown}")
    print(f"  images at once: {on.batch_size}, for images/s, memory and energy; {on.mode} mode")


def _bounds(ratio: Ratio | None) -> str:
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f" [{ratio.low:.3f}, {ratio.high:.3f}]"
