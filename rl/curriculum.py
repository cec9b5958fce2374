"""How hot prompts are sampled."""

from rl.rollout_config import RolloutConfig


def temperature_at(step: int, steps: int, config: RolloutConfig) -> float:
    """Sampling temperature of `step` in [0, steps): linear from start to end (K2 sec. 3.2.3)."""
    progress = step / max(steps - 1, 1)
    return config.temperature_start + (config.temperature_end - config.temperature_start) * progress
