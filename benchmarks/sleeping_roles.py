"""An engine and a learner whose work is sleep, under the real loop, in simulated or real time."""

import asyncio
import bisect
import heapq
import itertools
import selectors
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.score import Score
from rewards.task import Task, TaskKind, Transcript
from rl.batch import Batch
from rl.config import ObjectiveConfig, TrainConfig
from rl.loop import Course, Loop, Step
from rl.rollout_config import RolloutConfig
from rollout.episode import Completion, Episode, Group, StopReason
from rollout.starts import Start

GROUPS, SAMPLES = 16, 8
STEPS = 60
PLACES = 256  # samples in the engine at a time
BATCHES = (0, 8, 32, 128, 256)
RATES = {  # tokens/s of a batch
    "roomy": (0, 94, 377, 1510, 3020),  # a sample is as fast among others as alone
    "crowded": (0, 540, 1630, 2575, 3020),  # vLLM, the tiny K2, two cores
}

Length = Callable[[int, int], int]
"""Tokens of a sample, by position and number in its group."""


class Jump(selectors.DefaultSelector):
    """Where nothing happens until a timer, the time of that timer comes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """What is ready; the time goes on by `timeout` if nothing is."""
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing will ever happen")
            self.now += max(timeout, 0.0)
        return events


def simulated_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose clock jumps."""
    selector = Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    return loop


def rate(engine: str, batch: int) -> float:
    """Tokens/s of so many samples together."""
    rates, above = RATES[engine], max(bisect.bisect_left(BATCHES, batch), 1)
    low, high = BATCHES[above - 1], BATCHES[above]
    share = (batch - low) / (high - low)
    return rates[above - 1] + share * (rates[above] - rates[above - 1])


class SleepingEngine:
    """All samples in it get tokens at the same pace, the slower the more there are."""

    def __init__(self, kind: str, length: Length, speed: float) -> None:
        """`speed` times as fast as `rate` says of its kind."""
        self._kind, self._length, self._speed = kind, length, speed
        self._places = asyncio.Semaphore(PLACES)
        self._numbers = itertools.count()
        self._inside: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap, by last token
        self._given = 0.0  # tokens to a sample that has always been there
        self._at_version = [0.0]  # `_given` when each was published
        self._busy = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        """One group."""
        lengths = (self._length(int(task.id), k) for k in range(samples))
        episodes = await asyncio.gather(*(self._episode(n, temperature) for n in lengths))
        return Group(task=task, episodes=tuple(episodes))

    async def busy_seconds(self) -> float:
        """Seconds with at least one sample inside."""
        self._advance()
        return self._busy

    def serve(self) -> None:
        """From now on tokens are of the next version."""
        self._advance()
        self._at_version.append(self._given)

    async def _episode(self, tokens: int, temperature: float) -> Episode:
        async with self._places:
            self._advance()
            first = self._given
            done = asyncio.get_running_loop().create_future()
            heapq.heappush(self._inside, (first + tokens, next(self._numbers), done))
            self._set_timer()
            await done
        completion = Completion(
            prompt_ids=[1],
            token_ids=[2] * tokens,
            logprobs=[-1.0] * tokens,
            versions=[bisect.bisect(self._at_version, first + n) - 1 for n in range(tokens)],
            stop_reason=StopReason.stop,
            temperature=temperature,
        )
        words = Transcript(messages=(), response="", response_tokens=tokens, truncated=False)
        return Episode(completion=completion, transcript=words, score=Score(total=tokens % 2))

    def _pace(self) -> float:
        count = len(self._inside)
        return self._speed * rate(self._kind, count) / count

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._inside:
            self._given += (now - self._last) * self._pace()
            self._busy += now - self._last
        self._last = now

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = max(self._inside[0][0] - self._given, 0.0) / self._pace()
        self._timer = asyncio.get_running_loop().call_later(wait, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._inside and self._inside[0][0] <= self._given + 1e-6:
            heapq.heappop(self._inside)[2].set_result(None)
        if self._inside:
            self._set_timer()


class SleepingLearner:
    """So many tokens a second."""

    def __init__(self, engine: SleepingEngine, tokens_per_s: float) -> None:
        self._engine, self._rate = engine, tokens_per_s

    async def update(
        self, minibatches: Sequence[Batch], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        """Sleep; how long it took."""
        clock = asyncio.get_running_loop().time
        start = clock()
        tokens = sum(int((batch.versions >= 0).sum()) for batch in minibatches)  # not of prompts
        await asyncio.sleep(tokens / self._rate)
        return {"time/learn": clock() - start}

    async def publish(self, version: int) -> dict[str, float]:
        """At once."""
        self._engine.serve()
        return {}


def task_at(position: int, step: int) -> Task:
    """Its position."""
    return Task(id=str(position), kind=TaskKind.math, messages=(), reference="", token_budget=1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    engine: str
    learner: float  # its tokens/s over those of an engine with a step's samples and no others
    staleness: int
    length: Length
    steps: int = STEPS
    speed: float = 1.0  # of both, for a run in real time


async def metrics_of(case: Case, learner_rate: float) -> list[dict[str, float]]:
    """The metrics of every step."""
    engine = SleepingEngine(case.engine, case.length, case.speed)
    learner = SleepingLearner(engine, learner_rate)
    found: list[dict[str, float]] = []

    async def on_step(step: Step) -> None:
        found.append(dict(step.metrics))

    config = TrainConfig(
        steps=case.steps,
        rollout=RolloutConfig(
            groups_per_step=GROUPS, samples_per_group=SAMPLES, max_staleness=case.staleness
        ),
        objective=ObjectiveConfig(minibatches=1),
    )
    course = Course(task_at=task_at)
    await Loop(config, rollouts=engine, policy=learner, course=course).run(on_step)
    return found


def simulated(case: Case, learner_rate: float) -> list[dict[str, float]]:
    """The metrics of every step, in simulated seconds."""
    with asyncio.Runner(loop_factory=simulated_loop) as runner:
        return runner.run(metrics_of(case, learner_rate))


def engine_rate(case: Case) -> float:
    """Tokens/s of the engine, with a step's samples and no others."""
    steps = simulated(replace(case, staleness=0, steps=10), 1e9)
    return sum(s["rollout/tokens"] for s in steps) / sum(s["time/rollout"] for s in steps)


def run(case: Case, *, real: bool = False) -> list[dict[str, float]]:
    """The metrics of every step, in real or in simulated time."""
    learner_rate = case.learner * engine_rate(case)
    return asyncio.run(metrics_of(case, learner_rate)) if real else simulated(case, learner_rate)
