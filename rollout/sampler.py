"""One group: from a task's prompt to K scored episodes.

Every task is one turn long, so nothing answers the policy: its first turn ends the episode.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from rewards.budget import apply_repetition
from rewards.score import Score
from rewards.task import Message, Task, Transcript
from rollout.episode import Completion, Episode, Generate, Group, StopReason


class Render(Protocol):
    """What the sampler needs of a `rollout.render.Renderer`."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids [P] of the conversation, up to where the policy's turn begins."""
        ...

    def text(self, token_ids: Sequence[int]) -> str:
        """The words of sampled tokens, without special tokens."""
        ...


class Judge(Protocol):
    """Words in, score out; where it runs is its own affair."""

    async def score(self, task: Task, transcript: Transcript) -> Score:
        """The score of one episode."""
        ...


class GroupAborted(RuntimeError):
    """The engine gave up a completion: the group is incomplete and cannot be scored."""


class GroupSampler:
    """Draws and scores groups; groups may be sampled concurrently."""

    def __init__(
        self, renderer: Render, engine: Generate, judge: Judge, *, repetition_reward: float = -0.5
    ) -> None:
        """Hold the three parts; none is owned. The reward is of episodes that go in circles."""
        self._renderer, self._engine, self._judge = renderer, engine, judge
        self._repetition_reward = repetition_reward

    async def sample(self, task: Task, *, samples: int, temperature: float) -> Group:
        """One group of `samples` episodes, each of at most `task.token_budget` tokens.

        An episode is scored as soon as it ends, while the others go on. Raises `GroupAborted` if
        the engine aborted any, and what the engine and the judge raise; the others are cancelled.
        """
        prompt_ids = self._renderer.prompt_ids(task.messages)
        try:
            async with asyncio.TaskGroup() as attempts:
                episodes = [
                    attempts.create_task(self._attempt(task, prompt_ids, temperature))
                    for _ in range(samples)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return Group(task=task, episodes=tuple(each.result() for each in episodes))

    async def _attempt(self, task: Task, prompt_ids: list[int], temperature: float) -> Episode:
        completion = await self._engine.draw(
            prompt_ids, max_tokens=task.token_budget, temperature=temperature
        )
        if completion.stop_reason is StopReason.abort:
            raise GroupAborted(f"task {task.id}: the engine aborted a completion")
        transcript = self._transcript(task, completion)
        score = await self._judge.score(task, transcript)
        if completion.stop_reason is StopReason.repetition:
            score = apply_repetition(score, len(completion.token_ids), self._repetition_reward)
        return Episode(completion=completion, transcript=transcript, score=score)

    def _transcript(self, task: Task, completion: Completion) -> Transcript:
        response = self._renderer.text(completion.token_ids)
        return Transcript(
            messages=(*task.messages, Message(role="assistant", content=response)),
            response=response,
            response_tokens=len(completion.token_ids),
            truncated=completion.stop_reason is StopReason.length,
        )
