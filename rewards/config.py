"""Settings of the rewards. Light: imports nothing heavy."""

import math
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class RewardsConfig:
    """How episodes are scored."""

    over_budget_reward: float = -0.5
    """Reward of an episode cut by its token budget; a wrong answer is 0, a right one 1."""
    math_timeout_s: float = 5.0
    """Most seconds that one answer may take to be compared; then it scores 0."""
    workers: int = 1
    """Processes that score."""
    shuffled: bool = False
    """Control experiment: permute the rewards inside every group, so that they teach nothing."""

    def __post_init__(self) -> None:
        """Refuse values that would reward running over, or never score."""
        if not (math.isfinite(self.over_budget_reward) and self.over_budget_reward <= 0.0):
            raise ValueError(
                f"rewards.over_budget_reward must be at most 0, got {self.over_budget_reward}"
            )
        if not 0.0 < self.math_timeout_s < math.inf:
            raise ValueError(f"rewards.math_timeout_s must be positive, got {self.math_timeout_s}")
        if self.workers < 1:
            raise ValueError(f"rewards.workers must be at least 1, got {self.workers}")
