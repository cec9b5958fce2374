"""Many questions at once to a model, for a caller that takes its answers one by one."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, suppress

from rewards.preference.judges import Failure, Judgement, Question

Answering = Callable[[Question], Awaitable[Judgement | Failure]]
Opening = Callable[[], AbstractAsyncContextManager[Answering]]
Answered = tuple[int, Judgement | Failure]  # the question's index


def answers(
    questions: Sequence[Question], opening: Opening, concurrency: int
) -> Generator[Answered]:
    """Every question's index with its answer, as they come, from an event loop in a thread.

    A caller who stops early waits until what is under way has been cancelled and the model closed.

    Args:
        questions: without any, the model is not opened.
        opening: a context in which the model answers, entered in the loop.
        concurrency: questions under way.

    Raises what opening and answering raise.
    """
    if not questions:
        return
    found: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    asking = loop.create_task(_ask(questions, opening, concurrency, found.put))
    asking.add_done_callback(lambda _: found.put(None))

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_ended(asking))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (each := found.get()) is not None:
            yield each
        asking.result()
    finally:
        with suppress(RuntimeError):  # it has ended, and closed its loop
            loop.call_soon_threadsafe(asking.cancel)
        thread.join()


async def _ended(asking: asyncio.Task[None]) -> None:
    await asyncio.wait([asking])


async def _ask(
    questions: Sequence[Question],
    opening: Opening,
    concurrency: int,
    tell: Callable[[Answered], None],
) -> None:
    waiting = iter(enumerate(questions))

    async def work(answer: Answering) -> None:
        for index, question in waiting:
            tell((index, await answer(question)))

    async with opening() as answer:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(questions))):
                    group.create_task(work(answer))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
