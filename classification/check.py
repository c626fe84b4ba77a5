"""What can be found wrong with an experiment before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from backbones.config import first_line
from backbones.tracker import check_tracker
from classification.config import ClassificationConfig
from classification.datasets import Batch
from classification.distributed import Processes
from classification.loader import evaluation_batches, train_batches
from classification.optimizer import check_optimizer, check_schedule
from classification.protocols import Protocol
from classification.splits import Split, check_batches

# Mean of the training images of sets that are easily taken for each other, as recipes give them.
_MEANS = {"cifar10": [125.3, 123.0, 113.9], "cifar100": [129.3, 124.1, 112.4]}


def check_training(
    config: ClassificationConfig, dataset: Split, processes: int
) -> tuple[int, list[str]]:
    """Hold batch, optimiser and schedule against the data and each other.

    Returns:
        Optimiser steps of an epoch, and what is likely a mistake, a line each with the mend.

    Raises:
        ValueError: naming the setting, what was allowed and the mend.
    """
    train = config.train
    check_tracker(train.tracker)
    steps = check_batches(config, dataset, processes)
    total = train.iterations or steps * train.epochs
    check_optimizer(train.optimizer)
    doubts = check_schedule(train.schedule, total, steps)
    if train.freeze_norms_epochs * steps >= total:
        doubts.append(
            f"train.freeze_norms_epochs={train.freeze_norms_epochs}: batch norms are frozen during "
            "the whole run"
        )
    for name, mean in _MEANS.items():
        right = _MEANS.get(config.data.name)
        if right is not None and name != config.data.name and config.data.mean == mean:
            doubts.append(f"data.mean={mean} is of {name}, not of {config.data.name}: {right}")
    return steps, doubts


def check_train_images(
    network: nn.Module,
    config: ClassificationConfig,
    dataset: Split,
    interpolation: str,
    processes: int,
) -> None:
    """Send an image the whole way through augmentation and the network, which is on 'meta'.

    Raises:
        ValueError: the augmentation or the network cannot take such images, or so few at a time.
    """
    data, cpu = replace(config.data, workers=0), torch.device("cpu")
    batches = train_batches(dataset, iter([[(0, 0)]]), data, config.augment, interpolation, cpu)
    images = config.train.batch_size // (processes * config.train.accumulate)
    # Unreadable files are left out of their batch.
    fewest = max(1, images - config.data.skip_bad_images)
    _try_images(
        network.train(),
        batches,
        fewest,
        f"augment: images of {dataset.name}",
        "give more images at a time (train.batch_size, train.accumulate), or larger ones "
        "(augment.size)",
    )


def check_evaluation_images(
    network: nn.Module, dataset: Split, protocol: Protocol, interpolation: str
) -> None:
    """Send an image the whole way through the protocol and the network, which is on 'meta'.

    Raises:
        ValueError: the protocol or the network cannot take such images.
    """
    alone = Processes(0, 1, torch.device("cpu"))
    _try_images(
        network.eval(),
        evaluation_batches(dataset.subset(np.arange(1)), protocol, 1, alone, 0, interpolation),
        1,
        f"evaluate.protocol: images of {dataset.name}",
        "choose another evaluate.protocol or evaluate.crop",
    )


def check_compiler(inference: str) -> None:
    """Whether networks can be compiled here, where that is asked for.

    Raises:
        ValueError: they cannot; the reason is given.
    """
    if inference != "compiled":
        return
    try:
        torch.compile(nn.Linear(2, 2))(torch.zeros(1, 2))
    except Exception as error:
        raise ValueError(
            f"evaluate.inference=compiled: torch cannot compile here ({first_line(error)}); "
            "choose eager or auto"
        ) from None


def _try_images(
    network: nn.Module, batches: Iterator[Batch], count: int, what: str, mend: str
) -> None:
    """Run a network on the shapes alone of `count` images like the one of `batches`.

    Raises:
        ValueError: the image cannot be prepared, or the network does not take such images.
    """
    try:
        found = list(batches)
    except ValueError:
        raise
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"{what} cannot be prepared: {first_line(error)}") from None
    for batch in found:
        if len(batch.labels):  # it could be read
            _try_shape(network, (count, *batch.images.shape[-3:]), mend)


def _try_shape(network: nn.Module, shape: tuple[int, ...], mend: str) -> None:
    # Modules that are watched take no shortcuts past each other's checks.
    hooks = [m.register_forward_pre_hook(lambda *_: None) for m in network.modules()]
    try:
        with torch.no_grad():
            network(torch.empty(shape, device="meta"))
    except NotImplementedError:
        pass  # an operation that knows no shapes without values: nothing can be said
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        reason = first_line(error)
        if "meta" not in reason:
            size = "x".join(map(str, shape[2:]))
            raise ValueError(
                f"the network cannot take {shape[0]} images of {size} pixels: {reason}; {mend}"
            ) from None
    finally:
        for hook in hooks:
            hook.remove()
