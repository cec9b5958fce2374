"""What scoring raises."""


class RewardError(RuntimeError):
    """Scoring failed, through no fault of the policy: a gold that cannot be read, a dead worker."""
