import asyncio
from collections.abc import Sequence

from rewards.watch import SlowReward
from rl.slow_rewards import SlowRewardLog


def test_slow_rewards_are_named_a_few_at_a_time_and_counted() -> None:
    said: list[str] = []
    answers = [[_slow(n) for n in range(7)], [], [_slow(7)]]

    async def ask() -> Sequence[SlowReward]:
        return answers.pop(0) if answers else []

    async def main() -> int:
        log = SlowRewardLog(said.append, every_s=0.001)
        log.start(ask)
        while answers:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        count = log.take()
        assert log.take() == 0
        log.stop()
        return count

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 8
    assert said == [
        *(f"slow reward: code took 12.0 s on task t/{n}" for n in range(5)),
        "and 2 more slow rewards",
        "slow reward: code took 12.0 s on task t/7",
    ]


def _slow(number: int) -> SlowReward:
    return SlowReward(task_id=f"t/{number}", part="code", seconds=12.0, running=False)
