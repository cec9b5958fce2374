"""The judge of tasks whose answers can be verified."""

from collections.abc import Sequence

from rewards.budget import apply_budget
from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.math_answer import MathVerifier
from rewards.score import Score
from rewards.task import Task, TaskKind, Transcript


class VerifiableJudge:
    """Chooses the verifier by the task's kind, then applies the token budget."""

    def __init__(self, config: RewardsConfig) -> None:
        """No process starts before an answer needs it."""
        self._over_budget_reward = config.over_budget_reward
        self._math = MathVerifier(timeout_s=config.math_timeout_s)

    def score(self, task: Task, transcripts: Sequence[Transcript]) -> list[Score]:
        """One score per transcript, in order.

        Raises `RewardError`, naming the task, for a kind without a verifier or an unreadable gold.
        """
        if task.kind is not TaskKind.math:
            raise RewardError(
                f"task {task.id}: no verifier for kind {task.kind.value!r}; known: math"
            )
        try:
            scores = [self._math.verify(each.response, task.reference) for each in transcripts]
        except RewardError as error:
            raise RewardError(f"task {task.id}: {error}") from error
        return [
            apply_budget(score, transcript, self._over_budget_reward)
            for score, transcript in zip(scores, transcripts, strict=True)
        ]

    def close(self) -> None:
        """End the verifiers' processes."""
        self._math.close()
