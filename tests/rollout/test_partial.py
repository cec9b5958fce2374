"""Samples that take turns in one engine: a fake one, whose tokens count up."""

import asyncio
from collections.abc import Sequence

import pytest

from rollout.episode import Completion, StopReason
from rollout.partial import PartialRollout, Places
from rollout.starts import Start


class Counting:
    """Gives a token whenever `step` is called, the next number after the last; 99 ends a turn."""

    def __init__(self) -> None:
        self.version = 0
        self.requests: list[tuple[list[int], int]] = []  # prompt, with what was begun, and its most
        self.seeds: list[int | None] = []
        self.now = 0.0  # a step takes a second
        self._running: list[tuple[list[int], list[int], int, asyncio.Future[None]]] = []
        self._ends: dict[int, float] = {}  # of those whose time is limited, by first token
        asyncio.get_running_loop().time = lambda: self.now  # type: ignore[method-assign]

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        begun: Sequence[int] = (),
        segment: int | None = None,
        seconds: float | None = None,
        start: Start | None = None,
    ) -> Completion:
        self.seeds.append(None if start is None else start.seed_after(len(begun)))
        context, most = [*prompt_ids, *begun], min(max_tokens, segment or max_tokens)
        self.requests.append((context, most))
        versions: list[int] = []
        done = asyncio.get_running_loop().create_future()
        running = (context, versions, most, done)
        if seconds is not None:  # from the first token on, which comes with the next step
            self._ends[context[0]] = self.now + 1 + seconds
        self._running.append(running)
        try:
            await done
        finally:
            self._running.remove(running)
            self._ends.pop(context[0], None)
        ids = [context[-1] + 1 + i for i in range(len(versions))]
        return Completion(
            prompt_ids=list(prompt_ids),
            token_ids=ids,
            logprobs=[-float(i) for i in ids],
            versions=versions,
            stop_reason=StopReason.stop if ids[-1] == 99 else StopReason.length,
            temperature=temperature,
        )

    @property
    def running(self) -> list[int]:
        """The first token of each request's prompt."""
        return sorted(context[0] for context, *_ in self._running)

    async def step(self, times: int = 1) -> None:
        """A token for each request, and time for everyone to go on."""
        for _ in range(times):
            await settle()
            self.now += 1
            for context, versions, most, done in list(self._running):
                versions.append(self.version)
                late = self.now >= self._ends.get(context[0], self.now + 1)
                if late or len(versions) == most or context[-1] + len(versions) == 99:
                    done.set_result(None)
            await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _draw(
    rollout: PartialRollout, prompt: int, most: int, *, park: bool = True
) -> "asyncio.Task[Completion]":
    return asyncio.create_task(rollout.draw([prompt], max_tokens=most, temperature=0.7, park=park))


def test_a_sample_parks_while_others_use_its_place_and_goes_on_under_the_next_version() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=2, segment_tokens=4)
        long, held_out = _draw(rollout, 10, 10), _draw(rollout, 50, 30, park=False)
        waiting, last = _draw(rollout, 30, 12), _draw(rollout, 70, 4)
        await settle()
        assert engine.running == [10, 50], "no more than there are places"
        await engine.step(4)
        assert engine.running == [30, 50]
        await engine.step(4)
        assert engine.running == [50, 70], "both have drawn what one version gives them"
        engine.version = 1
        rollout.new_version()
        await engine.step(4)
        assert last.done() and engine.running == [10, 50], "the oldest first"
        assert engine.requests[-1] == ([10, 11, 12, 13, 14], 4)
        await engine.step(2)
        engine.version = 2  # in flight: of the four tokens, two are under the version before
        rollout.new_version()
        await engine.step(2)
        assert engine.requests[-1] == ([10, *range(11, 19)], 2)
        await engine.step(2)
        drawn = await long
        assert drawn.token_ids.tolist() == list(range(11, 21))
        assert drawn.prompt_ids.tolist() == [10]
        assert drawn.versions == [0] * 4 + [1] * 2 + [2] * 4
        assert drawn.logprobs.tolist() == [-float(i) for i in drawn.token_ids]
        assert (drawn.stop_reason, drawn.parked) == (StopReason.length, 1)
        await engine.step(40)
        assert (await held_out).parked == 0 and len((await held_out).token_ids) == 30
        assert len((await waiting).token_ids) == 12

    asyncio.run(main())


def test_parked_samples_do_not_wait_where_nobody_takes_their_places() -> None:
    """One that never parks would else hold up all others: its engine is not idle."""

    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=3, segment_tokens=4)
        held_out = _draw(rollout, 50, 30, park=False)
        draws = [_draw(rollout, prompt, 12) for prompt in (10, 200, 300)]
        await engine.step(4)
        assert engine.running == [10, 50, 300], "of the two that gave way, the oldest goes on"
        await engine.step(20)
        drawn = [await draw for draw in draws]
        assert [len(each.token_ids) for each in drawn] == [12] * 3
        assert not held_out.done()
        held_out.cancel()

    asyncio.run(main())


def test_a_sample_alone_does_not_park() -> None:
    async def main() -> None:
        engine = Counting()
        draw = _draw(PartialRollout(engine, places=1, segment_tokens=3), 10, 8)
        await engine.step(10)
        assert (await draw).parked == 0 and len((await draw).token_ids) == 8

    asyncio.run(main())


def test_parked_samples_do_not_wait_for_an_idle_engine() -> None:
    """Else a learner that needs them, and would bring the next version, waits for ever."""

    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=3)
        draws = [_draw(rollout, prompt, 8) for prompt in (10, 30)]
        await engine.step(30)
        drawn = [await draw for draw in draws]
        assert [len(each.token_ids) for each in drawn] == [8, 8]
        assert all(set(each.versions) == {0} for each in drawn)
        prompts = [prompt for (prompt, *_), _ in engine.requests]
        assert prompts == [10, 30, 10, 10, 30, 30], "the oldest first"

    asyncio.run(main())


def test_the_end_of_a_turn_and_the_budget_hold_across_segments() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=4, segment_tokens=3)
        ends, cut = _draw(rollout, 94, 20), _draw(rollout, 10, 7)
        await engine.step(30)
        assert (await ends).token_ids.tolist() == [95, 96, 97, 98, 99]
        assert (await ends).stop_reason is StopReason.stop
        assert len((await cut).token_ids) == 7 and (await cut).stop_reason is StopReason.length
        assert [most for (first, *_), most in engine.requests if first == 10] == [3, 3, 1]

    asyncio.run(main())


def test_without_segments_a_sample_is_one_request() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=4, segment_tokens=None)
        draw = _draw(rollout, 10, 20)
        await engine.step(20)
        assert len((await draw).token_ids) == 20
        assert engine.requests == [([10], 20)]

    asyncio.run(main())


def test_a_sample_parks_when_its_time_is_over_and_keeps_what_it_has_drawn() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=None, segment_s=4.0)
        long, other = _draw(rollout, 10, 20), _draw(rollout, 200, 20)
        await engine.step(4)
        assert engine.running == [10]
        await engine.step(1)  # the fifth token is there four seconds after the first
        assert engine.running == [200]
        engine.version = 1
        rollout.new_version()
        await engine.step(5)
        assert engine.running == [10], "the oldest first, under the next version"
        assert engine.requests[-1] == ([10, 11, 12, 13, 14, 15], 15)
        await engine.step(2)
        engine.version = 2  # in flight: what was drawn before it does not count
        rollout.new_version()
        await engine.step(8)
        await engine.step(40)
        drawn = await long
        assert drawn.token_ids.tolist() == list(range(11, 31))
        assert drawn.logprobs.tolist() == [-float(i) for i in range(11, 31)]
        assert drawn.versions[:7] == [0] * 5 + [1] * 2
        assert list(drawn.versions)[7:11] == [2] * 4 and drawn.parked >= 1
        assert drawn.stop_reason is StopReason.length
        assert len((await other).token_ids) == 20

    asyncio.run(main())


def test_a_version_that_arrives_begins_the_time_of_a_segment_anew() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=None, segment_s=10.0)
        first, _ = _draw(rollout, 10, 40), _draw(rollout, 200, 40)
        await engine.step(6)
        engine.version = 1
        rollout.new_version()
        await engine.step(9)
        assert engine.running == [10], "fifteen seconds, but nine under the version that serves"
        await engine.step(3)
        assert engine.running == [200]
        first.cancel()

    asyncio.run(main())


def test_whichever_limit_comes_first_ends_a_segment() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=3, segment_s=5.0)
        draw = _draw(rollout, 10, 8)
        await engine.step(3)
        assert [most for _, most in engine.requests] == [3, 3]
        engine.now += 100  # a step that takes long
        await engine.step(1)
        assert [most for _, most in engine.requests] == [3, 3, 3]
        assert engine.requests[-1][0] == [10, 11, 12, 13, 14]
        await engine.step(9)
        assert (await draw).parked == 0 and len((await draw).token_ids) == 8

    asyncio.run(main())


def test_held_out_samples_have_no_limit_of_time() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=None, segment_s=2.0)
        draw, _ = _draw(rollout, 10, 20, park=False), _draw(rollout, 200, 20)
        await engine.step(20)
        assert len((await draw).token_ids) == 20 and engine.requests[0] == ([10], 20)

    asyncio.run(main())


def test_every_segment_has_a_seed_of_its_own() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=3)
        start = Start(seed=4)
        draw = asyncio.create_task(rollout.draw([10], max_tokens=8, temperature=1.0, start=start))
        await engine.step(10)
        await draw
        assert engine.seeds == [start.seed_after(begun) for begun in (0, 3, 6)]
        assert len(set(engine.seeds)) == 3

    asyncio.run(main())


def test_draws_that_start_together_wait_for_no_place_and_do_not_park() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=3)
        starts = [Start(seed=4, together=2).of_draw(number, 1) for number in (0, 1)]
        draws = [
            asyncio.create_task(rollout.draw([prompt], max_tokens=8, temperature=1.0, start=start))
            for prompt, start in zip((10, 30), starts, strict=True)
        ]
        await engine.step(1)
        assert engine.running == [10, 30], "else they would wait for each other for ever"
        await engine.step(10)
        assert [len((await draw).token_ids) for draw in draws] == [8, 8]
        assert [most for _, most in engine.requests] == [8, 8]

    asyncio.run(main())


def test_a_cancelled_sample_leaves_its_place_and_its_turn() -> None:
    async def main() -> None:
        engine = Counting()
        rollout = PartialRollout(engine, places=1, segment_tokens=2)
        runs, waits, parks = (_draw(rollout, prompt, 9) for prompt in (10, 30, 50))
        await settle()
        waits.cancel()
        await engine.step(2)
        runs.cancel()  # it is parked by now
        await engine.step(20)
        assert len((await parks).token_ids) == 9
        assert [prompt for (prompt, *_), _ in engine.requests] == [10] + [50] * 5

    asyncio.run(main())


@pytest.mark.parametrize("given", [False, True])
def test_a_place_that_is_given_to_the_cancelled_is_not_lost(given: bool) -> None:
    async def main() -> None:
        places = Places(1)

        async def hold(age: int) -> None:
            async with places.hold(age):
                await settle()

        first = asyncio.create_task(hold(0))
        await asyncio.sleep(0)
        second = asyncio.create_task(hold(1))
        await asyncio.sleep(0)
        assert places.free == 0
        if given:
            first.cancel()
            await asyncio.sleep(0)  # the place passes to the second, which does not know it yet
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.cancelled() and places.free == 1

    asyncio.run(main())
