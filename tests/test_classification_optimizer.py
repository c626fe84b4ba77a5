"""Learning rates by hand-worked values, and optimisers by name."""

import math

import pytest
import torch
from torch import nn

from classification.config import OptimizerSettings, ScheduleSettings
from classification.optimizer import Schedule, build_optimizer


def rates(settings, lr, total_steps, steps_per_epoch, steps):
    """The learning rate used at each of `steps`, moving through the schedule from the start."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = Schedule(optimizer, settings, total_steps, steps_per_epoch)
    seen = {}
    for step in range(total_steps):
        seen[step] = schedule.learning_rate
        schedule.move_to(step + 1)
    return [seen[step] for step in steps]


def test_the_papers_steps_fall_at_epochs_30_60_and_90():
    settings = ScheduleSettings(name="step", unit="epoch", step_size=30)
    steps = [0, 59, 60, 119, 120, 179, 180, 199]  # two steps an epoch
    expected = [0.6, 0.6, 0.06, 0.06, 0.006, 0.006, 0.0006, 0.0006]
    assert rates(settings, 0.6, 200, 2, steps) == pytest.approx(expected)


def test_milestones_in_iterations_with_a_constant_warm_up_follow_preact():
    settings = ScheduleSettings(
        name="multistep",
        unit="iteration",
        milestones=[320, 480],
        warmup=4,
        warmup_lr=0.01,
        warmup_shape="constant",
    )
    steps = [0, 1, 3, 4, 319, 320, 479, 480, 639]
    expected = [0.01, 0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates(settings, 0.1, 640, 39, steps) == pytest.approx(expected)


def test_milestones_in_epochs_fall_at_the_epoch_they_name():
    settings = ScheduleSettings(name="multistep", milestones=[2, 3], decay_rate=0.2)
    assert rates(settings, 0.1, 20, 5, [0, 9, 10, 14, 15]) == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004]
    )


def test_a_cosine_goes_to_zero_once_with_every_iteration():
    settings = ScheduleSettings(name="cosine", unit="iteration")
    steps = [0, 25, 50, 99]
    expected = [0.1 * (1 + math.cos(math.pi * step / 100)) for step in steps]
    assert rates(settings, 0.2, 100, 10, steps) == pytest.approx(expected)


def test_a_linear_warm_up_reaches_the_rate_at_its_end():
    settings = ScheduleSettings(name="constant", unit="iteration", warmup=4, warmup_lr=0.1)
    assert rates(settings, 0.5, 6, 3, range(6)) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_a_plateau_lowers_the_rate_to_its_floor_and_survives_a_checkpoint():
    settings = ScheduleSettings(name="plateau", patience=1, min_lr=1e-3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(optimizer, settings, 100, 10)
    for loss in (1.0, 0.9, 0.95, 0.95):
        schedule.show_loss(loss)
    assert schedule.learning_rate == pytest.approx(0.01)
    state = schedule.state_dict()
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    resumed = Schedule(other, settings, 100, 10)
    resumed.load_state_dict(state)
    for _ in range(6):
        schedule.show_loss(0.9)
        resumed.show_loss(0.9)
    assert [schedule.learning_rate, resumed.learning_rate] == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_nesterovs_only_where_asked(nesterov):
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSettings(nesterov=nesterov))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] is nesterov for group in optimizer.param_groups)
    assert optimizer.defaults["dampening"] == 0


def test_norms_and_biases_decay_or_not_as_set():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (group,) = build_optimizer(network, OptimizerSettings(weight_decay=0.1)).param_groups
    assert group["weight_decay"] == 0.1
    settings = OptimizerSettings(weight_decay=0.1, decay_norms=False)
    decay = {
        g["weight_decay"]: len(g["params"]) for g in build_optimizer(network, settings).param_groups
    }
    assert decay == {0.0: 3, 0.1: 1}


def test_an_unknown_optimizer_is_refused_with_a_near_match():
    with pytest.raises(ValueError, match="adamw"):
        build_optimizer(nn.Linear(2, 2), OptimizerSettings(name="adamww"))
