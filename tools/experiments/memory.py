"""Runs that do not fit into memory: smaller parts of the same batch, and a note that it was so.

Halving the micro-batch keeps the images of every optimiser step, their order and the learning rate; batch norms
that are not frozen take their statistics over fewer images, as with `train.accumulate` in a recipe.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import Count, printable
from backbones.device import OUT_OF_MEMORY, StepOutOfMemory, is_out_of_memory
from tools.experiments.typed_json import read_typed

logger = logging.getLogger("tools.experiments.memory")


@dataclass(frozen=True)
class Fitted:
    """How a run was made to fit. None: as planned."""

    accumulate: Count | None = None  # micro-batches a step, in the place of train.accumulate
    evaluate_batch_size: Count | None = None
    reason: str = ""  # the error, in a line

    def __str__(self) -> str:
        return f"{self.reason}; from now on fewer images at a time"


def read_fitted(directory: Path) -> Fitted | None:
    """What `make_fit` noted in a run's directory, if it is there and sound."""
    try:
        return read_typed(directory / files.MEMORY, Fitted)
    except ValueError:
        return None


def fit(config: Any, fitted: Fitted | None) -> Any:
    """A task's settings as they are run."""
    if fitted is None:
        return config
    if fitted.accumulate is not None:
        config = replace(config, train=replace(config.train, accumulate=fitted.accumulate))
    if fitted.evaluate_batch_size is not None:
        evaluate = replace(config.evaluate, batch_size=fitted.evaluate_batch_size)
        config = replace(config, evaluate=evaluate)
    return config


def make_fit(config: Any, error: BaseException, directory: Path) -> bool:
    """Note how the next attempt takes less memory. False: the error is of something else.

    Args:
        config: as it was run.

    Raises:
        MemoryError: there is nothing left to halve; the message says what to do.
    """
    if not is_out_of_memory(error):
        return False
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = printable(next(filter(OUT_OF_MEMORY.search, lines), lines[0]))
    noted = read_fitted(directory) or Fitted()
    evaluate_size = getattr(config.evaluate, "batch_size", None)
    if isinstance(error, StepOutOfMemory):
        processes = int(os.environ.get("WORLD_SIZE", getattr(config, "processes", 1)))
        size = config.train.batch_size // processes // config.train.accumulate
        if size % 2 or size < 2 * config.train.smallest_part:
            raise MemoryError(
                f"{reason}; with train.accumulate={config.train.accumulate} a part of a batch has "
                f"{size} images, which cannot be halved: use smaller images or a larger machine"
            ) from None
        noted = replace(noted, accumulate=2 * config.train.accumulate, reason=reason)
        logger.warning("%s: from now on %d images of a batch at a time", reason, size // 2)
    elif evaluate_size and evaluate_size > 1:
        noted = replace(noted, evaluate_batch_size=evaluate_size // 2, reason=reason)
        logger.warning(
            "%s: from now on %d images at a time are evaluated", reason, evaluate_size // 2
        )
    else:
        raise MemoryError(
            f"{reason}; this evaluation has one image at a time already: use smaller images or a "
            "larger machine"
        ) from None
    files.write_whole(directory / files.MEMORY, json.dumps(asdict(noted)))
    return True


def give_back() -> None:
    """Free what a failed attempt held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
