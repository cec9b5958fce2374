import asyncio
from collections.abc import Sequence

import pytest

from rewards.config import LengthConfig, LengthKind
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.length import LengthRecorder, LengthShaping
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
