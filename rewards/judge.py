"""The judge: every reward of the task's kind, mixed by weight, then the token budget."""

import os
from collections.abc import Callable, Collection, Sequence

from rewards import critic_task, explanations, instructions
from rewards.budget import apply_budget
from rewards.code_tests import CodeVerifier
from rewards.config import EXPLANATIONS, RUBRIC, RewardsConfig, part_names
from rewards.errors import RewardError
from rewards.math_answer import MathVerifier
from rewards.mixture import mix
from rewards.plugin import load_plugins
from rewards.score import Score
from rewards.task import Task, TaskKind, Transcript
from rewards.watch import SlowReward, Watch

Reward = Callable[[Task, Transcript], Score | None]


class VerifiableJudge:
    """Scores episodes as the recipe's mixture says; safe to share between threads."""

    def __init__(self, config: RewardsConfig) -> None:
        """Load the plug-ins. No process starts before `start` or an answer that needs it.

        Raises:
            ValueError: a plug-in that cannot be loaded.
        """
        self._over_budget_reward = config.over_budget_reward
        children = max((os.cpu_count() or 1) // 2, 1)  # threads beyond these wait for one
        self._math = MathVerifier(timeout_s=config.math_timeout_s, workers=children)
        self._watch = Watch(config.slow_s)
        self._code = CodeVerifier(config.code)
        self._verifiers: dict[str, Reward] = {
            TaskKind.math.value: self._score_math,
            TaskKind.code.value: self._score_code,
            TaskKind.instructions.value: _score_instructions,
            TaskKind.critic.value: _score_critic,
            EXPLANATIONS: _score_explanations,
        }
        self._mixture = {TaskKind(kind): dict(rewards) for kind, rewards in config.mixture.items()}
        self._plugins = load_plugins(config)

    def start(self) -> None:
        """Start what is slow to start, before the first answer."""
        self._math.start()

    def check(self, kinds: Collection[TaskKind]) -> None:
        """Raise `RewardError` unless tasks of these kinds can be scored on this machine."""
        for kind in kinds:
            rewards = self._rewards(kind)
            if TaskKind.code.value in rewards:
                self._code.check()

    def score(self, task: Task, transcripts: Sequence[Transcript]) -> list[Score]:
        """One score per transcript, in order.

        Raises:
            RewardError: naming the task; no reward of its kind or none that applies, an unreadable
                gold, a plug-in that failed.
        """
        try:
            rewards = self._rewards(task.kind)
        except RewardError as error:
            raise RewardError(f"task {task.id}: {error}") from error
        return [self._score(task, transcript, rewards) for transcript in transcripts]

    def slow(self) -> list[SlowReward]:
        """Rewards that took, or are taking, longer than `slow_s`; each is named once."""
        return self._watch.slow()

    def close(self) -> None:
        """End the verifiers' processes."""
        self._math.close()

    def _rewards(self, kind: TaskKind) -> dict[str, float]:
        rewards = self._mixture.get(kind)
        if rewards is None:
            critic = ", or set rewards.critic" if kind is TaskKind.open else ""
            raise RewardError(
                f"no reward for kind {kind.value!r}: name one in "
                f"rewards.mixture.{kind.value}{critic}"
            )
        return rewards

    def _score(self, task: Task, transcript: Transcript, rewards: dict[str, float]) -> Score:
        names = part_names(rewards)
        scores: dict[str, Score | None] = {}
        for reward, name in names.items():
            if reward != RUBRIC:  # the sampler adds it, once the whole group is there
                with self._watch.timed(task.id, name):
                    scores[name] = self._part(reward, task, transcript)
        weights = {names[reward]: weight for reward, weight in rewards.items()}
        mixed = mix(scores, weights)
        if RUBRIC not in rewards and (mixed is None or not mixed.parts):
            raise RewardError(f"task {task.id}: none of {', '.join(scores)} applies to it")
        return apply_budget(mixed or Score(total=0.0), transcript, self._over_budget_reward)

    def _part(self, reward: str, task: Task, transcript: Transcript) -> Score | None:
        plugin = self._plugins.get(reward)
        if plugin is not None:
            return plugin.score(task, transcript)
        try:
            return self._verifiers[reward](task, transcript)
        except (RewardError, ValueError) as error:  # nothing that the response may cause
            raise RewardError(f"task {task.id}: {error}") from error

    def _score_math(self, task: Task, transcript: Transcript) -> Score:
        return self._math.verify(transcript.response, task.reference)

    def _score_code(self, task: Task, transcript: Transcript) -> Score:
        return self._code.verify(transcript.response, task.reference)


def _score_critic(task: Task, transcript: Transcript) -> Score:
    return critic_task.verify(transcript.response, task.reference)


def _score_explanations(task: Task, transcript: Transcript) -> Score:
    return explanations.verify(transcript.response, task.reference)


def _score_instructions(task: Task, transcript: Transcript) -> Score:
    asked = [message.content for message in task.messages if message.role == "user"]
    return instructions.verify(transcript.response, asked[-1] if asked else "", task.reference)
