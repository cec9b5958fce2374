"""The loop with fake engines and a fake learner, in simulated time."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.comparison import CriticReport
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch
from rl.config import ObjectiveConfig, RolloutConfig, TrainConfig
from rl.errors import RunFailed
from rl.journal import JournalState
from rl.loop import Course, Loop, Step
from rl.sample import Sample
from rollout.episode import Completion, Episode, Group, StopReason
from rollout.starts import Start

Seconds = Callable[[int, int], float]
"""How long a sample takes, by position and number in its group."""


def _task(position: int, step: int = 0) -> Task:
    return Task(
        id=f"t/{position}",
        kind=TaskKind.math,
        messages=(Message(role="user", content="?"),),
        reference="1",
        token_budget=4,
    )


def _alike(position: int, sample: int) -> float:
    return 0.4


def _backwards(position: int, sample: int) -> float:
    """Later positions of four answer first."""
    return 0.1 * (4 - position % 4)


class FakeRollouts:
    """Every sample draws a token when it starts and one when it ends, of the version served."""

    def __init__(self, seconds: Seconds = _alike, scoring: float = 0.0) -> None:
        self.version = 0
        self.seconds, self.scoring = seconds, scoring
        self.started: list[int] = []
        self.starts: list[Start | None] = []
        self.under_way = self.most = 0

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        position = int(task.id.removeprefix("t/"))
        self.started.append(position)
        self.starts.append(start)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            draws = (self._draw(task, position, k, temperature) for k in range(samples))
            episodes = await asyncio.gather(*draws)
            await asyncio.sleep(self.scoring)
        finally:
            self.under_way -= 1
        return Group(task=task, episodes=tuple(episodes))

    async def _draw(self, task: Task, position: int, sample: int, temperature: float) -> Episode:
        first = self.version
        await asyncio.sleep(self.seconds(position, sample))
        return Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[position + 10] * 2,
                logprobs=[-1.0, -1.0],
                versions=[first, self.version],
                stop_reason=StopReason.stop,
                temperature=temperature,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=2, truncated=False
            ),
            score=Score(total=float(position % 2)),
        )

    async def busy_seconds(self) -> float:
        return 0.0


class FakePolicy:
    """Remembers what it was trained on; an update takes a second."""

    def __init__(self, rollouts: FakeRollouts, fail_at: int | None = None) -> None:
        self.rollouts = rollouts
        self.updates: list[list[int]] = []  # ids in the loss, prompts and masked tokens left out
        self.lags: list[set[int]] = []
        self.sizes: list[list[int]] = []  # samples of each minibatch
        self.fail_at = fail_at

    async def update(
        self, minibatches: Sequence[Batch], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        if len(self.updates) == self.fail_at:
            raise FloatingPointError("log-probs are not finite")
        version = self.rollouts.version
        self.sizes.append([len(batch.samples) for batch in minibatches])
        await asyncio.sleep(1.0)
        self.updates.append([i for b in minibatches for i in b.ids[b.loss_mask].tolist()])
        self.lags.append(
            {version - v for b in minibatches for v in b.versions[b.loss_mask].tolist()}
        )
        return {"objective/loss": 0.0}

    async def publish(self, version: int) -> dict[str, float]:
        self.rollouts.version = version
        return {"time/sync": 0.0}


async def _nothing(step: Step) -> None:
    pass


@dataclass
class Run:
    """What a run left behind."""

    rollouts: FakeRollouts
    policy: FakePolicy
    steps: list[Step] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # times of the steps

    @property
    def trained(self) -> list[list[int]]:
        """Positions by step."""
        return [[int(g.task.id.removeprefix("t/")) for g in step.groups] for step in self.steps]


def _config(
    max_staleness: int, steps: int = 5, size: int = 4, samples: int = 2, **rollout: int
) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        rollout=RolloutConfig(
            groups_per_step=size,
            samples_per_group=samples,
            max_staleness=max_staleness,
            **rollout,
        ),
        objective=ObjectiveConfig(minibatches=1),
    )


def _run(
    simulate,
    config: TrainConfig,
    rollouts: FakeRollouts | None = None,
    course: Course | None = None,
    *,
    start: int = 0,
    journal: JournalState | None = None,
    fail_at: int | None = None,
) -> Run:
    rollouts = rollouts or FakeRollouts()
    rollouts.version = start
    run = Run(rollouts, FakePolicy(rollouts, fail_at))

    async def on_step(step: Step) -> None:
        run.steps.append(step)
        run.ended.append(asyncio.get_running_loop().time())

    loop = Loop(
        config,
        rollouts=rollouts,
        policy=run.policy,
        course=course or Course(task_at=_task),
        start=start,
        journal=journal,
    )
    simulate(loop.run(on_step))
    return run


def test_a_synchronous_run_is_in_the_order_of_the_stream_on_its_own_version(simulate) -> None:
    run = _run(simulate, _config(0), FakeRollouts(_backwards))
    assert run.policy.updates == [
        [10 + p for p in range(4 * s, 4 * s + 4) for _ in range(4)] for s in range(5)
    ]
    assert run.policy.lags == [{0}] * 5
    assert [step.number for step in run.steps] == [1, 2, 3, 4, 5]
    assert run.rollouts.most == 4
    assert run.ended == pytest.approx([1.4, 2.8, 4.2, 5.6, 7.0]), "nothing overlaps"


def test_groups_of_a_synchronous_step_start_together_with_the_seeds_of_every_run(simulate) -> None:
    run = _run(simulate, _config(0, steps=3))
    starts = [start for start in run.rollouts.starts if start is not None]
    assert [(each.place, each.together) for each in starts] == [(p, 4) for p in range(4)] * 3
    assert len({each.seed for each in starts}) == 12
    resumed = _run(simulate, _config(0, steps=3), start=1, journal=run.steps[0].journal)
    assert resumed.rollouts.starts == starts[4:]
    other = replace(_config(0, steps=1), seed=1)
    assert {each.seed for each in _run(simulate, other).rollouts.starts if each}.isdisjoint(
        each.seed for each in starts
    )


def test_what_is_passed_over_is_not_waited_for(simulate) -> None:
    course = Course(task_at=lambda at, step: None if at % 4 == 1 else _task(at))
    starts = _run(simulate, _config(0, steps=1), course=course).rollouts.starts
    assert [(s.place, s.together) for s in starts if s] == [(0, 3), (1, 3), (2, 3)]


def test_where_generation_runs_ahead_groups_wait_for_no_other(simulate) -> None:
    assert _run(simulate, _config(1)).rollouts.starts == [None] * 20


def test_one_version_ahead_the_engines_work_while_the_learner_does(simulate) -> None:
    run = _run(simulate, _config(1), FakeRollouts())
    assert run.trained == [[4 * s + i for i in range(4)] for s in range(5)]
    assert run.policy.lags == [{0}] + [{1}] * 4
    assert run.ended == pytest.approx([1.4, 2.4, 3.4, 4.4, 5.4])
    assert [step.metrics["time/stall"] for step in run.steps] == pytest.approx([0.4, 0, 0, 0, 0])
    assert run.steps[2].metrics["staleness/max"] == 1.0
    assert run.steps[2].metrics["buffer/waiting_s"] == pytest.approx(0.6)
    assert run.steps[2].metrics["buffer/size"] == 0.0


def test_a_step_does_not_wait_for_a_slow_group_and_trains_it_when_it_is_complete(simulate) -> None:
    """Position 2 takes 4.6 s, two versions' time beyond the bound, in one of its two samples."""
    slow = FakeRollouts(lambda position, sample: 4.6 if (position, sample) == (2, 1) else 0.4)
    run = _run(simulate, _config(1, steps=8), slow)
    assert run.trained[:2] == [[0, 1, 3, 4], [5, 6, 7, 8]]
    assert max(step.metrics["time/stall"] for step in run.steps) <= 0.4 + 1e-9
    (late,) = [s for s in run.steps if "t/2" in {g.task.id for g in s.groups}]
    assert late.groups[0].task.id == "t/2", "the oldest goes first"
    assert late.number == 5 and run.policy.lags[4] == {1}
    # Of four tokens of its group, the last is young enough; the others stay as context.
    assert run.policy.updates[late.number - 1].count(12) == 1
    assert late.metrics["rollout/masked_tokens"] == 3.0
    assert sorted(p for step in run.trained for p in step) == list(range(32))


@pytest.mark.parametrize("max_lag", [0, 3])
def test_the_lag_of_tokens_in_the_loss_has_a_bound_of_its_own(simulate, max_lag: int) -> None:
    slow = FakeRollouts(lambda position, sample: 3.4 if (position, sample) == (2, 1) else 0.4)
    run = _run(simulate, _config(1, steps=8, loss_max_lag=max_lag), slow)
    assert max(max(lags) for lags in run.policy.lags) == max_lag
    assert sorted(p for step in run.trained for p in step) == list(range(32))
    if max_lag:
        assert sum(ids.count(12) for ids in run.policy.updates) > 1, "its early tokens count"


def test_a_group_that_comes_too_late_is_sampled_anew_and_then_waited_for(simulate) -> None:
    """Its tokens were drawn in time, its reward took five versions."""

    class Slow(FakeRollouts):
        async def sample(self, task: Task, **settings) -> Group:
            group = await super().sample(task, **settings)
            if task.id == "t/2":
                await asyncio.sleep(4.6)
            return group

    run = _run(simulate, _config(1, steps=12), Slow())
    assert run.rollouts.started.count(2) == 2
    assert sum(step.metrics["buffer/resampled"] for step in run.steps) == 1.0
    assert sorted(p for step in run.trained for p in step) == list(range(48)), "and trained once"
    (late,) = [s for s in run.steps if "t/2" in {g.task.id for g in s.groups}]
    assert late.metrics["staleness/max"] <= 1.0
    given_up = next(s for s in run.steps if s.metrics["buffer/resampled"])
    assert late.number == given_up.number + 1, "max_lag 1 allows one step more"
    assert late.metrics["time/stall"] > 3.0


@pytest.mark.parametrize("beyond", [1, 2])
def test_a_token_beyond_the_bound_in_the_loss_ends_the_run(simulate, beyond: int) -> None:
    class Wrong(Loop):
        def _samples(self, step: int, group: Group) -> list[Sample]:
            return super()._samples(step - beyond, group)

    seconds = 1.4 + beyond
    slow = FakeRollouts(lambda position, k: seconds if (position, k) == (2, 1) else 0.4)
    loop = Wrong(_config(1), rollouts=slow, policy=FakePolicy(slow), course=Course(task_at=_task))
    says = f"{1 + beyond} versions old came into the loss of step {2 + beyond}: at most 1"
    with pytest.raises(RunFailed, match=says):
        simulate(loop.run(_nothing))


def test_an_engine_that_serves_old_weights_ends_the_run(simulate) -> None:
    class Stuck(FakePolicy):
        async def publish(self, version: int) -> dict[str, float]:
            return {}

    rollouts = FakeRollouts()
    loop = Loop(_config(1), rollouts=rollouts, policy=Stuck(rollouts), course=Course(task_at=_task))
    with pytest.raises(RunFailed, match=r"started under version 1 .* newest token is of version 0"):
        simulate(loop.run(_nothing))


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_slow_kinds_of_tasks_get_their_share_of_every_window(simulate, max_staleness: int) -> None:
    """A third of the stream takes 12 times as long as another third."""
    seconds = (0.5, 2.0, 6.0)
    rollouts = FakeRollouts(lambda position, sample: seconds[position % 3])
    size, steps = 6, 60
    run = _run(simulate, _config(max_staleness, steps, size), rollouts)
    counts, off = Counter[int](), 0.0
    for number, positions in enumerate(run.trained, 1):
        counts.update(position % 3 for position in positions)
        off = max(off, *(abs(counts[kind] - number * size / 3) for kind in range(3)))
    assert 2 <= off <= 2 * max_staleness * size
    assert counts == {0: 120, 1: 120, 2: 120}


def test_what_exists_at_a_time_does_not_grow_with_the_run(simulate) -> None:
    """One group never ends before all others have; few are remembered because of it."""
    rollouts = FakeRollouts(lambda position, sample: 70.0 if position == 1 else 0.4)
    run = _run(simulate, _config(1, steps=60), rollouts)
    assert rollouts.most <= 3 * 4
    assert all(len(step.journal.open) <= 3 * 4 for step in run.steps)
    assert run.steps[40].journal.open == (1,)
    assert run.steps[-1].journal == JournalState(end=240)
    assert sorted(p for step in run.trained for p in step) == list(range(240))


def test_a_long_tail_does_not_hold_up_the_learner(simulate) -> None:
    """1 % of samples 20 times as long, two versions ahead, on engines that never queue."""
    draw = random.Random(0)
    long = {(position, k) for position in range(960) for k in range(4) if draw.random() < 0.01}

    def tailed(position: int, sample: int) -> float:
        return 20.0 if (position, sample) in long else 1.0

    def even(position: int, sample: int) -> float:
        return 1.0 + 19.0 * len(long) / (960 * 4)

    config = _config(2, steps=60, size=16, samples=4)
    tail, same = (_run(simulate, config, FakeRollouts(each)).ended for each in (tailed, even))
    # Between the first long samples, which come back after 20 steps, and the last.
    assert (same[45] - same[15]) / (tail[45] - tail[15]) > 0.9


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    crashes=st.lists(st.floats(0.1, 12.0), max_size=3),
    every=st.integers(1, 3),
)
def test_each_position_is_trained_once_across_crashes(
    simulate, max_staleness: int, seed: int, crashes: list[float], every: int
) -> None:
    """A crash takes everything but the last checkpoint: its step, its journal, its weights."""
    config = _config(max_staleness, steps=6, size=3)
    draw = random.Random(seed)
    rollouts = FakeRollouts(lambda position, sample: draw.expovariate(1.0), scoring=0.2)
    saved_step, saved_journal, saved = 0, JournalState(), list[str]()

    async def until(crash: float | None) -> None:
        nonlocal saved_step, saved_journal, saved
        rollouts.version, trained = saved_step, list(saved)

        async def on_step(step: Step) -> None:
            nonlocal saved_step, saved_journal, saved
            trained.extend(group.task.id for group in step.groups)
            if step.number % every == 0 or step.number == config.steps:
                saved_step, saved_journal, saved = step.number, step.journal, list(trained)

        loop = Loop(
            config,
            rollouts=rollouts,
            policy=FakePolicy(rollouts),
            course=Course(task_at=_task),
            start=saved_step,
            journal=saved_journal,
        )
        try:
            async with asyncio.timeout(crash):
                await loop.run(on_step)
        except TimeoutError:
            assert len(saved_journal.open) <= max_staleness * 2 * 3 + 3

    for crash in [*crashes, None]:
        if saved_step < config.steps:
            simulate(until(crash))
    assert sorted(saved) == sorted(f"t/{position}" for position in range(18))
    assert saved_journal == JournalState(end=18)


def test_a_resumed_loop_goes_on_at_its_position(simulate) -> None:
    run = _run(simulate, _config(1), start=3)
    assert run.trained == [[12, 13, 14, 15], [16, 17, 18, 19]]
    assert [s.number for s in run.steps] == [4, 5]


def test_a_resumed_loop_asks_what_was_under_way_and_for_the_steps_to_come(simulate) -> None:
    asked: list[tuple[int, int]] = []

    def task_at(position: int, step: int) -> Task:
        asked.append((position, step))
        return _task(position)

    journal = JournalState(end=14, open=(5, 9))
    run = _run(simulate, _config(1), course=Course(task_at=task_at), start=3, journal=journal)
    assert run.trained == [[5, 9, 14, 15], [16, 17, 18, 19]]
    assert asked == [(5, 3), (9, 3), (14, 3), (15, 3), (16, 4), (17, 4), (18, 4), (19, 4)]


def test_groups_are_sampled_at_the_temperature_of_their_step(simulate) -> None:
    config = _config(0, steps=4)
    cooling = replace(config.rollout, temperature_start=1.0, temperature_end=0.4)
    run = _run(simulate, replace(config, rollout=cooling))
    found = [
        {e.completion.temperature for group in step.groups for e in group.episodes}
        for step in run.steps
    ]
    assert [len(each) for each in found] == [1] * 4
    assert [each.pop() for each in found] == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_groups_are_observed_when_complete_and_shaped_when_trained(simulate) -> None:
    observed: list[tuple[int, str]] = []

    def shape(step: int, group: Group) -> Group:
        score = Score(total=10.0 * step)
        return replace(group, episodes=tuple(replace(e, score=score) for e in group.episodes))

    slow = FakeRollouts(lambda position, sample: 1.9 if position == 2 else 0.4)
    course = Course(
        task_at=_task,
        shape=shape,
        observe=lambda step, group: observed.append((step, group.task.id)),
    )
    run = _run(simulate, _config(1, steps=3), slow, course)
    assert [step.metrics["reward/mean"] for step in run.steps] == [0.0, 10.0, 20.0]
    assert "t/2" in {group.task.id for group in run.steps[2].groups}
    assert sorted(observed)[:4] == [(0, "t/0"), (0, "t/1"), (0, "t/2"), (0, "t/3")]


def test_the_first_error_of_a_part_ends_the_loop_as_it_is(simulate) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        _run(simulate, _config(1), fail_at=2)


def test_positions_that_are_passed_over_leave_smaller_steps(simulate) -> None:
    course = Course(task_at=lambda at, step: None if at in (1, 4, 5, 6, 7) else _task(at))
    run = _run(simulate, _config(0, steps=3), course=course)
    assert run.trained == [[0, 2, 3], [], [8, 9, 10, 11]]
    assert len(run.policy.updates) == 2
    assert [step.number for step in run.steps] == [1, 2, 3]
    assert "reward/mean" not in run.steps[1].metrics
    assert run.steps[-1].journal == JournalState(end=12, passed_over=5)


@pytest.mark.parametrize(
    ("groups", "shares"),
    [(13, [3, 3, 3, 4]), (9, [2, 2, 2, 3]), (8, [2] * 4), (5, [1, 1, 1, 2]), (3, [1] * 3)],
)
def test_minibatches_differ_by_one_group_at_most(simulate, groups: int, shares: list[int]) -> None:
    config = replace(_config(0, steps=1, size=16), objective=ObjectiveConfig(minibatches=4))
    course = Course(task_at=lambda at, step: _task(at) if at < groups else None)
    run = _run(simulate, config, course=course)
    assert run.policy.sizes == [[2 * share for share in shares]]


def test_the_groups_of_a_trained_step_are_not_held_through_the_next(simulate) -> None:
    alive: list[int] = []

    class Counting(FakeRollouts):
        async def sample(self, task: Task, **options: Any) -> Group:
            group = await super().sample(task, **options)
            if task.id in ("t/7", "t/11"):  # the last of a step
                gc.collect()
                alive.append(sum(type(each) is Group for each in gc.get_objects()))
            return group

    gc.collect()
    before = sum(type(each) is Group for each in gc.get_objects())
    rollouts = Counting(lambda position, sample: 5.0 + (position % 4 == 3))
    config, done = _config(0, steps=3), Course(task_at=_task)

    async def forget(step: Step) -> None:
        pass

    simulate(Loop(config, rollouts=rollouts, policy=FakePolicy(rollouts), course=done).run(forget))
    assert [each - before for each in alive] == [4, 4]


def test_groups_that_could_not_be_ranked_are_not_trained_on(simulate) -> None:
    def shape(step: int, group: Group) -> Group:
        if group.task.id != "t/2":
            return group
        return replace(group, skipped="no verdict", critique=CriticReport(unreadable=2))

    run = _run(simulate, _config(1, steps=3), course=Course(task_at=_task, shape=shape))
    assert sorted(set(run.policy.updates[0])) == [10, 11, 13]
    assert len(run.steps[0].groups) == 4, "its samples are still kept"
    assert run.steps[0].metrics["reward/mean"] == pytest.approx(2 / 3)
    assert run.steps[0].metrics["critic/skipped_groups"] == 1.0


def test_a_slow_measurement_never_delays_the_learner(simulate) -> None:
    started: list[int] = []

    async def measure(step: int) -> dict[str, float]:
        started.append(step)
        await asyncio.sleep(100.0)
        return {"critic/agreement": float(step)}

    async def timed() -> float:
        rollouts = FakeRollouts()
        await Loop(
            _config(1, steps=3),
            rollouts=rollouts,
            policy=FakePolicy(rollouts),
            course=Course(task_at=_task, measure=measure),
        ).run(on_step)
        return asyncio.get_running_loop().time()

    async def on_step(step: Step) -> None:
        assert "critic/agreement" not in step.metrics

    assert simulate(timed()) < 5.0, "nor the end of the run"
    assert started == [0], "one at a time"


def test_a_measurement_shorter_than_a_step_is_made_at_every_step(simulate) -> None:
    async def measure(step: int) -> dict[str, float]:
        await asyncio.sleep(0.5)
        return {"critic/agreement": float(step)}

    run = _run(simulate, _config(1), course=Course(task_at=_task, measure=measure))
    found = [step.metrics.get("critic/agreement") for step in run.steps]
    assert found == [None, 0.0, 1.0, 2.0, 3.0]


def test_a_synchronous_run_waits_for_its_measurements(simulate) -> None:
    async def measure(step: int) -> dict[str, float]:
        await asyncio.sleep(0.5)
        return {"critic/agreement": float(step)}

    run = _run(simulate, _config(0, steps=3), course=Course(task_at=_task, measure=measure))
    assert [step.metrics["critic/agreement"] for step in run.steps] == [0.0, 1.0, 2.0]


def test_a_failed_measurement_stops_the_run(simulate) -> None:
    async def measure(step: int) -> dict[str, float]:
        raise OSError("the engine is gone")

    with pytest.raises(OSError, match="the engine is gone"):
        _run(simulate, _config(1), course=Course(task_at=_task, measure=measure))
