"""The commands that run one experiment, or several evaluations: train, evaluate."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backbones.files import SETTINGS
from tools.cli import arguments
from tools.cli.arguments import check_file, complete_backbones, say, show
from tools.cli.fetch import DownloadOption, OfflineOption, fetch_only
from tools.cli.signals import stop_hint

if TYPE_CHECKING:
    from tools.experiments.experiment import Experiment

WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        "-w",
        help="Weights to evaluate; several times for several, which classification and scene "
        "do in one pass over the images.",
    ),
]
BackbonesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        "-b",
        help="Network; one for all weights, or one for each. Default: what the file says.",
        autocompletion=complete_backbones,
    ),
]
TrackerOption = Annotated[
    str | None, typer.Option(help="Show the curve in tensorboard, wandb, mlflow or trackio too.")
]
EvaluatorOption = Annotated[
    str | None, typer.Option(help="Detection: hotcoco, or pycocotools; equal numbers.")
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Detection: score this COCO results file instead."),
]
AnnotationsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="COCO ground truth for --results.")
]


def train(
    task: arguments.TaskArgument,
    overrides: arguments.OverridesArgument = None,
    recipe: arguments.RecipeOption = None,
    backbone: arguments.BackboneOption = None,
    data: arguments.DataOption = None,
    data_root: arguments.DataRootOption = None,
    output: arguments.OutputOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data order.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights to start from; default: random.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    imports: arguments.ImportOption = None,
    tracker: TrackerOption = None,
    dry_run: arguments.DryRunOption = False,
    download_only: DownloadOption = False,
    offline: OfflineOption = False,
    as_json: arguments.JsonOption = False,
) -> None:
    """Train a network, evaluate it, and record the result.

    [bold]Examples[/]

      sebench train classification -r cifar-preact -b se_resnet110 --data-root data/cifar10

      sebench train scene -r places365-short -b se_resnet50 --data-root data/places365 train.epochs=30

      sebench train detection -r tiny -b se_resnet_tiny --data-root data/coco --dry-run

    Several GPUs: torchrun --nproc_per_node 8 -m tools train classification ...
    """
    if weights:
        check_file(weights)
    given = {
        "backbone.name": backbone,
        "backbone.weights": weights,
        "data.name": data,
        "data.root": data_root and str(data_root),
        "train.tracker": tracker or None,
        "seed": seed,
    }
    experiment = _load("train", task, recipe, overrides, given, imports)
    if download_only:
        _fetch([experiment], as_json)
    else:
        _run([experiment], output, resume, dry_run, as_json)


def evaluate(
    ctx: typer.Context,
    task: arguments.TaskArgument,
    overrides: arguments.OverridesArgument = None,
    weights: WeightsOption = None,
    recipe: arguments.RecipeOption = None,
    backbone: BackbonesOption = None,
    data: arguments.DataOption = None,
    data_root: arguments.DataRootOption = None,
    output: arguments.OutputOption = None,
    imports: arguments.ImportOption = None,
    evaluator: EvaluatorOption = None,
    results: ResultsOption = None,
    annotations: AnnotationsOption = None,
    dry_run: arguments.DryRunOption = False,
    download_only: DownloadOption = False,
    offline: OfflineOption = False,
    as_json: arguments.JsonOption = False,
) -> None:
    """Evaluate weights and record the result, or score a file of detections.

    [bold]Examples[/]

      sebench evaluate classification --weights runs/a/weights.safetensors

      sebench evaluate classification -r imagenet-paper -b se_resnet50 -w se50.pth --data-root imagenet

      sebench evaluate scene -w runs/plain/weights.safetensors -w runs/se/weights.safetensors

      sebench evaluate detection --results detections.json --annotations instances_val2017.json

      sebench evaluate detection --results a.json --annotations val.json -b se_resnet50 -o runs/a
    """
    if results is not None or annotations is not None:
        experiments = _of_results(ctx)
    else:
        root = data_root and str(data_root)
        given = {"data.name": data, "data.root": root, "evaluate.evaluator": evaluator}
        files, networks = list(weights or ()), list(backbone or ())
        experiments = _evaluations(task, files, recipe, networks, overrides, given, imports)
    if download_only:
        _fetch(experiments, as_json)
    elif experiments:
        _run(experiments, output, False, dry_run, as_json)


# Parts of the commands ---------------------------------------------------------------------------


def _evaluations(
    task: str,
    weights: list[str],
    recipe: str | None,
    backbones: list[str],
    overrides: list[str] | None,
    given: Mapping[str, Any],
    imports: Sequence[Path] | None,
) -> list[Experiment]:
    """An evaluation of each file of weights."""
    if not weights:
        raise ValueError("--weights is missing: name the file to evaluate")
    if len(backbones) not in (0, 1, len(weights)):
        raise ValueError(
            f"--backbone is given {len(backbones)} times for {len(weights)} --weights: give it "
            "once, once for each, or not at all"
        )
    for file in weights:
        check_file(file)
    experiments = []
    for number, file in enumerate(weights):
        # Weights of a run of this suite are evaluated as they were made.
        made = Path(file).parent / SETTINGS
        own = recipe is None and made.is_file()
        network = backbones[min(number, len(backbones) - 1)] if backbones else None
        sizes: dict[str, Any] = {}
        if not own and network is None and not any("backbone.name" in o for o in overrides or ()):
            network, sizes = _network_in(file)
        backbone = {"name": network, "weights": file, "options": sizes or None}
        settings = {**given, **{f"backbone.{key}": value for key, value in backbone.items()}}
        source = str(made) if own else recipe
        experiments.append(_load("evaluate", task, source, overrides, settings, imports))
    return experiments


def _load(
    action: str,
    task: str,
    recipe: str | None,
    overrides: list[str] | None,
    given: Mapping[str, Any],
    imports: Sequence[Path] | None,
) -> Experiment:
    from tools.experiments.experiment import list_recipes, load_experiment
    from tools.experiments.settings import nest
    from tools.experiments.tasks import find_task

    find_task(task)
    if recipe is None:
        raise ValueError(f"--recipe is missing: choose from {', '.join(list_recipes(task))}")
    told, settings = overrides or (), nest(given)
    return load_experiment(
        task, recipe, told, settings=settings, action=action, imports=imports or ()
    )


def _network_in(file: str) -> tuple[str | None, dict[str, Any]]:
    """The network that a file of weights says it is of, or that its tensors fit, and its sizes."""
    from backbones.weights.load import read_weights
    from backbones.zoo import SIZES

    try:
        network = read_weights(file).backbone
    except ValueError:  # the task says what is wrong, or knows the file
        return None, {}
    if network is None:
        return None, {}
    return network.name, {k: v for k, v in network.options.items() if k in SIZES}


def _run(
    experiments: list[Experiment],
    output: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run one experiment, or several evaluations, each into a directory of its own."""
    from backbones.device import keep_large_tensors_on_heap
    from backbones.files import CHECKPOINT
    from tools.cli.display import print_record
    from tools.experiments.record import to_plain
    from tools.experiments.run import evaluate_experiments, read_recorded, run_experiment

    single = len(experiments) == 1
    if single and output is not None:
        runs = {output: experiments[0]}
    else:
        runs = {_place(each, output): each for each in experiments}
    if dry_run:
        _check_only(runs, as_json)
        return
    there = [directory for directory, each in runs.items() if read_recorded(each, directory)]
    _show_log()
    keep_large_tensors_on_heap()

    def how_to_go_on() -> str:
        if single and (next(iter(runs)) / CHECKPOINT).exists():
            return "go on with the same command and --resume"
        return "what is recorded is kept; the same command does the rest"

    with stop_hint(how_to_go_on):
        if single:
            ((directory, experiment),) = runs.items()
            done = [run_experiment(experiment, directory, resume=resume)]
        else:
            done = list(evaluate_experiments(runs))
    if not arguments.first_process:
        return
    for directory in there:
        say(f"{directory} has recorded this experiment already; nothing was run")
    records = [record for record in done if record]
    if as_json:
        found = list(map(to_plain, records))
        show(found[0] if single else found, as_json)
        return
    for record in records:
        print_record(record)


def _fetch(experiments: list[Experiment], as_json: bool) -> None:
    from tools.experiments.study import Cell

    fetch_only([Cell(e.task, _place(e, None), e) for e in experiments], as_json)


def _check_only(runs: Mapping[Path, Experiment], as_json: bool) -> None:
    found = []
    for directory, each in runs.items():
        summary = each.entry_points().check(each.config, training=each.action == "train")
        dataset = {k: v for k, v in summary.pop("dataset").items() if k != "class_names"}
        told: dict[str, Any] = {"task": each.task, "action": each.action, "experiment": each.hash}
        told |= {"output": str(directory), **summary, "dataset": dataset}
        found.append({**told, "settings": each.settings})
    if not arguments.first_process:
        return
    if as_json:
        show(found[0] if len(found) == 1 else found, as_json)
        return
    for content in found:
        show(content, as_json)
    print("dry run passed; nothing was executed")


def _place(experiment: Experiment, output: Path | None) -> Path:
    """A directory of its own, in the folder that is asked for or its task's in `runs`."""
    config, action = experiment.config, "" if experiment.action == "train" else "-evaluate"
    name = f"{Path(experiment.recipe).stem}-{config.backbone.name}-seed{config.seed}"
    folder = output or Path("runs") / f"{experiment.task}{action}"
    return folder / f"{name}-{experiment.hash[:8]}".replace(":", "_")


def _of_results(ctx: typer.Context) -> list[Experiment]:
    """The experiment that a file of results is the outcome of; without a network it is scored here."""
    from tools.cli.display import print_metrics
    from tools.experiments.experiment import results_experiment
    from tools.experiments.tasks import load_function

    given = ctx.params
    score = _check_results(ctx)
    task, evaluator, backbones = given["task"], given["evaluator"], given["backbone"]
    files = (str(given["results"]), str(given["annotations"]))
    if backbones:
        told = [*(given["overrides"] or ())]
        told += [f"evaluate.evaluator={evaluator}"] if evaluator else []
        return [results_experiment(task, *files, backbones[0], told, given["imports"] or ())]
    scores = load_function(score)(*files, evaluator or "hotcoco")
    show(scores, given["as_json"], lambda found: print_metrics(found["metrics"], found["missing"]))
    return []


def _check_results(ctx: typer.Context) -> str:
    """The function that scores a file of results, where no more and no less is given."""
    from tools.experiments.tasks import TASKS, find_task

    given = ctx.params
    score = find_task(given["task"]).score
    if score is None:
        able = " or ".join(name for name, row in TASKS.items() if row.score)
        raise ValueError(f"--results is for {able}: sebench evaluate {able} --results FILE")
    for name in ("results", "annotations"):
        if given[name] is None:
            raise ValueError(
                f"--{name} is missing: scoring a file needs --results and --annotations"
            )
    counted = {"task", "results", "annotations", "evaluator", "backbone", "as_json", "offline"}
    if given["backbone"]:
        counted |= {"overrides", "output", "imports", "dry_run"}
    others = [each for each in ctx.command.params if each.name not in counted]
    if useless := [each for each in others if given[each.name or ""]]:
        names = ["key=value" if each.name == "overrides" else each.opts[0] for each in useless]
        raise ValueError(
            f"{', '.join(names)}: --results scores a file as it is, and no network is run; leave "
            "that out, or evaluate --weights. With --backbone NAME, the network it came from, it is "
            "recorded, and --output, --import and seed=N count"
        )
    check_file(given["results"])
    check_file(given["annotations"])
    if len(given["backbone"] or ()) > 1:
        raise ValueError("--backbone is given twice: a results file is of one network")
    return score


def _show_log() -> None:
    """Print what the benchmarks log, epoch by epoch, above the progress bar."""

    class Stderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(self.format(record), file=sys.stderr)  # looked up now: the bar redirects it

    if arguments.first_process:
        for room in ("backbones", "classification", "scene"):
            logging.getLogger(room).addHandler(Stderr())
