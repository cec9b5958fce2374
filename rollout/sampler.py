"""One group: from a task's prompt to K scored episodes.

Every task is one turn long, so nothing answers the policy: its first turn ends the episode.
"""

from collections.abc import Sequence
from typing import Protocol

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
    """Words in, scores out; where it runs is its own affair."""

    async def score(self, task: Task, transcripts: Sequence[Transcript]) -> list[Score]:
        """One score per transcript, in order."""
        ...


class GroupAborted(RuntimeError):
    """The engine gave up a completion: the group is incomplete and cannot be scored."""


class GroupSampler:
    """Draws and scores groups; groups may be sampled concurrently."""

    def __init__(self, renderer: Render, engine: Generate, judge: Judge) -> None:
        """Hold the three parts; none is owned."""
        self._renderer, self._engine, self._judge = renderer, engine, judge

    async def sample(self, task: Task, *, samples: int, temperature: float) -> Group:
        """One group of `samples` episodes, each of at most `task.token_budget` tokens.

        Raises `GroupAborted` if the engine aborted any, and what the engine and the judge raise.
        """
        completions = await self._engine.generate(
            self._renderer.prompt_ids(task.messages),
            samples=samples,
            max_tokens=task.token_budget,
            temperature=temperature,
        )
        assert len(completions) == samples, f"{len(completions)} completions, asked for {samples}"
        if any(each.stop_reason is StopReason.abort for each in completions):
            raise GroupAborted(f"task {task.id}: the engine aborted a completion")
        transcripts = [self._transcript(task, each) for each in completions]
        scores = await self._judge.score(task, transcripts)
        episodes = tuple(
            Episode(completion=completion, transcript=transcript, score=score)
            for completion, transcript, score in zip(completions, transcripts, scores, strict=True)
        )
        return Group(task=task, episodes=episodes)

    def _transcript(self, task: Task, completion: Completion) -> Transcript:
        response = self._renderer.text(completion.token_ids)
        return Transcript(
            messages=(*task.messages, Message(role="assistant", content=response)),
            response=response,
            response_tokens=len(completion.token_ids),
            truncated=completion.stop_reason is StopReason.length,
        )
