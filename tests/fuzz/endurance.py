"""Kill training runs at random moments, go on with them, and ask for what no kill would have left.

    python -m tests.fuzz.endurance --trials 30

Each trial is a whole run of one of three tasks, stopped by SIGKILL, SIGTERM or Ctrl-C, at times more than
once, and gone on with by the command that a user would type. In the end its files, weights, curve, metrics
and rows must be those of a run that nobody touched.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from tests.fuzz import import_readers
from tools import cli, sample_data

_IMAGES = "train.batch_size=4 augment.size=32 evaluate.resize=40 evaluate.crop=32 train.epochs=4 train.log_every=1"  # fmt: skip
COMMANDS = {
    "classification": f"train classification -r imagenet-paper -b resnet_tiny --data-root {{root}}/imagenet data.classes=folders {_IMAGES} train.checkpoint_every=0",
    "scene": f"train scene -r places365-short -b se_resnet_tiny --data-root {{root}}/places {_IMAGES} train.precision=float32 train.schedule.warmup=1 train.checkpoint_every=0",
    "detection": "train detection -r tiny -b resnet_tiny --data-root {root}/coco train.batch_size=2 train.iterations=10 train.warmup_iterations=1 train.checkpoint_every=2 data.workers=-1",
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_TIMES = ("seconds", "time", "images_per_second", "eta", "memory")  # of a curve's row: not compared


def make_data(root: Path) -> None:
    sizes = {"train_per_class": 4, "val_per_class": 2, "size": 48}
    sample_data.make_imagenet(root / "imagenet", classes=3, **sizes)
    sample_data.make_places365(root / "places", classes=4, **sizes)
    sample_data.make_coco(root / "coco", train=6, val=3, size=64)


def _run(command: str, log: Path) -> None:
    os.setsid()
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        faulthandler.enable()
        torch.set_num_threads(1)
        sys.argv = ["sebench", *command.split()]
        cli.main()


def attempt(command: str, directory: Path, log: Path, stop: tuple[float, int] | None) -> int:
    """Run a command in a process of its own, and send it a signal after some seconds.

    Returns its exit code, negative for a signal.
    """
    resumed = " --resume" if (directory / "checkpoint.pt").exists() else ""
    line = f"{command} -o {directory}{resumed}"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(line, log))
    process.start()
    if stop is not None:
        process.join(stop[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, stop[1])
    process.join(120)
    if process.is_alive():
        os.kill(process.pid, signal.SIGABRT)  # faulthandler writes where it is
        process.join(5)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{line} did not stop within two minutes; see {log}")
    return process.exitcode


def left(directory: Path) -> dict[str, object]:
    """What a finished run has left, without times."""
    import pyarrow.parquet

    record = json.loads((directory / "record.json").read_text())
    rows = [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]
    found: dict[str, object] = {
        "files": sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if "events.out" not in path.name),
        "weights": (directory / "weights.safetensors").read_bytes(),
        "curve": [{k: v for k, v in row.items() if not any(t in k for t in _TIMES)} for row in rows],
        "metrics": record["metrics"],
        "per_class": record["per_class"],
        "hash": record["experiment"]["hash"],
    }  # fmt: skip
    if (directory / "samples.parquet").exists():
        found["samples"] = pyarrow.parquet.read_table(directory / "samples.parquet").to_pylist()
    if (directory / "detections.json").exists():
        found["detections"] = (directory / "detections.json").read_bytes()
    return found


def endure(root: Path, tasks: Sequence[str], trials: int, seed: int) -> tuple[int, int, list[str]]:
    """Kill and go on; returns finished runs, signals that met a running process, and what is wrong."""
    whole, durations, wrong, kills = {}, {}, [], 0
    for task in tasks:
        begun = time.monotonic()
        directory = root / f"{task}-whole"
        code = attempt(COMMANDS[task].format(root=root), directory, root / f"{task}.txt", None)
        if code:
            raise AssertionError((root / f"{task}.txt").read_text())
        whole[task], durations[task] = left(directory), time.monotonic() - begun
    for trial in range(trials):
        rng = Random(f"{seed}:{trial}")
        task = tasks[trial % len(tasks)]
        command, directory = COMMANDS[task].format(root=root), root / f"{task}-{trial}"
        log, met = root / f"{task}-{trial}.txt", []
        for _ in range(rng.choice((1, 1, 2, 3))):
            stop = rng.uniform(0.0, 1.05 * durations[task]), rng.choice(SIGNALS)
            code = attempt(command, directory, log, stop)
            if code == 0:
                break
            met.append(f"{signal.Signals(stop[1]).name} after {stop[0]:.2f} s (exit {code})")
        code = attempt(command, directory, log, None)
        kills += len(met)
        if code:
            wrong.append(f"{directory}, {met}: {log.read_text()[-1500:]}")
            continue
        found = left(directory)
        differing = [key for key in whole[task] if found.get(key) != whole[task][key]]
        if differing:
            shown = [f"{key}: {found.get(key)} not {whole[task][key]}" for key in differing if key != "weights"]  # fmt: skip
            wrong.append(f"{directory}, {met}: differs in {differing} {str(shown)[:1500]}")
        else:
            shutil.rmtree(directory)
        print(f"{trial + 1} of {trials} runs, {kills} kills, {len(wrong)} wrong", file=sys.stderr)
    return trials, kills, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.endurance", description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", action="append", choices=COMMANDS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_readers()
    os.environ["PYTHONWARNINGS"] = "ignore"
    root = Path(tempfile.mkdtemp(prefix="sebench-endurance-"))
    with contextlib.redirect_stdout(io.StringIO()):
        make_data(root)
    begun = time.monotonic()
    tasks = arguments.task or list(COMMANDS)
    trials, kills, wrong = endure(root, tasks, arguments.trials, arguments.seed)
    for each in wrong:
        print(each)
    seconds = time.monotonic() - begun
    print(
        f"{trials} runs, {kills} kills, {len(wrong)} wrong, {seconds:.0f} s, seed {arguments.seed}"
    )
    if not wrong:
        shutil.rmtree(root)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
