"""What a process remembers of its own work."""

import asyncio
from collections.abc import Sequence

import pytest

from rewards.comparison import Answer
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.worker_spans import SpanLog, TimedAsk, TimedDraws, TimedJudge, of_task
from rollout.episode import Completion, StopReason
from rollout.sampler import GroupSampler
from rollout.starts import Start


class Clock:
    """One second later at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Engine:
    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        await asyncio.sleep(0)
        return Completion(
            prompt_ids=list(prompt_ids),
            token_ids=[1, 2],
            logprobs=[-1.0, -1.0],
            versions=[3, 4],
            stop_reason=StopReason.stop,
            parked=1,
            temperature=temperature,
        )


class Judge:
    async def score(self, task: Task, transcript: Transcript) -> Score:
        return Score(total=1.0)


class Words:
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [7, 8, 9]

    def inert(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(messages)

    def text(self, token_ids: Sequence[int]) -> str:
        return "words"


def _task(number: int) -> Task:
    return Task(
        id=f"t/{number}",
        kind=TaskKind.math,
        messages=(Message(role="user", content="?"),),
        reference="1",
        token_budget=4,
    )


def test_a_group_leaves_the_spans_of_its_episodes() -> None:
    spans = SpanLog(clock=Clock())
    sampler = GroupSampler(Words(), TimedDraws(Engine(), spans), TimedJudge(Judge(), spans))

    async def group(number: int) -> None:
        task = _task(number)
        with of_task(task), spans.span("group"):
            await sampler.sample(task, samples=2, temperature=1.0)

    async def main() -> None:
        await asyncio.gather(group(1), group(2))

    asyncio.run(main())
    taken = spans.take("rollout worker 2")
    assert spans.take("rollout worker 2") == []
    assert {span.track for span in taken} == {"rollout worker 2"}
    for task in ("t/1", "t/2"):
        names = [span.name for span in taken if span.details["task"] == task]
        assert sorted(names) == ["generate", "generate", "group", "score", "score"]
    drawn = next(span for span in taken if span.name == "generate")
    assert drawn.details == {
        "task": drawn.details["task"], "prompt": 3, "tokens": 2, "stopped": "stop",
        "versions": "3-4", "parked": 1,
    }  # fmt: skip
    scored = next(span for span in taken if span.name == "score")
    assert (scored.details["kind"], scored.details["reward"]) == ("math", 1.0)
    assert all(span.start < span.end for span in taken)


def test_what_nobody_asks_for_is_forgotten_and_counted() -> None:
    spans = SpanLog(most=3, clock=Clock())
    for number in range(5):
        with spans.span(f"part {number}"):
            pass
    taken = spans.take("learner shard 0")
    assert [s.name for s in taken] == [
        "2 earlier spans are not shown",
        "part 2",
        "part 3",
        "part 4",
    ]
    with spans.span("part 5"):
        pass
    assert [s.name for s in spans.take("learner shard 0")] == ["part 5"]


def test_what_fails_is_recorded() -> None:
    spans = SpanLog(clock=Clock())
    with pytest.raises(ValueError), spans.span("update", step=3):
        raise ValueError
    (span,) = spans.take("learner shard 0")
    assert (span.start, span.end, span.details) == (1.0, 2.0, {"step": 3})


def test_a_judgement_of_the_critic_is_recorded_with_the_task_that_it_ranks() -> None:
    spans = SpanLog(clock=Clock())

    async def ask(messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Answer:
        return Answer(text="A", truncated=False, tokens=max_tokens, prompt_tokens=1)

    async def main() -> Answer:
        with of_task(_task(5)):
            return await TimedAsk(ask, spans)([], max_tokens=3, temperature=0.5)

    assert asyncio.run(main()).text == "A"
    (span,) = spans.take("rollout worker 0")
    assert (span.name, span.details) == ("judge", {"task": "t/5", "tokens": 3})
