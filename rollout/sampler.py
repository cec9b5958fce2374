"""One group: from a task's prompt to K scored episodes.

Every task is one turn long, so nothing answers the policy: its first turn ends the episode.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from rewards.budget import apply_repetition
from rewards.config import RUBRIC
from rewards.critic import Critic
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rollout.episode import Completion, Episode, Group, StopReason
from rollout.starts import Start


class Render(Protocol):
    """What the sampler needs of a `rollout.render.Renderer`."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids [P] of the conversation, up to where the policy's turn begins."""
        ...

    def inert(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages without special tokens spelt in them."""
        ...

    def text(self, token_ids: Sequence[int]) -> str:
        """The words of sampled tokens, without special tokens."""
        ...


class Draws(Protocol):
    """What the sampler needs of a `rollout.partial.PartialRollout`."""

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        """Draw one continuation of at most `max_tokens` tokens; in one go unless `park`."""
        ...


class Judge(Protocol):
    """Words in, score out; where it runs is its own affair."""

    async def score(self, task: Task, transcript: Transcript) -> Score:
        """The score of one episode."""
        ...


class GroupAborted(RuntimeError):
    """The engine gave up a completion: the group is incomplete and cannot be scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubrics:
    """The critic, and the weight of its reward in the score of an open-ended task."""

    critic: Critic
    weight: float


class GroupSampler:
    """Draws and scores groups; groups may be sampled concurrently."""

    def __init__(
        self,
        renderer: Render,
        engine: Draws,
        judge: Judge,
        *,
        rubrics: Rubrics | None = None,
        repetition_reward: float = -0.5,
    ) -> None:
        """Hold the parts; none is owned. The reward is of episodes that go in circles."""
        self._renderer, self._engine, self._judge = renderer, engine, judge
        self._rubrics = rubrics
        self._repetition_reward = repetition_reward

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        """One group of `samples` episodes, each of at most `task.token_budget` tokens.

        An episode is scored as soon as it ends, while the others go on. The critic ranks those of
        an open-ended task once all have ended; where it could not, the group says why it is
        skipped. Held-out groups (`rank` is false) are not ranked, and none of their episodes parks
        to go on under other weights. Raises `GroupAborted` if the engine aborted any, and what
        engine, judge and critic raise; the others are cancelled.
        """
        messages = task.messages
        if task.kind is TaskKind.critic:  # it holds words of the policy
            messages = self._renderer.inert(messages)
        prompt_ids = self._renderer.prompt_ids(messages)
        draw = partial(
            self._engine.draw,
            prompt_ids,
            max_tokens=task.token_budget,
            temperature=temperature,
            park=rank,
        )
        starts = [start and start.of_draw(number, samples) for number in range(samples)]
        try:
            async with asyncio.TaskGroup() as attempts:
                episodes = [
                    attempts.create_task(self._attempt(task, partial(draw, start=each)))
                    for each in starts
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        group = Group(task=task, episodes=_one_prompt([each.result() for each in episodes]))
        if rank and self._rubrics is not None and task.kind is TaskKind.open:
            return await _ranked(group, self._rubrics)
        return group

    async def _attempt(self, task: Task, draw: Callable[[], Awaitable[Completion]]) -> Episode:
        completion = await draw()
        if completion.stop_reason is StopReason.abort:
            raise GroupAborted(f"task {task.id}: the engine aborted a completion")
        transcript = self._transcript(task, completion)
        score = await self._judge.score(task, transcript)
        if completion.stop_reason is StopReason.repetition:
            score = apply_repetition(score, len(completion.token_ids), self._repetition_reward)
        return Episode(completion=completion, transcript=transcript, score=score)

    def _transcript(self, task: Task, completion: Completion) -> Transcript:
        response = self._renderer.text(completion.token_ids.tolist())
        return Transcript(
            messages=(*task.messages, Message(role="assistant", content=response)),
            response=response,
            response_tokens=len(completion.token_ids),
            truncated=completion.stop_reason is StopReason.length,
        )


def _one_prompt(episodes: Sequence[Episode]) -> tuple[Episode, ...]:
    """The episodes with one array for the prompt of all, which then travels once."""
    prompts = [episode.completion.prompt_ids for episode in episodes]
    return tuple(
        replace(episode, completion=replace(episode.completion, prompt_ids=prompts[0]))
        for episode in episodes
    )


async def _ranked(group: Group, rubrics: Rubrics) -> Group:
    """The group with the critic's reward as a part of every score.

    What was cut by its budget or went in circles is not compared: it has its penalty already.
    """
    responses = [episode.transcript.response for episode in group.episodes]
    whole = [e.completion.stop_reason is StopReason.stop for e in group.episodes]
    skip = {place for place, ended in enumerate(whole) if not ended}
    ranking = await rubrics.critic.rank(group.task, responses, skip)
    if ranking.failed is not None:
        why = "; ".join([ranking.failed, *ranking.report.problems[:1]])
        return replace(group, critique=ranking.report, skipped=why)
    episodes = (
        _rewarded(episode, rubrics.weight * reward, why) if reward is not None else episode
        for episode, reward, why in zip(group.episodes, ranking.rewards, ranking.why, strict=True)
    )
    return replace(group, episodes=tuple(episodes), critique=ranking.report)


def _rewarded(episode: Episode, reward: float, why: str) -> Episode:
    score = episode.score
    score = replace(
        score,
        total=score.total + reward,
        parts={**score.parts, RUBRIC: reward},
        why="; ".join(filter(None, (why, score.why))),
    )
    return replace(episode, score=score)
