"""The loop with fake engines and a fake learner: order, staleness, overlap, errors."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rewards.comparison import CriticReport
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch
from rl.config import ObjectiveConfig, RolloutConfig, TrainConfig
from rl.loop import Course, Loop, Step
from rollout.episode import Completion, Episode, Group, StopReason


def _task(position: int) -> Task:
    return Task(
        id=f"t/{position}",
        kind=TaskKind.math,
        messages=(Message(role="user", content="?"),),
        reference="1",
        token_budget=4,
    )


class FakeRollouts:
    """Answers with the version it serves; later positions of a step answer first."""

    def __init__(self) -> None:
        self.version = 0
        self.started: list[tuple[int, int]] = []  # (position, version served)

    async def sample(self, task: Task, *, samples: int, temperature: float) -> Group:
        position = int(task.id.removeprefix("t/"))
        version = self.version
        self.started.append((position, version))
        await asyncio.sleep(0.001 * (4 - position % 4))
        episode = Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[position + 10],
                logprobs=[-1.0],
                versions=[version],
                stop_reason=StopReason.stop,
                temperature=temperature,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=1, truncated=False
            ),
            score=Score(total=float(position % 2)),
        )
        return Group(task=task, episodes=(episode,) * samples)

    async def busy_seconds(self) -> float:
        return 0.0


class FakePolicy:
    """Remembers what it was trained on."""

    def __init__(self, rollouts: FakeRollouts) -> None:
        self.rollouts = rollouts
        self.trained: list[list[int]] = []
        self.versions: list[set[int]] = []
        self.fail_at: int | None = None

    async def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        if len(self.trained) == self.fail_at:
            raise FloatingPointError("log-probs are not finite")
        await asyncio.sleep(0.01)
        self.trained.append([i for b in minibatches for i in b.ids[b.loss_mask].tolist()])
        self.versions.append({v for b in minibatches for v in b.versions[b.loss_mask].tolist()})
        return {"objective/loss": 0.0}

    async def publish(self, version: int) -> dict[str, float]:
        self.rollouts.version = version
        return {"time/sync": 0.0}


def _run(
    max_staleness: int, start: int = 0, fail_at: int | None = None
) -> tuple[FakePolicy, list[Step]]:
    config = TrainConfig(
        steps=5,
        rollout=RolloutConfig(groups_per_step=4, samples_per_group=2, max_staleness=max_staleness),
        objective=ObjectiveConfig(minibatches=2),
    )
    rollouts = FakeRollouts()
    rollouts.version = start
    policy = FakePolicy(rollouts)
    policy.fail_at = fail_at
    steps: list[Step] = []

    async def on_step(step: Step) -> None:
        steps.append(step)

    loop = Loop(config, rollouts=rollouts, policy=policy, course=Course(task_at=_task), start=start)
    asyncio.run(asyncio.wait_for(loop.run(on_step), timeout=30))
    return policy, steps


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_each_task_is_trained_once_in_order_within_the_bound(max_staleness: int) -> None:
    policy, steps = _run(max_staleness)
    assert policy.trained == [
        [10 + p for p in range(4 * s, 4 * s + 4) for _ in range(2)] for s in range(5)
    ]
    for step, versions in enumerate(policy.versions):
        assert min(versions) >= step - max_staleness
    assert [s.number for s in steps] == [1, 2, 3, 4, 5]
    assert steps[-1].metrics["staleness/max"] == float(max_staleness)


def test_on_policy_mode_trains_only_on_the_current_version() -> None:
    policy, _ = _run(0)
    assert policy.versions == [{0}, {1}, {2}, {3}, {4}]


def test_a_resumed_loop_goes_on_at_its_position() -> None:
    policy, steps = _run(1, start=3)
    assert policy.trained[0][0] == 10 + 12
    assert [s.number for s in steps] == [4, 5]


def test_groups_are_shaped_for_the_step_that_trains_on_them() -> None:
    rollouts, steps = FakeRollouts(), []

    def shape(step: int, group: Group) -> Group:
        score = Score(total=10.0 * step)
        return replace(group, episodes=tuple(replace(e, score=score) for e in group.episodes))

    async def on_step(step: Step) -> None:
        steps.append(step)

    config = TrainConfig(
        steps=3,
        rollout=RolloutConfig(groups_per_step=4, samples_per_group=2),
        objective=ObjectiveConfig(minibatches=2),
    )
    loop = Loop(
        config,
        rollouts=rollouts,
        policy=FakePolicy(rollouts),
        course=Course(task_at=_task, shape=shape),
    )
    asyncio.run(asyncio.wait_for(loop.run(on_step), timeout=30))
    assert [step.metrics["reward/mean"] for step in steps] == [0.0, 10.0, 20.0]


def test_the_first_error_of_a_part_ends_the_loop_as_it_is() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        _run(1, fail_at=2)


def _course_run(course: Course, max_staleness: int = 1) -> tuple[FakePolicy, list[Step]]:
    """Three steps of four groups."""
    config = TrainConfig(
        steps=3,
        rollout=RolloutConfig(groups_per_step=4, samples_per_group=2, max_staleness=max_staleness),
        objective=ObjectiveConfig(minibatches=2),
    )
    rollouts = FakeRollouts()
    policy = FakePolicy(rollouts)
    steps: list[Step] = []

    async def on_step(step: Step) -> None:
        steps.append(step)

    loop = Loop(config, rollouts=rollouts, policy=policy, course=course)
    asyncio.run(asyncio.wait_for(loop.run(on_step), timeout=30))
    return policy, steps


def test_positions_that_are_passed_over_leave_smaller_steps() -> None:
    policy, steps = _course_run(
        Course(task_at=lambda at: None if at in (1, 4, 5, 6, 7) else _task(at))
    )
    assert [len(step.groups) for step in steps] == [3, 0, 4]
    assert [sorted(set(ids)) for ids in policy.trained] == [[10, 12, 13], [18, 19, 20, 21]]
    assert [step.number for step in steps] == [1, 2, 3]
    assert "reward/mean" not in steps[1].metrics


def test_groups_that_could_not_be_ranked_are_not_trained_on() -> None:
    def shape(step: int, group: Group) -> Group:
        if group.task.id != "t/2":
            return group
        return replace(group, skipped="no verdict", critique=CriticReport(unreadable=2))

    policy, steps = _course_run(Course(task_at=_task, shape=shape))
    assert sorted(set(policy.trained[0])) == [10, 11, 13]
    assert len(steps[0].groups) == 4, "its samples are still kept"
    assert steps[0].metrics["reward/mean"] == pytest.approx(2 / 3)
    assert steps[0].metrics["critic/skipped_groups"] == 1.0


def test_a_slow_measurement_never_delays_the_learner() -> None:
    started: list[int] = []

    async def measure(step: int) -> dict[str, float]:
        started.append(step)
        await asyncio.sleep(0.5)
        return {"critic/agreement": float(step)}

    _, steps = _course_run(Course(task_at=_task, measure=measure))
    assert started == [0], "one at a time"
    assert not any("critic/agreement" in step.metrics for step in steps)


def test_a_synchronous_run_waits_for_its_measurements() -> None:
    async def measure(step: int) -> dict[str, float]:
        await asyncio.sleep(0.01)
        return {"critic/agreement": float(step)}

    _, steps = _course_run(Course(task_at=_task, measure=measure), max_staleness=0)
    assert [step.metrics["critic/agreement"] for step in steps] == [0.0, 1.0, 2.0]


def test_a_failed_measurement_stops_the_run() -> None:
    async def measure(step: int) -> dict[str, float]:
        raise OSError("the engine is gone")

    with pytest.raises(OSError, match="the engine is gone"):
        _course_run(Course(task_at=_task, measure=measure))
