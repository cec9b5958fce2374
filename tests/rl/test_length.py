import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from rewards.config import LengthConfig, LengthKind, RewardsConfig
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.config import TrainConfig
from rl.length import LengthRecorder, LengthShaping, length_shaping
from rollout.config import FamilyConfig, TasksConfig
from rollout.episode import Completion, Episode, Group, StopReason

TASK = Task(
    id="sums/train/0",
    kind=TaskKind.math,
    messages=(Message(role="user", content="?"),),
    reference="1",
    token_budget=100,
    tags=("sums",),
)


def _group(*episodes: tuple[int, float]) -> Group:
    """Episodes of (tokens, reward); 100 tokens and more were cut."""
    return Group(task=TASK, episodes=tuple(_episode(*each) for each in episodes))


def _episode(tokens: int, reward: float) -> Episode:
    cut = tokens >= TASK.token_budget
    return Episode(
        completion=Completion(
            prompt_ids=[1],
            token_ids=[2] * tokens,
            logprobs=[-1.0] * tokens,
            versions=[0] * tokens,
            stop_reason=StopReason.length if cut else StopReason.stop,
            temperature=1.0,
        ),
        transcript=Transcript(messages=(), response="", response_tokens=tokens, truncated=cut),
        score=Score(total=reward, parts={"math": reward}, why="'1', gold '1'"),
    )


def _totals(group: Group) -> list[float]:
    for episode in group.episodes:
        assert sum(episode.score.parts.values()) == pytest.approx(episode.score.total)
    return [episode.score.total for episode in group.episodes]


def _shape(config: LengthConfig, step: int, *episodes: tuple[int, float]) -> list[float]:
    return _totals(LengthShaping(config, {"sums": 30}).shape(step, _group(*episodes)))


def test_off_leaves_the_group_as_it_is() -> None:
    group = _group((10, 1.0), (90, 0.0))
    assert LengthShaping(LengthConfig(), {}).shape(0, group) is group


def test_k1p5_starts_late_and_names_its_part() -> None:
    config = LengthConfig(kind=LengthKind.k1p5, weight=0.5, from_step=3)
    episodes = [(10, 1.0), (50, 1.0), (90, 1.0), (90, 0.0)]
    assert _shape(config, 2, *episodes) == [1.0, 1.0, 1.0, 0.0]
    assert _shape(config, 3, *episodes) == [1.25, 1.0, 0.75, -0.25]
    shaped = LengthShaping(config, {}).shape(3, _group(*episodes)).episodes
    assert shaped[0].score.parts == {"math": 1.0, "length": 0.25}
    assert shaped[0].score.why == "length +0.25 (10 tokens); '1', gold '1'"
    assert shaped[1].score.parts == {"math": 1.0}


def test_soft_overlong_spares_what_was_cut_already() -> None:
    config = LengthConfig(kind=LengthKind.soft_overlong, soft_share=0.2)
    assert _shape(config, 0, (80, 1.0), (90, 1.0), (95, 0.0), (100, -0.5)) == [1, 0.5, -0.75, -0.5]


def test_toggle_limits_known_families_every_other_phase() -> None:
    config = LengthConfig(kind=LengthKind.toggle, phase_steps=2, accuracy=0.5)
    episodes = [(30, 1.0), (31, 1.0), (90, 0.0), (100, -0.5)]
    assert _shape(config, 1, *episodes) == [1.0, 0.0, 0.0, -0.5]
    assert _shape(config, 2, *episodes) == [1.0, 1.0, 0.0, -0.5]
    assert _shape(config, 4, (30, 1.0), (31, 0.0), (90, 0.0)) == [1.0, 0.0, 0.0]
    unknown = LengthShaping(config, {"products": 1}).shape(1, _group(*episodes))
    assert _totals(unknown) == [1.0, 1.0, 0.0, -0.5]


def _tasks(trained: str, tested: str = "") -> TasksConfig:
    def families(names: str) -> list[FamilyConfig]:
        return [FamilyConfig(name=name) for name in names.split()]

    return TasksConfig(families=families(trained), test_families=families(tested))


def test_toggle_needs_a_family_that_is_trained_on_and_measured() -> None:
    toggle = RewardsConfig(length=LengthConfig(kind=LengthKind.toggle))
    for tasks in (_tasks("sums"), _tasks("sums programs", "words sums")):
        TrainConfig(rewards=toggle, tasks=tasks)
    apart = _tasks("sums programs", "words")
    TrainConfig(tasks=apart)
    with pytest.raises(
        ValueError, match=r"measures words \(tasks\.test_families\) and is to limit"
    ):
        TrainConfig(rewards=toggle, tasks=apart)


def test_families_that_toggle_does_not_limit_are_told_of(tmp_path: Path) -> None:
    config, path = LengthConfig(kind=LengthKind.toggle), tmp_path / "budgets.json"
    path.write_text('{"sums": 10}')
    said: list[str] = []
    length_shaping(config, path, _tasks("sums programs words"), said.append)
    (line,) = said
    assert "does not limit programs, words: no held-out task" in line
    length_shaping(config, path, _tasks("sums"), said.append)
    assert len(said) == 1


class Canned:
    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        return self._groups.pop(0)


def test_budgets_are_of_right_answers_by_family() -> None:
    groups = [_group((10, 1.0), (99, 0.0)), _group((20, 1.0), (40, 1.0))]
    recorder = LengthRecorder(Canned(groups))
    for group in groups:
        sampled = asyncio.run(recorder.sample(TASK, samples=2, temperature=1.0))
        assert sampled is group
    assert recorder.budgets(50.0) == {"sums": 20}
    assert recorder.budgets(100.0) == {"sums": 40}
    assert LengthRecorder(Canned([])).budgets(50.0) == {}
