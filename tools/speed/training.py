"""Training: a step of an SE network over its twin's, and a run over a bare loop."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import InputFormat, build_network
from backbones.device import choose_device
from classification.config import ClassificationConfig
from classification.datasets import ImageArray
from classification.distributed import Processes
from classification.engine import Trainer
from classification.loader import train_batches
from classification.optimizer import Schedule, build_optimizer
from classification.order import SampleOrder
from classification.splits import READERS, load_splits
from classification.transforms import normalize
from tools.experiments.experiment import load_experiment
from tools.sample_data import make_cifar10
from tools.speed.networks import calibrate_norms, describe, images
from tools.speed.timing import Measurement, choose_clock, compare, interleave, summarize

BATCH = 8


def step_over_twin(mode: str) -> Iterator[Measurement]:
    """Forward, loss, backward and SGD of SE-ResNet-50 over ResNet-50's.

    Args:
        mode: "eager"; "compiled"; or "frozen", as detectors train: eager, all norms frozen.
    """
    device = choose_device("auto")
    count = 256 if device.type == "cuda" else BATCH
    precisions = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    x = images(count, (224, 224), device, torch.float32)
    for precision in precisions:
        se, plain = (
            build_step(network_to_train(name, mode).to(device), x, precision)
            for name in ("se_resnet50", "resnet50")
        )
        settings = describe(x, mode=mode) | {"precision": str(precision).removeprefix("torch.")}
        # Two networks to compile, forward and backward, leave less of the five minutes.
        yield compare(se, plain, settings, seconds=30.0 if mode == "compiled" else 90.0)


def network_to_train(name: str, mode: str) -> nn.Module:
    """A network in training mode, channels last, its norms frozen or the whole compiled as asked."""
    if mode == "frozen":
        from detection.backbone import build_detectron2_backbone  # Detectron2, for this alone

        stages = calibrate_norms(
            build_detectron2_backbone(name, out_features=["res5"], freeze_at=0)
        )
        network = nn.Sequential(stages, _PooledClassifier())
    else:
        network = build_network(name)
    network = network.to(memory_format=torch.channels_last).train()
    if mode == "compiled":
        network.compile()
    return network


def build_step(
    network: nn.Module, x: Tensor, precision: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """Return a function that makes one step of SGD and returns the loss."""
    labels = torch.arange(len(x), device=x.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


class _PooledClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2048, 1000)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.fc(features["res5"].mean(dim=(2, 3)))


# The harness ---------------------------------------------------------------------------------------


def run_over_bare_loop(rounds: int = 8, iterations: int = 40) -> Iterator[Measurement]:
    """`classification`'s trainer over a loop of ten lines; both end with the same weights.

    SE-ResNet-20 on 32 images of 32x32 in memory: steps of a fraction of a second, so that what
    the harness adds to each would show.
    """
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        root = make_cifar10(Path(folder) / "cifar10", train_per_class=200, test_per_class=10)
        overrides = [f"train.iterations={iterations}", "train.batch_size=32", "evaluate.every=0"]
        experiment = load_experiment(
            "classification",
            "cifar-preact",
            [*overrides, "backbone.name=se_resnet20", f"data.root={root}"],
        )
        config: ClassificationConfig = experiment.config
        dataset = load_splits(config, READERS, training=True).train
        assert isinstance(dataset, ImageArray)
        torch.manual_seed(0)
        network = build_network("se_resnet20", 10)
        clock, clock_name = choose_clock()
        expected: dict[str, Tensor] = {}  # weights at the end, of whichever is first

        def seconds(train: Callable[..., None], *more: Any) -> float:
            trained = copy.deepcopy(network)
            taken = clock(partial(train, trained, dataset, config, device, *more))
            for name, tensor in trained.state_dict().items():
                if not torch.equal(tensor, expected.setdefault(name, tensor)):
                    raise ValueError(f"{name} is not the same after the run and the bare loop")
            return taken

        found = interleave(
            lambda: seconds(_harness, Path(tempfile.mkdtemp(dir=folder))),
            partial(seconds, _bare_loop),
            seconds=0.0,
            least=rounds,
        )
        settings = {
            "device": device.type,
            "network": "se_resnet20",
            "batch": config.train.batch_size,
            "iterations": iterations,
            "seconds": round(found[-1][1], 2),
            "clock": clock_name,
        }
        yield summarize([run / loop for run, loop in found], settings, (0.0, 0.0))


def _harness(
    network: nn.Module,
    dataset: ImageArray,
    config: ClassificationConfig,
    device: torch.device,
    directory: Path,
) -> None:
    processes = Processes(0, 1, device)
    trainer = Trainer(network, dataset, config, InputFormat(), processes, directory, None)
    trainer.fit()


def _bare_loop(
    network: nn.Module, dataset: ImageArray, config: ClassificationConfig, device: torch.device
) -> None:
    train, processes = config.train, Processes(0, 1, device)
    assert train.iterations is not None
    order = SampleOrder(dataset.labels, train.batch_size, config.seed, config.data.sampling)
    parts = order.parts(0, train.iterations, processes, 1)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, train.optimizer)
    schedule = Schedule(optimizer, train.schedule, train.iterations, order.steps_per_epoch)
    batches = train_batches(dataset, parts, config.data, config.augment, "bilinear", device)
    for step, batch in zip(range(1, train.iterations + 1), batches, strict=False):
        images = normalize(batch.images.to(device), InputFormat())
        images = images.contiguous(memory_format=torch.channels_last)
        F.cross_entropy(network(images), batch.labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.move_to(step)
