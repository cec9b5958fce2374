"""Which groups may start, which a step takes, and which are given up."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.buffer import Admission, GroupBuffer
from rl.journal import Journal, JournalState
from rl.rollout_config import RolloutConfig
from rollout.episode import Completion, Episode, Group, StopReason


def _group(*versions: int) -> Group:
    """Episodes of two tokens, the first of version 0."""
    task = Task(
        id="t",
        kind=TaskKind.math,
        messages=(Message(role="user", content="?"),),
        reference="1",
        token_budget=4,
    )
    episodes = [
        Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[2, 3],
                logprobs=[-1.0, -1.0],
                versions=[0, version],
                stop_reason=StopReason.stop,
                temperature=1.0,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=2, truncated=False
            ),
            score=Score(total=1.0),
        )
        for version in versions
    ]
    return Group(task=task, episodes=tuple(episodes))


def _buffer(
    max_staleness: int, steps: int = 10, journal: JournalState | None = None
) -> GroupBuffer:
    config = RolloutConfig(groups_per_step=2, samples_per_group=2, max_staleness=max_staleness)
    return GroupBuffer(config, steps=steps, version=0, journal=Journal(journal or JournalState()))


async def _now(waiting: Coroutine[Any, Any, Any]) -> Any:
    """What it answers without waiting; None if it waits."""
    try:
        return await asyncio.wait_for(waiting, timeout=0.01)
    except TimeoutError:
        return None


async def _admitted(buffer: GroupBuffer) -> list[int]:
    positions = []
    while (admission := await _now(buffer.admit())) is not None:
        positions.append(admission.position)
    return positions


def test_a_step_takes_the_oldest_complete_groups_in_order() -> None:
    async def main() -> None:
        buffer = _buffer(1)
        assert await _admitted(buffer) == [0, 1, 2, 3]
        await buffer.put(3, _group(0, 0))
        assert await _now(buffer.take()) is None
        await buffer.put(2, None)
        await buffer.put(1, _group(0, 0))
        taken = await buffer.take()
        assert [each.position for each in taken] == [1, 2] and taken[1].group is None
        assert await _admitted(buffer) == [], "not before the version is published"
        await buffer.published(1)
        assert await _admitted(buffer) == [4, 5]
        assert buffer.journal_state == JournalState(end=3, open=(0,), passed_over=1)
        assert buffer.metrics()["buffer/size"] == 1.0
        assert buffer.metrics()["buffer/running"] == 3.0

    asyncio.run(main())


def test_late_groups_make_room_for_others_but_not_for_ever() -> None:
    async def main() -> None:
        buffer = _buffer(1)
        running = await _admitted(buffer)
        existing = []
        for version in range(1, 6):
            ending = [position for position in running if position not in (0, 1, 8)][:2]
            for position in ending:
                running.remove(position)
                await buffer.put(position, _group(version - 1))
            await buffer.take()
            await buffer.published(version)
            running += await _admitted(buffer)
            existing.append(len(running))
        assert existing == [4, 6, 6, 6, 6], "of three late groups, the third makes no room"

    asyncio.run(main())


def test_an_old_group_is_given_up_and_its_successor_is_due() -> None:
    async def main() -> None:
        buffer = _buffer(1, journal=JournalState(end=9, open=(4,)))
        assert await _admitted(buffer) == [4, 9, 10, 11]
        await buffer.put(9, _group(0, 0))
        await buffer.put(10, _group(0, 0))
        await buffer.take()
        await buffer.published(1)
        await buffer.put(4, _group(0, 0))
        await buffer.put(11, _group(0, 1))
        await buffer.published(2)  # as if a step of no groups went by
        assert await _now(buffer.take()) is None
        assert await buffer.admit() == Admission(position=4, step=2)
        for position in (12, 13):
            assert (await buffer.admit()).position == position
            await buffer.put(position, _group(2, 2))
        assert [each.position for each in await buffer.take()] == [11, 12]
        assert (await buffer.admit()).position == 14
        await buffer.put(14, _group(2, 2))
        await buffer.published(3)
        assert await _now(buffer.take()) is None, "two are complete, but 4 is due"
        await buffer.put(4, _group(2, 3))
        assert [each.position for each in await buffer.take()] == [4, 13]
        assert buffer.metrics()["buffer/resampled"] == 1.0

    asyncio.run(main())


def test_no_more_is_asked_than_the_steps_train() -> None:
    async def main() -> None:
        buffer = _buffer(3, steps=2)
        assert await _admitted(buffer) == [0, 1, 2, 3]

    asyncio.run(main())


def test_what_was_given_up_is_sampled_anew_oldest_first() -> None:
    async def main() -> None:
        buffer = _buffer(1)
        assert await _admitted(buffer) == [0, 1, 2, 3]
        for position in (0, 1):
            await buffer.put(position, _group(0))
        await buffer.published(2)  # as if a step of no groups went by
        assert await _now(buffer.take()) is None
        assert await buffer.admit() == Admission(position=0, step=2)
        assert await buffer.admit() == Admission(position=1, step=2)

    asyncio.run(main())


def test_whoever_waits_for_a_place_hears_of_what_was_given_up() -> None:
    async def main() -> None:
        buffer = _buffer(1, steps=1)
        assert await _admitted(buffer) == [0, 1]
        waiting = asyncio.create_task(buffer.admit())  # all steps have their groups
        await buffer.put(0, _group(0))
        await buffer.published(2)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        taking = asyncio.create_task(buffer.take())
        assert await asyncio.wait_for(waiting, 1) == Admission(position=0, step=2)
        taking.cancel()

    asyncio.run(main())


def test_a_group_that_could_not_be_ranked_was_asked_all_the_same() -> None:
    async def main() -> None:
        buffer = _buffer(0)
        assert await _admitted(buffer) == [0, 1]
        await buffer.put(0, replace(_group(0, 0), skipped="no verdict"))
        await buffer.put(1, _group(0, 0))
        await buffer.take()
        assert buffer.journal_state == JournalState(end=2, passed_over=0)

    asyncio.run(main())
