"""What happens inside one process, kept until the driver asks for it: see `rl.timeline`."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from rewards.comparison import Answer, Ask
from rewards.score import Score
from rewards.task import Message, Task, Transcript
from rl.timeline import Detail, Span
from rollout.episode import Completion
from rollout.sampler import Draws, Judge
from rollout.starts import Start

MOST = 4096  # spans that are kept between two questions

_TASK: ContextVar[str] = ContextVar("task", default="")


class SpanLog:
    """Spans of one process; the oldest are forgotten, and counted, if nobody asks for them."""

    def __init__(self, *, most: int = MOST, clock: Callable[[], float] = time.time) -> None:
        """Keep at most so many spans."""
        self._clock = clock
        self._spans: deque[Span] = deque(maxlen=most)
        self._forgotten = 0

    @contextmanager
    def span(self, name: str, **details: Detail) -> Iterator[dict[str, Detail]]:
        """Record what happens within; details may be added to what this yields."""
        start = self._clock()
        try:
            yield details
        finally:
            if task := _TASK.get():
                details.setdefault("task", task)
            self._forgotten += len(self._spans) == self._spans.maxlen
            self._spans.append(
                Span(track="", name=name, start=start, end=self._clock(), details=details)
            )

    def take(self, track: str) -> list[Span]:
        """The spans since the last call, as of `track`: "rollout worker 0".

        The first says how many were forgotten, if any were.
        """
        spans = [replace(span, track=track) for span in self._spans]
        self._spans.clear()
        if self._forgotten:
            first = spans[0].start
            note = f"{self._forgotten} earlier spans are not shown"
            spans.insert(0, Span(track=track, name=note, start=first, end=first))
        self._forgotten = 0
        return spans


@contextmanager
def of_task(task: Task) -> Iterator[None]:
    """Spans that are recorded within bear the task's id."""
    token = _TASK.set(task.id)
    try:
        yield
    finally:
        _TASK.reset(token)


class TimedDraws:
    """A `rollout.sampler.Draws` that records every completion."""

    def __init__(self, draws: Draws, spans: SpanLog) -> None:
        """Pass everything on to `draws`."""
        self._draws, self._spans = draws, spans

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        """Draw one continuation."""
        with self._spans.span("generate", prompt=len(prompt_ids)) as details:
            drawn = await self._draws.draw(
                prompt_ids, max_tokens=max_tokens, temperature=temperature, park=park, start=start
            )
            details["tokens"] = len(drawn.token_ids)
            details["stopped"] = drawn.stop_reason.value
            if drawn.parked:
                details["parked"] = drawn.parked
            if drawn.versions:
                details["versions"] = f"{min(drawn.versions)}-{max(drawn.versions)}"
            return drawn


class TimedJudge:
    """A `rollout.sampler.Judge` that records every score."""

    def __init__(self, judge: Judge, spans: SpanLog) -> None:
        """Pass everything on to `judge`."""
        self._judge, self._spans = judge, spans

    async def score(self, task: Task, transcript: Transcript) -> Score:
        """The score of one episode."""
        with self._spans.span("score", kind=task.kind.value) as details:
            score = await self._judge.score(task, transcript)
            details["reward"] = score.total
            return score


class TimedAsk:
    """A `rewards.comparison.Ask` that records every judgement."""

    def __init__(self, ask: Ask, spans: SpanLog) -> None:
        """Pass everything on to `ask`."""
        self._ask, self._spans = ask, spans

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        """One answer."""
        with self._spans.span("judge") as details:
            answer = await self._ask(messages, max_tokens=max_tokens, temperature=temperature)
            details["tokens"] = answer.tokens
            return answer
