"""Seeds, and draws that wait for each other before an engine that stands still."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rollout.starts import Gate, Start


class Engine:
    """Notes what happens to it; requests reach it a turn of the loop late."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[str] = []
        self.requests = 0
        self._error = error

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error
        self.events.append("hold")
        yield
        self.events.append(f"go on with {self.requests}")

    async def draw(self, gate: Gate, start: Start) -> None:
        await gate.enter(start)
        self.events.append(str(start.place))
        await asyncio.sleep(0)
        self.requests += 1


def _gate(engine: Engine, patience_s: float = 30.0) -> Gate:
    return Gate(engine.held, lambda: engine.requests, patience_s=patience_s)


def _start(place: int, together: int) -> Start:
    return Start(seed=0, place=place, together=together)


def test_draws_enter_in_the_order_of_their_places_once_all_are_there() -> None:
    async def main() -> None:
        engine = Engine()
        gate = _gate(engine)
        for wave in range(2):
            draws = [asyncio.create_task(engine.draw(gate, _start(p, 3))) for p in (2, 0)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert engine.events == ["hold"], "not all are there"
            await asyncio.gather(*draws, engine.draw(gate, _start(1, 3)))
            await asyncio.sleep(0.01)
            assert engine.events == ["hold", "0", "1", "2", f"go on with {3 * (wave + 1)}"]
            engine.events.clear()

    asyncio.run(main())


def test_one_that_does_not_come_is_not_waited_for_without_end() -> None:
    async def main() -> None:
        engine = Engine()
        gate = _gate(engine, patience_s=0.05)
        await asyncio.gather(*(engine.draw(gate, _start(p, 3)) for p in (1, 0)))
        await asyncio.sleep(0.01)
        assert engine.events == ["hold", "0", "1", "go on with 2"]

    asyncio.run(main())


def test_one_that_is_cancelled_is_left_out() -> None:
    async def main() -> None:
        engine = Engine()
        gate = _gate(engine)
        gone, stays = (asyncio.create_task(engine.draw(gate, _start(p, 3))) for p in (0, 1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(stays, engine.draw(gate, _start(2, 3)))
        await asyncio.sleep(0.01)
        assert engine.events == ["hold", "1", "2", "go on with 2"]

    asyncio.run(main())


def test_all_that_wait_are_told_that_the_engine_is_dead() -> None:
    async def main() -> None:
        engine = Engine(RuntimeError("dead"))
        gate = _gate(engine)
        draws = (engine.draw(gate, _start(place, 2)) for place in range(2))
        errors = await asyncio.gather(*draws, return_exceptions=True)
        assert [str(error) for error in errors] == ["dead", "dead"]

    asyncio.run(main())


@pytest.mark.parametrize("engines", [1, 2, 3, 7])
def test_every_place_is_one_place_of_one_engine(engines: int) -> None:
    given: dict[int, list[int]] = {}
    for place in range(5):
        mine = _start(place, 5).of_engine(engines)
        given.setdefault(place % engines, []).append(mine.place)
        assert mine.together == len(range(place % engines, 5, engines))
    assert all(places == list(range(len(places))) for places in given.values())


def test_seeds_are_those_of_every_run_and_no_two_alike() -> None:
    start = Start(seed=9, place=1, together=2)
    draws = [start.of_draw(number, 4) for number in range(4)]
    assert [(each.place, each.together) for each in draws] == [(4, 8), (5, 8), (6, 8), (7, 8)]
    seeds = {each.seed_after(begun) for each in draws for begun in (0, 1, 64)}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert draws[0].seed_after(0) == 3_441_272_166_370_481_868
    assert start.alone() == Start(seed=9)
