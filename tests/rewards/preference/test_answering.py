"""Questions under way at once, for a caller that takes the answers one by one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from rewards.errors import RewardError
from rewards.preference.answering import Answering, answers
from rewards.preference.judges import Judgement, Question

HANGS = 7  # the question that is never answered


def questions(count: int) -> list[Question]:
    return [Question(prompt=(), responses=(str(number),)) for number in range(count)]


class Model:
    """Answers a question with its number."""

    def __init__(self, answer: Callable[[int], Awaitable[float]] | None = None) -> None:
        self.opened = self.closed = self.running = self.most_at_once = 0
        self._answer_to = answer or self._at_once

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Answering]:
        self.opened += 1
        try:
            yield self._answer
        finally:
            await asyncio.sleep(0)
            self.closed += 1

    async def _answer(self, question: Question) -> Judgement:
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            return Judgement(value=await self._answer_to(int(question.responses[0])))
        finally:
            self.running -= 1

    async def _at_once(self, number: int) -> float:
        await asyncio.sleep(0.001)
        return float(number)


async def hang(number: int) -> float:
    if number >= HANGS:
        await asyncio.sleep(3600)
    return float(number)


def test_every_question_is_answered_once() -> None:
    model = Model()
    found = dict(answers(questions(20), model.open, concurrency=6))
    assert found == {number: Judgement(value=float(number)) for number in range(20)}
    assert (model.opened, model.closed, model.most_at_once) == (1, 1, 6)


def test_without_questions_no_model_is_opened() -> None:
    model = Model()
    assert list(answers([], model.open, concurrency=6)) == []
    assert model.opened == 0


@pytest.mark.timeout(60)
def test_a_caller_who_stops_leaves_nothing_running() -> None:
    model = Model(hang)
    before = threading.active_count()
    found = answers(questions(20), model.open, concurrency=4)
    assert [next(found)[0] for _ in range(HANGS)] == list(range(HANGS))
    found.close()
    assert (model.running, model.closed) == (0, 1)
    assert threading.active_count() == before


@pytest.mark.timeout(60)
def test_the_first_error_ends_it_as_itself() -> None:
    async def fail(number: int) -> float:
        if number == 3:
            raise RewardError("gone")
        return await hang(number)

    model = Model(fail)
    found = answers(questions(20), model.open, concurrency=20)
    with pytest.raises(RewardError, match="gone"):
        list(found)
    assert (model.running, model.closed) == (0, 1)


def test_a_model_that_does_not_open() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[Answering]:
        raise RewardError("no such model")
        yield

    with pytest.raises(RewardError, match="no such model"):
        list(answers(questions(1), broken, concurrency=1))
