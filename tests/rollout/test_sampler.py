import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
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

    def __init__(
        self, *texts: str, stop: StopReason = StopReason.stop, seconds_a_letter: float = 0.0
    ) -> None:
        self._texts, self._stop = list(texts), stop
        self._seconds_a_letter = seconds_a_letter

    async def draw(
        self, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float
    ) -> Completion:
        text = self._texts.pop(0)
        await asyncio.sleep(self._seconds_a_letter * len(text))
        ids = [*text.encode(), 0]
        stop = self._stop if len(ids) <= max_tokens else StopReason.length
        ids = ids[:max_tokens]
        return Completion(
            prompt_ids=list(prompt_ids),
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
        self.scored: list[str] = []

    async def score(self, task: Task, transcript: Transcript) -> Score:
        self.scored.append(transcript.response)
        (score,) = self._judge.score(task, [transcript])
        return score


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


def test_an_episode_is_scored_while_the_others_go_on() -> None:
    judge = Local()
    texts = ("x" * 8, r"\bo", "xx")
    sampler = GroupSampler(Bytes(), Canned(*texts, seconds_a_letter=0.02), judge)

    async def main() -> None:
        group = asyncio.create_task(sampler.sample(TASK, samples=3, temperature=1.0))
        await asyncio.sleep(0.11)
        assert judge.scored == ["xx", texts[1]] and not group.done()
        assert [e.transcript.response for e in (await group).episodes] == list(texts)

    asyncio.run(main())


def test_an_episode_that_goes_in_circles_gets_the_penalty() -> None:
    engine = Canned(r"\boxed{5}", stop=StopReason.repetition)
    sampler = GroupSampler(Bytes(), engine, Local(), repetition_reward=-0.25)
    (episode,) = asyncio.run(sampler.sample(TASK, samples=1, temperature=1.0)).episodes
    assert episode.score.parts == {"math": 1.0, "repetition": -1.25}
    assert episode.score.total == -0.25 and not episode.transcript.truncated


def test_the_first_error_ends_the_group_as_it_is() -> None:
    bad = replace(TASK, reference=" ")
    sampler = GroupSampler(Bytes(), Canned("a", "b"), Local())
    with pytest.raises(RewardError, match="task t/0"):
        asyncio.run(sampler.sample(bad, samples=2, temperature=1.0))
