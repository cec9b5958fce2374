"""The learning rate of the supervised start; the start itself runs in the tests of whole runs."""

import asyncio
from types import SimpleNamespace

import pytest

from rewards.task import Task, TaskKind
from rl.batch import Batch, pack
from rl.config import SftConfig
from rl.errors import BadInput
from rl.evaluate import PassRate, pass_rate
from rl.sample import supervised_sample
from rl.sft import SupervisedResult, SupervisedStream, supervised_start


class OneBatch:
    """The same sequence again and again (as rl.sft.SupervisedStream)."""

    def batch(self, start: int, count: int) -> Batch:
        return pack([supervised_sample([1], [2])])


class Pupil:
    """Remembers its learning rates."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    async def supervise(self, batches: list[Batch], learning_rates: list[float]) -> list[float]:
        self.rates += learning_rates
        return [1.0] * len(batches)

    async def test(self, step: int) -> PassRate:
        return pass_rate([0.0])


def _rates(config: SftConfig) -> list[float]:
    pupil, results = Pupil(), list[SupervisedResult]()
    asyncio.run(supervised_start(config, OneBatch(), pupil, results.append))  # type: ignore[arg-type]
    return pupil.rates


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    config = SftConfig(
        max_steps=20, test_every=20, warmup_steps=4, cooldown_steps=9, learning_rate=0.1
    )
    rates = _rates(config)
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4:11] == pytest.approx([0.1] * 7)
    assert rates[11:] == pytest.approx([0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01])


def test_without_a_cooldown_the_rate_stays() -> None:
    config = SftConfig(max_steps=10, test_every=5, warmup_steps=1, learning_rate=0.1)
    assert _rates(config) == pytest.approx([0.1] * 10)


class Unsolved:
    """A stream in which one task in three has a worked solution, as long as `solved` (rl.sft)."""

    def __init__(self, solved: int) -> None:
        self.solved = solved

    def at(self, position: int) -> Task:
        solution = "2" if position < self.solved and position % 3 == 0 else None
        return Task(
            id=str(position),
            kind=TaskKind.math,
            messages=(),
            reference="2",
            token_budget=4,
            solution=solution,
        )


def _stream(solved: int) -> SupervisedStream:
    renderer = SimpleNamespace(training_ids=lambda messages, solution: ([1], [int(solution)]))
    return SupervisedStream(Unsolved(solved), renderer, 512)  # type: ignore[arg-type]


def test_a_supervised_start_of_tasks_without_solutions_is_refused() -> None:
    start = supervised_start(SftConfig(), _stream(0), Pupil(), print)
    with pytest.raises(BadInput, match=r"sft: of \d+ tasks in a row .* none has a worked solution"):
        asyncio.run(start)
