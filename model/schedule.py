"""The learning rate at a step: warm-up, then constant, WSD or cosine (spec 2.1)."""

import math

from model.config import Schedule, ScheduleConfig


def learning_rate_at(config: ScheduleConfig, peak: float, step: int, total_steps: int) -> float:
    """Learning rate of update `step`, counted from 0, of a run of `total_steps` updates.

    A warm-up of w steps rises as peak (step + 1) / w. A decay starts at the peak and would reach
    final_ratio * peak at total_steps, so the last update still moves the weights; later steps keep
    the final rate. A run too short for its decay decays after the warm-up; one too short for its
    warm-up never leaves it. Raises ValueError on a negative step or a run without steps.
    """
    if step < 0 or total_steps < 1:
        raise ValueError(
            f"step must be at least 0 and total_steps at least 1, got {step} and {total_steps}"
        )
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.kind is Schedule.constant:
        return peak
    start = config.warmup_steps
    if config.kind is Schedule.wsd:
        start = max(start, total_steps - max(1, round(config.decay_fraction * total_steps)))
    progress = min(1.0, max(0, step - start) / max(1, total_steps - start))
    left = 1 - progress
    if config.kind is Schedule.cosine:
        left = (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.final_ratio + (1 - config.final_ratio) * left)
