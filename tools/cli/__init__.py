"""The command line, `sebench` or `python -m tools`: reads arguments, prints, sets exit codes.

What it calls imports torch, so those imports stand inside the commands: `--help` answers at once.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from backbones.offline import follow_switches
from tools.cli import costs, doctor, experiments, lookup, plan, proof, reproduce, study, weights
from tools.cli.arguments import say

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


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; at any place.")
    ] = False,
) -> None:
    """`main` takes --debug out of the arguments; here it is only explained."""


_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Experiments": {
        "train": experiments.train, "evaluate": experiments.evaluate, "run": study.run,
        "status": study.status, "demo": study.demo, "plan": plan.plan, "doctor": doctor.doctor,
        "reproduce": reproduce.reproduce,
    },
    "Results": {
        "report": lookup.report, "bundle": proof.bundle, "verify": proof.verify,
        "reference": lookup.reference, "benchmark": lookup.benchmark,
        "statistics-check": lookup.statistics_check,
    },
    "Data and networks": {"measure": costs.measure, "twin": costs.twin, "list": lookup.list_},
}  # fmt: skip
for panel, commands in _PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(lookup.data_app, name="data", rich_help_panel="Data and networks")
app.add_typer(weights.weights_app, name="weights", rich_help_panel="Data and networks")


def main() -> None:
    """Run the command line. What goes wrong is one line on stderr and a non-zero exit code."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("sebench"))
        return
    follow_switches()
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
        if str(error):  # otherwise the help has been printed
            say(f"sebench: {_explain_usage(error)}")
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

        say(f"sebench: {describe_failure(error)}")
        sys.exit(1)


_SPELL_OUT = "sebench.spell_out"


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """For terminals that lack a letter: something close, or a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_CLOSE.get(letter, "?") for letter in letters), error.end


_CLOSE = dict(zip("·–—×±−…│─╭╮╰╯┃━", "---x+-.|-++++|-", strict=True))
# typer carries its own copy of click: this is the class of every mistake in arguments.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


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
    from tools.experiments.tasks import TASKS, settings_class

    rows = [TASKS[task] for task in TASKS if task in sys.argv] or list(TASKS.values())
    known = [info.name for row in rows for info in describe_settings(settings_class(row))]
    return list(dict.fromkeys(k for k in known if name in (k, k.rsplit(".", 1)[-1])))[:3]
