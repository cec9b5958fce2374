import asyncio
from collections.abc import Sequence

import pytest

from rewards.config import RewardsConfig
from rewards.judge import VerifiableJudge
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rollout.episode import Completion, StopReason
from rollout.sampler import GroupAborted, GroupSampler

TASK = Task(
    id="t/0",
    kind=TaskKind.math,
    messages=(Message(role="user", content="2+3="),),
    reference="5",
    token_budget=12,
)


class Bytes:
    """A byte is a token; 0 ends a turn."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return list("".join(message.content for message in messages).encode())

    def text(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token).decode()


class Canned:
    """Gives the canned texts in turn, cut at the token limit."""

    def __init__(self, *texts: str, stop: StopReason = StopReason.stop) -> None:
        self._texts, self._stop = list(texts), stop

    async def generate(
        self, prompt_ids: Sequence[int], *, samples: int, max_tokens: int, temperature: float
    ) -> list[Completion]:
        return [
            self._completion(list(prompt_ids), self._texts.pop(0), max_tokens, temperature)
            for _ in range(samples)
        ]

    def _completion(
        self, prompt_ids: list[int], text: str, max_tokens: int, temperature: float
    ) -> Completion:
        ids = [*text.encode(), 0]
        stop = self._stop if len(ids) <= max_tokens else StopReason.length
        ids = ids[:max_tokens]
        return Completion(
            prompt_ids=prompt_ids,
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            versions=[7] * len(ids),
            stop_reason=stop,
            temperature=temperature,
        )


class Local:
    """The real judge, called here."""

    def __init__(self) -> None:
        self._judge = VerifiableJudge(RewardsConfig())

    async def score(self, task: Task, transcripts: Sequence[Transcript]) -> list[Score]:
        return self._judge.score(task, transcripts)


def test_a_group_from_prompt_to_score() -> None:
    engine = Canned(r"\boxed{5}", r"\boxed{6}", r"so it is \boxed{5}")
    sampler = GroupSampler(Bytes(), engine, Local())
    group = asyncio.run(sampler.sample(TASK, samples=3, temperature=0.8))
    assert group.task is TASK
    assert [episode.score.total for episode in group.episodes] == [1.0, 0.0, -0.5]
    first, _, cut = group.episodes
    assert first.completion.prompt_ids == list(b"2+3=") and first.completion.temperature == 0.8
    assert first.completion.token_ids == [*rb"\boxed{5}", 0]
    assert first.transcript == Transcript(
        messages=(*TASK.messages, Message(role="assistant", content=r"\boxed{5}")),
        response=r"\boxed{5}",
        response_tokens=10,
        truncated=False,
    )
    assert (cut.transcript.truncated, cut.transcript.response_tokens) == (True, 12)


def test_an_aborted_completion_leaves_no_group() -> None:
    sampler = GroupSampler(Bytes(), Canned("a", "b", stop=StopReason.abort), Local())
    with pytest.raises(GroupAborted, match="task t/0"):
        asyncio.run(sampler.sample(TASK, samples=2, temperature=1.0))
