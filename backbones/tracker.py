"""Experiment trackers: every row of curve.jsonl goes to one of them too, or to TensorBoard.

The rows of the file stay the truth. A run that goes on goes on in the tracker as well, under the name
and identifier that its directory gives it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from backbones.config import unknown
from backbones.files import CURVE

logger = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = (
    "sebench"  # what runs are filed under, where the tracker's own environment says nothing else
)

Log = Callable[[int, Mapping[str, float]], None]  # (step, values)


@contextmanager
def open_trackers(
    directory: Path, name: str | None, tensorboard: bool, settings: Any, step: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that passes on rows of a run's curve: "step", and values by their names.

    Args:
        name: one of OPENERS, or None.
        tensorboard: whether TensorBoard's files are written, where it is installed.
        settings: of the run, a dataclass.
        step: the run goes on from here.

    Raises:
        ValueError: `name` is not installed.
    """
    check_tracker(name)
    names = [name] if name else []
    if tensorboard and "tensorboard" not in names:
        if find_spec("tensorboard"):
            names.append("tensorboard")
        else:
            logger.info("tensorboard is not installed: %s holds the same points", CURVE)
    with ExitStack() as stack:
        logs = [OPENERS[each](directory, asdict(settings), step, stack) for each in names]

        def log(row: Mapping[str, Any]) -> None:
            known = {key: value for key, value in row.items() if value is not None}
            step = known.pop("step")
            for each in logs:
                each(step, known)

        yield log


def check_tracker(name: str | None) -> None:
    """Raise a ValueError for a tracker that is not known or not installed."""
    if name is None:
        return
    if name not in OPENERS:
        raise ValueError(f"train.tracker: {unknown('tracker', name, OPENERS)}")
    if find_spec(name) is None:
        raise ValueError(
            f"train.tracker={name}: it is not installed; pip install 'sebench[{name}]', or leave it "
            f"out: {CURVE} holds the same points"
        )


def _name_of(directory: Path) -> tuple[str, str]:
    """A run's name for people, and its identifier."""
    place = directory.resolve()
    return f"{place.parent.name}/{place.name}", hashlib.sha256(str(place).encode()).hexdigest()[:16]


def _open_tensorboard(directory: Path, settings: dict, step: int, stack: ExitStack) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step)
    stack.callback(writer.close)

    def log(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log


def _open_wandb(directory: Path, settings: dict, step: int, stack: ExitStack) -> Log:
    import wandb

    name, identifier = _name_of(directory)
    run = wandb.init(
        project=PROJECT,
        name=name,
        id=identifier,
        resume="allow",
        dir=str(directory),
        config=settings,
    )
    stack.callback(run.finish)
    return lambda step, values: run.log(dict(values), step=step)


def _open_mlflow(directory: Path, settings: dict, step: int, stack: ExitStack) -> Log:
    import mlflow

    name, identifier = _name_of(directory)
    mlflow.set_experiment(PROJECT)
    there = mlflow.search_runs(filter_string=f"tags.sebench = '{identifier}'", output_format="list")
    if there:
        mlflow.start_run(run_id=there[0].info.run_id)
    else:
        mlflow.start_run(run_name=name, tags={"sebench": identifier})
        mlflow.log_dict(settings, "settings.yaml")
    stack.callback(mlflow.end_run)
    return lambda step, values: mlflow.log_metrics(dict(values), step=step)


def _open_trackio(directory: Path, settings: dict, step: int, stack: ExitStack) -> Log:
    import trackio

    name, identifier = _name_of(directory)
    name = f"{name}-{identifier[:6]}"
    run = trackio.init(project=PROJECT, name=name, resume="allow", config=settings)
    stack.callback(run.finish)
    return lambda step, values: run.log(dict(values), step=step)


OPENERS: dict[str, Callable[[Path, dict, int, ExitStack], Log]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}
