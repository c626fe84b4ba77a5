"""timm's optimisers and schedules, from settings."""

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from backbones.config import check_choice
from classification.config import OptimizerSettings, ScheduleSettings


def build_optimizer(network: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Build timm's optimiser `settings.name` over the parameters of `network`.

    Raises:
        ValueError: timm has no optimiser of that name.
    """
    names = tuple(list_optimizers())
    check_choice("train.optimizer.name", settings.name, names)
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


class Schedule:
    """The learning rate as a function of the optimiser steps done, set on `optimizer`.

    A plateau also goes by the losses it was shown; everything else has no memory.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        settings: ScheduleSettings,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._optimizer = optimizer
        self._steps_per_unit = steps_per_epoch if settings.unit == "epoch" else 1
        self._timm = self._plateau = None
        if settings.name == "plateau":
            self._plateau = ReduceLROnPlateau(
                optimizer,
                factor=settings.decay_rate,
                patience=settings.patience,
                min_lr=settings.min_lr,
            )
            return
        warmup = {
            "warmup_t": settings.warmup,
            "warmup_lr_init": settings.warmup_lr,
            "warmup_prefix": False,
        }
        if settings.name == "cosine":
            length = -(-total_steps // self._steps_per_unit)
            self._timm = CosineLRScheduler(
                optimizer, t_initial=length, lr_min=settings.min_lr, **warmup
            )
        elif settings.name == "multistep":
            # timm decays at milestone - 1, as it says of itself; a milestone here means itself.
            milestones = [milestone + 1 for milestone in settings.milestones]
            self._timm = MultiStepLRScheduler(
                optimizer, decay_t=milestones, decay_rate=settings.decay_rate, **warmup
            )
        else:
            rate = settings.decay_rate if settings.name == "step" else 1.0
            self._timm = StepLRScheduler(
                optimizer, decay_t=settings.step_size, decay_rate=rate, **warmup
            )
        if settings.warmup and settings.warmup_shape == "constant":
            self._timm.warmup_steps = [0.0 for _ in self._timm.warmup_steps]

    @property
    def learning_rate(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def move_to(self, step: int) -> None:
        """Set the learning rate of the step after `step` optimiser steps."""
        if self._timm is not None:
            self._timm.step(step // self._steps_per_unit)

    def show_loss(self, held_out_loss: float) -> None:
        """Tell a plateau the held-out loss of the epoch that has ended."""
        if self._plateau is not None:
            self._plateau.step(held_out_loss)

    def state_dict(self) -> dict:
        return {} if self._plateau is None else dict(self._plateau.state_dict())

    def load_state_dict(self, state: dict) -> None:
        if self._plateau is not None:
            self._plateau.load_state_dict(state)
