"""Optimisers by name, and the learning rate as a function of the step."""

import bisect
import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

from backbones.config import check_choice, first_line
from classification.config import OptimizerSettings, ScheduleSettings


def build_optimizer(network: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Build timm's optimiser `settings.name` over the parameters of `network`.

    Raises:
        ValueError: timm has no optimiser of that name.
    """
    check_choice("train.optimizer.name", settings.name, list_optimizers())
    name = settings.name
    if name == "sgd":  # timm's 'sgd' is Nesterov's, its 'momentum' the plain one
        name = "sgd" if settings.nesterov else "momentum"
    return create_optimizer_v2(
        network,
        opt=name,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        filter_bias_and_bn=not settings.decay_norms,
    )


def check_optimizer(settings: OptimizerSettings) -> None:
    """Make a step on a network of a few numbers, so that what cannot work here is found early.

    Raises:
        ValueError: timm has no optimiser of that name, or it needs what is not here: a GPU, a
            package, a compiler, another momentum.
    """
    check_choice("train.optimizer.name", settings.name, list_optimizers())
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    try:
        optimizer = build_optimizer(network, settings)
        network(torch.ones(2, 3, 3, 3)).sum().backward()
        optimizer.step()
    except Exception as error:
        raise ValueError(
            f"train.optimizer.name={settings.name}: it cannot make a step with these settings here "
            f"({first_line(error)}); choose another, e.g. sgd or adamw"
        ) from None


def check_schedule(settings: ScheduleSettings, total_steps: int, steps_per_epoch: int) -> list[str]:
    """Hold the schedule against the length of the run.

    Returns:
        What is likely a mistake, a line each, with the mend.

    Raises:
        ValueError: the run ends before the learning rate has warmed up.
    """
    unit = settings.unit
    length = _length(settings, total_steps, steps_per_epoch)
    if settings.warmup > length:
        raise ValueError(
            f"train.schedule.warmup={settings.warmup}: the run ends after {length} {unit}s, before "
            f"the learning rate has warmed up; set train.schedule.warmup={length // 10}, or train "
            "longer"
        )
    doubts = []
    if settings.warmup > length / 2:
        doubts.append(
            f"train.schedule.warmup={settings.warmup} is most of the {length} {unit}s of the run"
        )
    late = [milestone for milestone in settings.milestones if milestone >= length]
    if settings.name == "multistep" and late:
        doubts.append(
            f"train.schedule.milestones={late} lie beyond the end of the run, {length} {unit}s: "
            "the learning rate never falls there; lower them with the length of the run"
        )
    if settings.name == "step" and settings.step_size >= length:
        doubts.append(
            f"train.schedule.step_size={settings.step_size}: the learning rate never falls within "
            f"the {length} {unit}s of the run; lower it with the length of the run"
        )
    return doubts


class Schedule:
    """Sets the learning rate of `optimizer` by the number of steps done.

    A plateau goes by the losses it was shown; everything else has no memory.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        settings: ScheduleSettings,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._optimizer, self._settings = optimizer, settings
        self._base = self.learning_rate
        self._steps_per_unit = steps_per_epoch if settings.unit == "epoch" else 1
        self._length = _length(settings, total_steps, steps_per_epoch)
        self._best_loss, self._bad_epochs, self._is_over = math.inf, 0, False
        if settings.warmup:
            self._set(settings.warmup_lr)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def is_over(self) -> bool:
        """Whether a plateau was met at the lowest learning rate: no more is to be gained."""
        return self._is_over

    def move_to(self, step: int) -> None:
        """Set the learning rate of the step after `step` optimiser steps."""
        if self._settings.name != "plateau":
            time = step // self._steps_per_unit
            self._set(_rate(self._settings, self._base, time, self._length))

    def show_loss(self, held_out_loss: float) -> None:
        """Tell a plateau the held-out loss of the epoch that has ended.

        After more than `patience` epochs without a loss lower by a ten-thousandth the learning rate
        is multiplied by `decay_rate`, down to `min_lr`, and there training ends.
        """
        if self._settings.name != "plateau":
            return
        if held_out_loss < self._best_loss * (1 - 1e-4):
            self._best_loss, self._bad_epochs = held_out_loss, 0
        else:
            self._bad_epochs += 1
        if self._bad_epochs > self._settings.patience:
            self._bad_epochs = 0
            lower = max(self.learning_rate * self._settings.decay_rate, self._settings.min_lr)
            if self.learning_rate - lower > 1e-8:
                self._set(lower)
            elif self._settings.min_lr:
                self._is_over = True

    def state_dict(self) -> dict[str, Any]:
        """What a plateau remembers; the learning rate is in the optimiser's state."""
        return {
            "best_loss": self._best_loss,
            "bad_epochs": self._bad_epochs,
            "is_over": self._is_over,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._best_loss = float(state["best_loss"])
        self._bad_epochs = int(state["bad_epochs"])
        self._is_over = bool(state["is_over"])

    def _set(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate


def _length(settings: ScheduleSettings, total_steps: int, steps_per_epoch: int) -> int:
    """The length of the run in the schedule's unit; a begun epoch counts."""
    return -(-total_steps // (steps_per_epoch if settings.unit == "epoch" else 1))


def _rate(settings: ScheduleSettings, base: float, time: int, length: int) -> float:
    """The learning rate at `time` of `length` units."""
    if time < settings.warmup:
        if settings.warmup_shape == "constant":
            return settings.warmup_lr
        return settings.warmup_lr + time * ((base - settings.warmup_lr) / settings.warmup)
    if settings.name == "cosine":
        if time >= length:
            return settings.min_lr
        share = 0.5 * (base - settings.min_lr)
        return settings.min_lr + share * (1 + math.cos(math.pi * time / length))
    decays = 0
    if settings.name == "step":
        decays = time // settings.step_size
    elif settings.name == "multistep":
        decays = bisect.bisect_right(settings.milestones, time)
    return base * settings.decay_rate**decays
