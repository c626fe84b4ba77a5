"""The command line, `sebench` or `python -m tools`: reads arguments, prints, sets exit codes.

What it calls imports torch, so those imports stand inside the commands: `--help` answers at once.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backbones.files import SETTINGS
from tools.cli import lookup
from tools.cli.lookup import ImportOption, JsonOption, check_file

if TYPE_CHECKING:
    from tools.experiments.run import Experiment

app = typer.Typer(
    name="sebench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help=(
        "Is a backbone with channel attention better than its plain twin: by how much, at what "
        "cost, and is the difference real?\n\n"
        "[dim]First steps:[/]  sebench demo  ·  sebench list recipes  ·  sebench train --help"
    ),
)
_first_process = int(os.environ.get("RANK", "0")) == 0


# Arguments that several commands share -----------------------------------------------------------


def _complete_recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    from tools.experiments.run import TASKS, list_recipes

    task = ctx.params.get("task")
    tasks = [task] if task in TASKS else list(TASKS)
    return [name for task in tasks for name in list_recipes(task) if name.startswith(incomplete)]


def _complete_backbones(incomplete: str) -> list[str]:
    from backbones.registry import list_backbones

    return [info.name for info in list_backbones() if info.name.startswith(incomplete)]


def _complete_datasets(incomplete: str) -> list[str]:
    from tools.cli.listing import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


def _complete_tasks(incomplete: str) -> list[str]:
    from tools.experiments.run import TASKS

    return [task for task in TASKS if task.startswith(incomplete)]


TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="classification, scene or detection.",
        autocompletion=_complete_tasks,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: train.epochs=10"),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="Name (sebench list recipes), a YAML file, or a run's settings.yaml.",
        autocompletion=_complete_recipes,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", "-b", help="Network.", autocompletion=_complete_backbones),
]
DataOption = Annotated[
    str | None, typer.Option(help="Data set.", autocompletion=_complete_datasets)
]
DataRootOption = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run directory.", show_default="runs/...")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of weights and data order.")]
SkipOption = Annotated[
    int | None,
    typer.Option("--skip-bad-images", metavar="N", help="Unreadable images to leave out, at most."),
]
NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-cache", help="Classification, scene: neither read nor keep evaluation crops."
    ),
]
AllowMissingOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Tensors that --weights may lack.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, run nothing.")]


# Commands ----------------------------------------------------------------------------------------


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; at any place.")
    ] = False,
) -> None:
    """`main` takes --debug out of the arguments; here it is only explained."""


@app.command(rich_help_panel="Experiments")
def train(
    task: TaskArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    output: OutputOption = None,
    seed: SeedOption = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights to start from; default: random.")
    ] = None,
    allow_missing: AllowMissingOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    imports: ImportOption = None,
    skip_bad_images: SkipOption = None,
    no_cache: NoCacheOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
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
    experiment = _load(
        "train",
        task,
        recipe,
        overrides,
        _shortcuts(skip_bad_images, allow_missing, None, no_cache),
        backbone=backbone,
        data=data,
        data_root=data_root,
        seed=seed,
        weights=weights,
        imports=imports or (),
    )
    _run([experiment], output, resume, dry_run, as_json)


@app.command(rich_help_panel="Experiments")
def evaluate(
    task: TaskArgument,
    overrides: OverridesArgument = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            "-w",
            help="Weights to evaluate; several times for several, which classification and scene "
            "do in one pass over the images.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            "-b",
            help="Network; one for all weights, or one for each. Default: what the file says.",
            autocompletion=_complete_backbones,
        ),
    ] = None,
    data: DataOption = None,
    data_root: DataRootOption = None,
    output: OutputOption = None,
    imports: ImportOption = None,
    skip_bad_images: SkipOption = None,
    allow_missing: AllowMissingOption = None,
    evaluator: Annotated[
        str | None, typer.Option(help="Detection: hotcoco, or pycocotools; equal numbers.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Detection: score this COCO results file instead."),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO ground truth for --results.")
    ] = None,
    no_cache: NoCacheOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
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
        useless = {
            "--weights": weights, "--recipe": recipe, "--data": data, "--data-root": data_root,
            "--skip-bad-images": skip_bad_images, "--allow-missing": allow_missing,
            "--no-cache": no_cache,
        }  # fmt: skip
        if not backbone:  # then the numbers are printed, and nothing is recorded
            useless |= {
                "key=value": overrides, "--output": output, "--import": imports, "--dry-run": dry_run,
            }  # fmt: skip
        from tools.experiments.run import results_experiment

        _check_results(task, results, annotations, [key for key, value in useless.items() if value])
        if not backbone:
            _score(results, annotations, evaluator, as_json)
            return
        told = [*(overrides or ()), *([f"evaluate.evaluator={evaluator}"] if evaluator else ())]
        if len(backbone) > 1:
            raise ValueError("--backbone is given twice: a results file is of one network")
        scored = results_experiment(results, annotations, backbone[0], told, imports or ())
        _run([scored], output, False, dry_run, as_json)
        return
    if not weights:
        raise ValueError("--weights is missing: name the file to evaluate")
    settings = _shortcuts(skip_bad_images, allow_missing, evaluator, no_cache)
    places = {"data": data, "data_root": data_root, "imports": imports or ()}
    experiments = []
    for file, network in zip(weights, _networks_of(weights, backbone or []), strict=True):
        # Weights of a run of this suite are evaluated as they were made.
        made = Path(file).parent / SETTINGS
        own = recipe is None and made.is_file()
        if not own and network is None and not any("backbone.name" in o for o in overrides or ()):
            network = _network_in(file)
        source = str(made) if own else recipe
        named = {"backbone": network, "weights": file, **places}
        experiments.append(_load("evaluate", task, source, overrides, settings, **named))
    _run(experiments, output, False, dry_run, as_json)


@app.command(rich_help_panel="Experiments")
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The matrix to run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of all its runs.")],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    imports: ImportOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, run nothing.")] = False,
) -> None:
    """Run networks x tasks x seeds, each SE network beside its plain twin, and report.

    What is recorded already is skipped, what was interrupted goes on, and a run that fails does
    not stop the others: repeat the command until all is done.
    """
    _run_study(study, output, jobs, dry_run, imports or ())


@app.command(rich_help_panel="Experiments")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of all its runs.")] = Path(
        "demo"
    ),
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, run nothing.")] = False,
) -> None:
    """Four benchmarks, plain network beside SE twin, on made data, in minutes: the whole suite."""
    study = Path(__file__).parent.parent / "experiments" / "studies" / "demo.yaml"
    _run_study(study, output, jobs or min(2, os.cpu_count() or 1), dry_run)


app.command(rich_help_panel="Results")(lookup.report)
app.command(rich_help_panel="Results")(lookup.reference)
app.command(rich_help_panel="Results")(lookup.benchmark)
app.command("statistics-check", rich_help_panel="Results")(lookup.statistics_check)
app.command("list", rich_help_panel="Data and networks")(lookup.list_)
app.add_typer(lookup.data_app, name="data", rich_help_panel="Data and networks")
app.add_typer(lookup.weights_app, name="weights", rich_help_panel="Data and networks")


# Parts of the commands ---------------------------------------------------------------------------


def _load(
    action: str,
    task: str,
    recipe: str | None,
    overrides: list[str] | None,
    settings: dict[str, Any],
    **named: Any,
) -> Experiment:
    from backbones.config import unknown
    from tools.experiments.run import TASKS, list_recipes, load_experiment

    if task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    if recipe is None:
        raise ValueError(f"--recipe is missing: choose from {', '.join(list_recipes(task))}")
    return load_experiment(task, recipe, overrides or (), action=action, settings=settings, **named)


def _networks_of(weights: list[str], backbones: list[str]) -> list[str | None]:
    """The network that is named for each file of weights; None: none is."""
    if len(backbones) not in (0, 1, len(weights)):
        raise ValueError(
            f"--backbone is given {len(backbones)} times for {len(weights)} --weights: give it "
            "once, once for each, or not at all"
        )
    for file in weights:
        check_file(file)
    if len(backbones) == len(weights):
        return list(backbones)
    return [backbones[0] if backbones else None] * len(weights)


def _network_in(file: str) -> str | None:
    """The network that a file of weights says it is of, or that its tensors fit."""
    from backbones.weights.load import read_weights

    network = read_weights(file).backbone
    return network.name if network else None


def _shortcuts(
    skip_bad_images: int | None = None,
    allow_missing: list[str] | None = None,
    evaluator: str | None = None,
    no_cache: bool = False,
) -> dict[str, Any]:
    """The settings behind options that have a key of their own."""
    settings: dict[str, Any] = {}
    if skip_bad_images is not None:
        settings["data"] = {"skip_bad_images": skip_bad_images}
    if allow_missing:
        settings["backbone"] = {"allow_missing": allow_missing}
    if evaluator is not None:
        settings["evaluate"] = {"evaluator": evaluator}
    if no_cache:
        settings.setdefault("evaluate", {})["cache"] = "none"
    return settings


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
    from tools.cli.display import describe_check, print_nested, print_record
    from tools.experiments.run import evaluate_experiments, read_recorded, run_experiment

    single = len(experiments) == 1
    if single and output is not None:
        runs = {output: experiments[0]}
    else:
        runs = {(output or _folder(each)) / _run_name(each): each for each in experiments}
    if dry_run:
        found = []
        for directory, each in runs.items():
            summary = each.door().check(each.config, training=each.action == "train")
            found.append(describe_check(each, summary, directory))
        if _first_process and as_json:
            print(json.dumps(found[0] if single else found, indent=1))
        elif _first_process:
            for content in found:
                print_nested(content)
            print("all is well; nothing was run")
        return
    there = [directory for directory, each in runs.items() if read_recorded(each, directory)]
    _show_log()
    keep_large_tensors_on_heap()
    records = []

    def how_to_go_on() -> str:
        if single and (next(iter(runs)) / CHECKPOINT).exists():
            return "go on with the same command and --resume"
        return "nothing was kept; start anew with the same command"

    with _stop_hint(how_to_go_on):
        if single:
            ((directory, experiment),) = runs.items()
            records.append(run_experiment(experiment, directory, resume=resume))
        else:
            records.extend(evaluate_experiments(runs))
    if not _first_process:
        return
    for directory in there:
        _say(f"{directory} has recorded this experiment already; nothing was run")
    if as_json:
        files = [record.directory / "record.json" for record in records]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        print(json.dumps(found[0] if single else found, indent=1))
        return
    for record in records:
        print_record(record)


def _folder(experiment: Experiment) -> Path:
    action = "" if experiment.action == "train" else f"-{experiment.action}"
    return Path("runs") / f"{experiment.task}{action}"


def _run_name(experiment: Experiment) -> str:
    config = experiment.config
    name = f"{Path(experiment.recipe).stem}-{config.backbone.name}-seed{config.seed}"
    return f"{name}-{experiment.hash[:8]}".replace(":", "_")


def _check_results(
    task: str, results: Path | None, annotations: Path | None, useless: list[str]
) -> None:
    if task != "detection":
        raise ValueError("--results is for detection: sebench evaluate detection --results FILE")
    if results is None or annotations is None:
        missing = "--results" if results is None else "--annotations"
        raise ValueError(f"{missing} is missing: scoring a file needs --results and --annotations")
    if useless:
        raise ValueError(
            f"{', '.join(useless)}: --results scores a file as it is, and no network is run; leave "
            "that out, or evaluate --weights. With --backbone NAME, the network it came from, it is "
            "recorded, and --output, --import and seed=N count"
        )
    check_file(results)
    check_file(annotations)


def _score(results: Path, annotations: Path, evaluator: str | None, as_json: bool) -> None:
    from detection.scoring import score_results
    from tools.cli.display import print_metrics

    scores = score_results(results, annotations, evaluator or "hotcoco")
    if as_json:
        print(json.dumps(scores, indent=1, allow_nan=False))
    else:
        print_metrics(scores["metrics"], scores["missing"])


def _run_study(
    path: Path, output: Path, jobs: int, dry_run: bool, imports: Sequence[Path] = ()
) -> None:
    from backbones.files import lock_directory, remove_partial_files
    from tools.cli.display import StudyDisplay, print_plan
    from tools.experiments.study import load_study, make_sample_data, plan, run_cells, start_workers

    study = load_study(path)
    if dry_run:
        print_plan(plan(study, output, imports))
        return
    output.mkdir(parents=True, exist_ok=True)
    with _stop_hint(lambda: "go on with the same command"), lock_directory(output):
        remove_partial_files(output)
        with StudyDisplay(output) as display:
            if study.sample_data:
                display.say("making synthetic data")
                start_workers(entry.task for entry in study.experiments)  # meanwhile
                make_sample_data(study, output)
            cells = plan(study, output, imports)
            display.begin(cells)
            outcomes = []
            # Closed whatever ends this, so that no run is left behind.
            with closing(run_cells(cells, output, jobs, started=display.started)) as running:
                for outcome in running:
                    outcomes.append(outcome)
                    display.ended(outcome)
        recorded = [outcome.cell.directory for outcome in outcomes if outcome.record is not None]
        if recorded:
            from tools.report import write_report

            for written in write_report(recorded, output / "report"):
                if written.suffix == ".html":
                    _say(f"report: {written}")
    failed = [outcome for outcome in outcomes if outcome.record is None]
    if failed:
        lines = [f"  {outcome.cell.label}: {outcome.error}" for outcome in failed]
        raise ValueError(f"{len(failed)} of {len(cells)} runs failed:\n" + "\n".join(lines))


@contextmanager
def _stop_hint(how: Callable[[], str]) -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does, and say how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt

    received = signal.SIGINT
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        _say(f"stopped; {how()}")
        raise typer.Exit(128 + received) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_log() -> None:
    """Print what the benchmarks log, epoch by epoch, above the progress bar."""

    class Stderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(self.format(record), file=sys.stderr)  # looked up now: the bar redirects it

    if _first_process:
        for room in ("backbones", "classification", "scene"):
            logging.getLogger(room).addHandler(Stderr())


def _say(text: str) -> None:
    if _first_process:
        print(text, file=sys.stderr)


def main() -> None:
    """Run the command line. What goes wrong is one line on stderr and a non-zero exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("sebench"))
        return
    # torch says at every import that torchvision uses a function it has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")
    codecs.register_error(_SPELL_OUT, _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELL_OUT)
    try:
        sys.exit(app(prog_name="sebench", standalone_mode=False))
    except _UsageError as error:
        if error.message or str(error):  # otherwise the help has been printed
            _say(f"sebench: {_explain_usage(error)}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:  # `sebench list backbones | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        from tools.experiments.failure import describe_failure

        _say(f"sebench: {describe_failure(error)}")
        sys.exit(1)


_SPELL_OUT = "sebench.spell_out"


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """For terminals that lack a letter: something close, or a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_CLOSE.get(letter, "?") for letter in letters), error.end


_CLOSE = dict(zip("·–—×±−…│─╭╮╰╯┃━", "---x+-.|-++++|-", strict=True))
_UsageError = typer.BadParameter.__mro__[1]  # typer carries its own copy of click


def _explain_usage(error: Any) -> str:
    """What is wrong with the arguments, in one line, with the way to do it."""
    command = error.ctx.command_path if error.ctx else "sebench"
    text = error.format_message().rstrip(".")
    if option := getattr(error, "option_name", None):  # one that the command does not have
        text = f"no such option: {option}"
        name = str(option).lstrip("-").replace("-", "_")
        takes_settings = error.ctx and any(p.name == "overrides" for p in error.ctx.command.params)
        if keys := _settings_called(name) if takes_settings else []:
            text += f"; settings are written {' or '.join(f'{key}=VALUE' for key in keys)}"
        elif near := getattr(error, "possibilities", None):
            text += f"; did you mean {' or '.join(near)}?"
    return f"{text} ({command} --help)"


def _settings_called(name: str) -> list[str]:
    """Settings whose name, or the end of it, is ``name``: of the task among the arguments."""
    from backbones.config import describe_settings
    from tools.experiments.run import TASKS, settings_class

    rows = [TASKS[task] for task in TASKS if task in sys.argv] or list(TASKS.values())
    known = [info.name for row in rows for info in describe_settings(settings_class(row))]
    return list(dict.fromkeys(k for k in known if name in (k, k.rsplit(".", 1)[-1])))[:3]
