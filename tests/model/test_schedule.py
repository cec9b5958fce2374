"""Learning rates against torch's schedulers and by hand."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from model.config import Schedule, ScheduleConfig
from model.schedule import learning_rate_at


def _rates(config: ScheduleConfig, steps: int, peak: float = 0.4) -> list[float]:
    return [learning_rate_at(config, peak, step, steps) for step in range(steps)]


def _torch_rates(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, n: int) -> list[float]:
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)


def test_cosine_equals_torch() -> None:
    config = ScheduleConfig(kind=Schedule.cosine, final_ratio=0.1)
    optimizer = _sgd()
    scheduler = CosineAnnealingLR(optimizer, T_max=30, eta_min=0.04)
    assert _rates(config, 30) == pytest.approx(_torch_rates(optimizer, scheduler, 30), rel=1e-12)


def test_linear_is_wsd_that_decays_all_the_way_and_equals_torch() -> None:
    config = ScheduleConfig(kind=Schedule.wsd, decay_fraction=1.0, final_ratio=0.25)
    optimizer = _sgd()
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=0.25, total_iters=12)
    assert _rates(config, 12) == pytest.approx(_torch_rates(optimizer, scheduler, 12), rel=1e-12)


def test_warmup_equals_torch_and_cosine_follows_it() -> None:
    config = ScheduleConfig(kind=Schedule.cosine, warmup_steps=5, final_ratio=0.0)
    optimizer = _sgd()
    warmup = LinearLR(optimizer, start_factor=1 / 5, end_factor=1.0, total_iters=4)
    cosine = CosineAnnealingLR(optimizer, T_max=15, eta_min=0.0)
    both = SequentialLR(optimizer, [warmup, cosine], milestones=[5])
    assert _rates(config, 20) == pytest.approx(_torch_rates(optimizer, both, 20), rel=1e-12)


def test_wsd_by_hand() -> None:
    config = ScheduleConfig(kind=Schedule.wsd, warmup_steps=2, decay_fraction=0.4, final_ratio=0.5)
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.875, 0.75, 0.625]
    assert _rates(config, 10, peak=1.0) == pytest.approx(expected, rel=1e-12)


def test_constant_after_warmup() -> None:
    assert _rates(ScheduleConfig(warmup_steps=4), 6, peak=8.0) == [2, 4, 6, 8, 8, 8]
    assert _rates(ScheduleConfig(), 3, peak=8.0) == [8, 8, 8]


def test_after_the_end_the_final_rate_stays() -> None:
    for kind in (Schedule.wsd, Schedule.cosine):
        config = ScheduleConfig(kind=kind, final_ratio=0.1)
        for step in (50, 51, 1000):
            assert math.isclose(learning_rate_at(config, 3.0, step, 50), 0.3, rel_tol=1e-12)


def test_every_schedule_is_defined_for_every_short_run() -> None:
    for kind, steps, warmup in itertools.product(Schedule, (1, 2, 3), (0, 2, 9)):
        rates = _rates(ScheduleConfig(kind=kind, warmup_steps=warmup), steps, peak=1.0)
        assert all(0 < rate <= 1 for rate in rates), (kind, steps, warmup)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"schedule.warmup_steps .* got -1"):
        ScheduleConfig(warmup_steps=-1)
    with pytest.raises(ValueError, match=r"schedule.decay_fraction .* got 0"):
        ScheduleConfig(decay_fraction=0)
    with pytest.raises(ValueError, match=r"schedule.final_ratio .* got 1.5"):
        ScheduleConfig(final_ratio=1.5)
    with pytest.raises(ValueError, match="got -1 and 10"):
        learning_rate_at(ScheduleConfig(), 1.0, -1, 10)
    with pytest.raises(ValueError, match="got 0 and 0"):
        learning_rate_at(ScheduleConfig(), 1.0, 0, 0)
