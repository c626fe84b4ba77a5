"""What the suite claims about speed and memory, each claim measured against its peer.

`sebench benchmark` lists the claims, `sebench benchmark NAME` measures one: ratios of interleaved
runs, their median and quartiles; in one process, except timm's unmodified network, which has its
own. A ratio of
times is given only between things whose outputs are equal, up to what is stated.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbones.config import unknown
from backbones.device import processor_name
from backbones.files import write_whole


@dataclass(frozen=True)
class Benchmark:
    """A claim.

    Attributes:
        function: "module:name" in this package; called with `arguments`, gives Measurements.
        compares: what is divided by what.
        kind: "overhead" (1.02 is +2 %), "speed" (times faster), "share" or "seconds".
        target: at most this, or for "speed" at least.
    """

    function: str
    compares: str
    kind: str
    target: float
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def target_in_words(self) -> str:
        """What is to be reached."""
        return in_words(self.kind, self.target) + (
            " or more" if self.kind == "speed" else " or less"
        )

    def is_reached_by(self, value: float) -> bool:
        """Whether ``value`` is at the target or better."""
        return value >= self.target if self.kind == "speed" else value <= self.target


_TWIN = "SE-ResNet-50 over its plain twin, inference, batch {}, {}"
_STEP = "SE-ResNet-50 over its plain twin, training step, batch 8, {}"
_TIMM = "SE-ResNet-50, compiled, against timm's seresnet50 as it comes, batch {}"
_RCNN = "Faster R-CNN SE-ResNet-50-FPN against Detectron2's own R50-FPN, {}"
_INPUT = "{}, against torchvision's default pipeline on one core"

# Batches are those on a CPU; on a GPU 16 becomes 256, in float32 and bf16.
# fmt: off
BENCHMARKS = {
    "inference-eager": Benchmark(
        "networks:over_twin", _TWIN.format(16, "eager"), "overhead", 1.02,
        {"mode": "eager", "batch": 16}),
    "inference-compiled": Benchmark(
        "networks:over_twin", _TWIN.format(16, "compiled"), "overhead", 1.005,
        {"mode": "compiled", "batch": 16}),
    "inference-compiled-one": Benchmark(
        "networks:over_twin", _TWIN.format(1, "compiled"), "overhead", 1.015,
        {"mode": "compiled", "batch": 1}),
    "backbone-compiled": Benchmark(
        "detectors:backbone_over_twin", "SE-ResNet-50 over its plain twin as a detector's backbone, "
        "frozen norms, 800x1088, compiled", "overhead", 1.01),
    "timm": Benchmark("networks:against_timm", _TIMM.format(16), "speed", 1.6, {"batch": 16}),
    "timm-one": Benchmark("networks:against_timm", _TIMM.format(1), "speed", 2.0, {"batch": 1}),
    "training-eager": Benchmark(
        "training:step_over_twin", _STEP.format("eager"), "overhead", 1.04, {"mode": "eager"}),
    "training-compiled": Benchmark(
        "training:step_over_twin", _STEP.format("compiled"), "overhead", 1.015,
        {"mode": "compiled"}),
    "training-frozen": Benchmark(
        "training:step_over_twin", _STEP.format("frozen norms"), "overhead", 1.04,
        {"mode": "frozen"}),
    "detector-training": Benchmark(
        "detectors:train_against_detectron2", _RCNN.format("training"), "speed", 1.0),
    "detector-inference": Benchmark(
        "detectors:detect_against_detectron2", _RCNN.format("inference"), "speed", 1.0),
    "coco-file": Benchmark(
        "coco:score_file", "COCO's 12 numbers of a results file, 1000 images x 80 categories x "
        "100 detections, against pycocotools", "speed", 80.0),
    "coco-arrays": Benchmark(
        "coco:score_arrays", "COCO's 12 numbers while detections arrive as arrays, share of the "
        "evaluation's wall time", "share", 0.01),
    "input-first": Benchmark(
        "inputs:first_pass", _INPUT.format("evaluation crops, first pass"), "speed", 2.0),
    "input-later": Benchmark(
        "inputs:later_pass", _INPUT.format("evaluation crops, later passes"), "speed", 40.0),
    "input-training": Benchmark(
        "inputs:training", _INPUT.format("random resized crops, flipped"), "speed", 1.5),
    "harness": Benchmark(
        "training:run_over_bare_loop", "a training run over a bare loop of the same network, "
        "loader and optimizer", "overhead", 1.005),
    "start-help": Benchmark(
        "processes:start", "sebench --help", "seconds", 0.3, {"arguments": ["--help"]}),
    "start-list": Benchmark(
        "processes:start", "sebench list backbones", "seconds", 1.5,
        {"arguments": ["list", "backbones"]}),
    "memory": Benchmark(
        "processes:training_memory_over_twin", "peak memory of training SE-ResNet-50 over its "
        "plain twin, batch 8", "overhead", 1.03),
}
# fmt: on


def run_benchmark(name: str) -> dict[str, Any]:
    """Measure one row of `BENCHMARKS`, in up to five minutes on two cores.

    Returns:
        name, compares, kind, target, reached (bool), measurements (dicts of `timing.Measurement`;
        several where there is a GPU), hardware and versions.

    Raises:
        ValueError: an unknown name, with near matches; outputs that differ where they must not.
    """
    if name not in BENCHMARKS:
        raise ValueError(unknown("benchmark", name, BENCHMARKS))
    from backbones.device import keep_large_tensors_on_heap
    from tools.experiments.record import describe_versions

    keep_large_tensors_on_heap()
    benchmark = BENCHMARKS[name]
    module, _, function = benchmark.function.partition(":")
    measure = getattr(importlib.import_module(f"tools.speed.{module}"), function)
    measurements = list(measure(**benchmark.arguments))
    return {
        "name": name,
        "compares": benchmark.compares,
        "kind": benchmark.kind,
        "target": benchmark.target_in_words,
        "reached": all(benchmark.is_reached_by(each.value) for each in measurements),
        "measurements": [
            {"result": _result_in_words(benchmark.kind, each), **asdict(each)}
            for each in measurements
        ],
        "hardware": describe_hardware(),
        "versions": describe_versions(),
    }


def measure_all(path: Path, names: Iterable[str] = BENCHMARKS, seconds: int = 900) -> None:
    """Measure rows one after another, each in a process of its own, into a Markdown file.

    The file is written anew after each row. Run it when nothing else runs.

    Args:
        path: e.g. `tools/speed/results.md`.
        names: of `BENCHMARKS`.
        seconds: after which a row is given up, and marked so.
    """
    rows: list[str] = []
    surroundings = ""
    for name in names:
        benchmark = BENCHMARKS[name]
        row = f"| `{name}` | {benchmark.compares} | {benchmark.target_in_words} |"
        command = [sys.executable, "-m", "tools", "benchmark", name, "--json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            rows.append(f"{row} not measured: {type(error).__name__} | | |")
        else:
            result = json.loads(done.stdout)
            surroundings = _surroundings(result)
            reached = "reached" if result["reached"] else "missed"
            rows += [
                f"{row} {each['result']} | {each['rounds']} | {reached} |"
                for each in result["measurements"]
            ]
        print(rows[-1], flush=True)
        write_whole(path, "\n".join([_RESULTS.format(surroundings), *rows]) + "\n")


_RESULTS = """\
# Measured speed and memory

Written by `sebench benchmark all`: medians of interleaved rounds, quartiles in brackets, float32. {}.
Wide quartiles mean that an effect is below what could be seen on that machine.

| benchmark | what | target | median (quartiles) | rounds | |
|---|---|---|---|---|---|"""


def _surroundings(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    parts = [
        f"{hardware['processor']} ({hardware['instructions']}), {hardware['cores']} cores, "
        f"{hardware['threads']} threads",
        ", ".join(hardware["gpus"]) or "no GPU",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    return "; ".join(parts)


def in_words(kind: str, value: float) -> str:
    """A value as people say it: +1.8 %, 1.65x, 0.21 s."""
    if kind == "overhead":
        return f"{100 * (value - 1):+.1f} %"
    if kind == "speed":
        return f"{value:.3g}x"
    if kind == "share":
        return f"{100 * value:.2g} %"
    return f"{value:.2f} s"


def _result_in_words(kind: str, measurement: Any) -> str:
    low, high = in_words(kind, measurement.low), in_words(kind, measurement.high)
    return f"{in_words(kind, measurement.value)} ({low} to {high})"


def print_result(result: dict[str, Any]) -> None:
    """What `run_benchmark` returns, for people."""
    reached = "reached" if result["reached"] else "missed"
    print(f"{result['compares']}; target {result['target']}: {reached}")
    for each in result["measurements"]:
        settings = ", ".join(f"{key} {value}" for key, value in each["settings"].items())
        print(f"  {each['result']}, {each['rounds']} rounds; {settings}")
        if each["difference"] is not None:
            print(f"  outputs differ by {each['difference']:.0e}, {each['allowed']:.0e} is allowed")
    print(f"  {_surroundings(result)}")


def describe_hardware() -> dict[str, Any]:
    """Processor, its cores and the threads that compute, GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
