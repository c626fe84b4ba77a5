"""What only a fresh process shows: time to start, peak memory.

`python -m tools.speed.processes NETWORK` trains a few steps and prints its peak in bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from tools.speed.timing import Measurement, summarize


def start(arguments: list[str], rounds: int = 11) -> Iterator[Measurement]:
    """Seconds from `sebench ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "tools", *arguments]
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    yield summarize(seconds[1:], {"command": " ".join(["sebench", *arguments])})


def training_memory_over_twin(rounds: int = 3) -> Iterator[Measurement]:
    """Peak memory of three training steps at batch 8, SE-ResNet-50 over ResNet-50.

    On a CPU the whole process counts, libraries included, on a GPU what torch allocated there.
    """
    peaks = [(_peak("se_resnet50"), _peak("resnet50")) for _ in range(rounds)]
    settings = {"steps": 3, "batch": 8, "bytes": peaks[-1][0], "bytes_of_twin": peaks[-1][1]}
    yield summarize([se / plain for se, plain in peaks], settings)


def _peak(network: str) -> int:
    command = [sys.executable, "-m", "tools.speed.processes", network]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return int(done.stdout.split()[-1])


def _train(name: str) -> int:
    from backbones.device import choose_device, keep_large_tensors_on_heap, peak_memory

    keep_large_tensors_on_heap()
    import torch

    from tools.speed.networks import images
    from tools.speed.training import BATCH, build_step, network_to_train

    device = choose_device("auto")
    x = images(BATCH, (224, 224), device, torch.float32)
    step = build_step(network_to_train(name, "eager").to(device), x)
    for _ in range(3):
        step()
    return peak_memory(device)


if __name__ == "__main__":
    print(_train(sys.argv[1]))
