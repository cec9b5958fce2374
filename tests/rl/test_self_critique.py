"""The driver's part of self-critique, with engines that answer as they are told."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.calibration import held_out
from rewards.comparison import Answer, Pair, PairOutcome
from rewards.config import RewardsConfig
from rewards.critic import Critic
from rewards.critic_config import CalibrationConfig, CriticConfig
from rewards.rubric import Rubric
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.critic_baseline import Baseline
from rl.errors import BadInput
from rl.self_critique import CritiqueState, SelfCritique, balanced_pairs, verified
from rollout.episode import Completion, Episode, Group, StopReason

TRUE = Rubric(name="true", text="more is true")
Prefers = Callable[[str, str], str]  # the answers shown as A and B -> "A", "B" or "tie"


def _task(number: int, kind: TaskKind = TaskKind.math) -> Task:
    return Task(
        id=f"{kind}/{number}",
        kind=kind,
        messages=(Message(role="user", content=f"Question {number}?"),),
        reference="1",
        token_budget=40,
        tags=("family",),
    )


def _group(task: Task, *answers: tuple[str, float], stop: StopReason = StopReason.stop) -> Group:
    """Answers with their rewards; a token a letter, and what is watched is the reward."""
    episodes = tuple(
        Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[1] * len(text),
                logprobs=[0.0] * len(text),
                versions=[0] * len(text),
                stop_reason=stop,
                temperature=1.0,
            ),
            transcript=Transcript(
                messages=task.messages, response=text, response_tokens=len(text), truncated=False
            ),
            score=Score(total=reward, watched={"truth": reward}),
        )
        for text, reward in answers
    )
    return Group(task=task, episodes=episodes)


class Engines:
    """Answers open-ended tasks with `answer`; compares with the real critic over `prefers`."""

    def __init__(self, prefers: Prefers, answer: tuple[str, float] = ("now", 1.0)) -> None:
        self._prefers = prefers
        self._answer = answer
        self._critic = Critic(CriticConfig(), [TRUE], self._ask)
        self.compared: list[Pair] = []

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        assert not rank and samples == 1
        return _group(task, self._answer)

    async def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        self.compared += pairs
        return [await self._critic.compare(pair) for pair in pairs]

    async def _ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        text = messages[-1].content
        first = text.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
        second = text.split("<answer_B>\n")[1].split("\n</answer_B>")[0]
        better = self._prefers(first, second)
        verdict = json.dumps({"rubrics": {"true": better}, "better": better})
        return Answer(text=verdict, truncated=False, tokens=5, prompt_tokens=20)


def _honest(first: str, second: str) -> str:
    return "A" if "right" in first else "B"


def _wrong(first: str, second: str) -> str:
    return "B" if "right" in first else "A"


def _mixed_groups(count: int) -> list[Group]:
    """Right answers, by turns longer and shorter than the wrong ones."""
    groups = []
    for number in range(count):
        padding = "." * 6
        right = "right" + (padding if number % 2 else "")
        wrong = "wrong" + ("" if number % 2 else padding)
        groups.append(_group(_task(number), (right, 1.0), (wrong, 0.0)))
    return groups


def _critique(
    config: CalibrationConfig,
    said: list[str] | None = None,
    state: CritiqueState | None = None,
    critic: CriticConfig | None = None,
    mixture: dict[str, dict[str, float]] | None = None,
    fits: Callable[[Task], bool] = lambda task: True,
) -> SelfCritique:
    critic = critic or CriticConfig(token_budget=77)
    return SelfCritique(
        RewardsConfig(critic=critic, calibration=config, mixture=dict(mixture or {})),
        [TRUE],
        seed=0,
        fits=fits,
        say=(said if said is not None else []).append,
        state=state or CritiqueState(),
    )


def test_a_share_of_the_prompts_become_critic_tasks_once_there_are_pairs() -> None:
    critique = _critique(CalibrationConfig(share=0.25, held_out_percent=20))
    asked = [critique.task(position, 0, _task(position)) for position in range(8)]
    assert {task.kind for task in asked if task} == {TaskKind.math}
    for group in _mixed_groups(60):
        critique.observe(0, group)
    asked = [critique.task(position, 1, _task(position)) for position in range(40)]
    made = [task for task in asked if task and task.kind is TaskKind.critic]
    assert len(made) == 10
    assert len({task.id for task in made}) == 10
    assert {task.token_budget for task in made} == {77}
    sides = [json.loads(task.reference)["right"] for task in made]
    assert abs(sides.count("A") - sides.count("B")) <= 2
    assert critique.describe().startswith("critic tasks: 10 of 12 that were due had a pair; 0 open")
    tested = {_task(n).messages for n in range(60) if held_out(_task(n), 20, 0)}
    assert tested
    for task in made:
        assert not any(question[0].content in task.messages[-1].content for question in tested)


def test_an_endpoint_is_not_trained() -> None:
    critic = CriticConfig(endpoint="http://localhost:1/v1", model="m")
    critique = _critique(CalibrationConfig(share=0.5), critic=critic)
    for group in _mixed_groups(20):
        critique.observe(0, group)
    asked = [critique.task(position, 0, _task(position)) for position in range(10)]
    assert {task.kind for task in asked if task} == {TaskKind.math}


def test_pairs_that_do_not_fit_the_engine_are_left_out_and_told_of_once() -> None:
    said: list[str] = []
    config = CalibrationConfig(share=0.5, held_out_percent=0, pairs_per_step=0, least_agreement=0.0)
    critique = _critique(config, said, fits=lambda task: "Question 3?" in task.messages[-1].content)
    for group in _mixed_groups(8):
        critique.observe(0, group)
    asked = [critique.task(position, 0, _task(position)) for position in range(12)]
    made = [task for task in asked if task and task.kind is TaskKind.critic]
    assert made and all("Question 3?" in task.messages[-1].content for task in made)
    assert all(asked), "the other positions keep their own tasks"
    (line,) = said
    assert "step 1: two answers to math/" in line and "token_budget=77 do not fit" in line


def test_open_ended_tasks_that_the_critic_does_not_rank_are_never_frozen() -> None:
    open_task = _task(0, TaskKind.open)
    critique = _critique(CalibrationConfig(), mixture={"open": {"explanations": 1.0}})
    assert critique.task(0, 0, open_task) is open_task


def test_style_does_not_say_which_answer_is_right() -> None:
    (group,) = _mixed_groups(1)
    scores = ({"math": 0.5, "style": 0.4}, {"math": 0.5, "style": 0.0})
    episodes = tuple(
        replace(e, score=Score(total=sum(parts.values()), parts=parts))
        for e, parts in zip(group.episodes, scores, strict=True)
    )
    assert [each.reward for each in verified(replace(group, episodes=episodes))] == [0.5, 0.5]
    watched = [
        replace(each, score=Score(total=style, parts={"style": style}, watched={"math": truth}))
        for each, style, truth in zip(group.episodes, (0.0, 1.0), (1.0, 0.0), strict=False)
    ]
    rewards = [each.reward for each in verified(replace(group, episodes=tuple(watched)))]
    assert rewards == [1.0, 0.0], "the verifier says what is right, though it is only watched"


def test_judgements_that_cannot_be_read_are_told_of_at_the_start() -> None:
    said: list[str] = []
    critique = _critique(CalibrationConfig(least_pairs=4, window=8), said)
    asyncio.run(critique.start(Engines(lambda first, second: "neither"), _mixed_groups(10)))
    assert "20 of 20 judgements have no verdict that can be read, such as: " in said[0]
    assert "neither" in said[0] and "rubric rewards are frozen" in said[1]


def test_rubric_rewards_are_frozen_until_the_critic_is_trusted_and_again_when_it_is_not() -> None:
    said: list[str] = []
    config = CalibrationConfig(least_pairs=4, window=8, held_out_percent=99, pairs_per_step=8)
    critique = _critique(config, said)
    open_task = _task(0, TaskKind.open)
    assert critique.task(0, 0, open_task) is None, "nothing is known of the critic yet"
    assert critique.task(0, 0, _task(0)) is not None, "verifiable tasks do not depend on it"
    groups = _mixed_groups(16)
    baseline = asyncio.run(critique.start(Engines(_honest), groups))
    assert critique.task(0, 0, open_task) is open_task
    assert "rubric rewards count" in said[-1]
    for group in groups:
        critique.observe(0, group)
    metrics = asyncio.run(critique.measure(0, Engines(_wrong), baseline, 1.0))
    assert metrics["critic/agreement"] == 0.0 and metrics["critic/gate_open"] == 0.0
    assert critique.task(0, 1, open_task) is None
    assert "step 1: rubric rewards are frozen" in said[-1]
    for group in groups:
        critique.observe(1, group)
    metrics = asyncio.run(critique.measure(1, Engines(_honest), baseline, 1.0))
    assert metrics["critic/agreement"] == 1.0
    assert critique.task(0, 2, open_task) is open_task
    assert "2 open-ended prompts were passed over" in critique.describe()


def test_a_resumed_run_has_the_same_gate() -> None:
    config = CalibrationConfig(least_pairs=4, window=8)
    critique = _critique(config)
    asyncio.run(critique.start(Engines(_honest), _mixed_groups(16)))
    resumed = _critique(config, state=critique.state)
    open_task = _task(0, TaskKind.open)
    assert resumed.task(0, 0, open_task) is open_task
    assert resumed.state == critique.state


def test_a_judge_that_errs_is_seen_to_drift_from_the_truth() -> None:
    """It prefers today's answers though they are worse: judged 1, true 0."""
    critique = _critique(CalibrationConfig())
    starting = [_group(_task(n, TaskKind.open), ("right", 0.9)) for n in range(3)]
    engines = Engines(lambda first, second: "A" if first == "now" else "B", ("now", 0.1))
    baseline = asyncio.run(critique.start(engines, starting))
    assert [each.response for each in baseline.answers] == ["right"] * 3
    metrics = asyncio.run(critique.measure(0, engines, baseline, 1.0))
    assert metrics["critic/win_rate_start"] == 1.0
    assert metrics["watched/win_rate_start"] == 0.0
    assert metrics["critic/gap"] == 1.0


def test_the_agreement_is_over_todays_pairs_and_the_starting_ones() -> None:
    critique = _critique(CalibrationConfig())
    baseline = asyncio.run(critique.start(Engines(_honest), _mixed_groups(10)))
    rates = asyncio.run(critique.agreement(Engines(_wrong), _mixed_groups(4), baseline))
    assert {name: rate.value for name, rate in rates.items()} == {
        "critic": 0.0,
        "critic/start": 0.0,
    }
    assert rates["critic/start"].tasks == 10 and rates["critic"].tasks == 4
    assert asyncio.run(critique.agreement(Engines(_honest), [], None)) == {}


def test_pairs_are_balanced_and_made_of_whole_answers() -> None:
    lopsided = [
        _group(_task(number), ("right and long", 1.0), ("wrong", 0.0)) for number in range(9)
    ]
    assert balanced_pairs(CalibrationConfig(), lopsided, 0) == ()
    cut = [replace_stop(group) for group in _mixed_groups(10)]
    assert balanced_pairs(CalibrationConfig(), cut, 0) == ()
    assert len(balanced_pairs(CalibrationConfig(), _mixed_groups(10), 0)) == 10


def replace_stop(group: Group) -> Group:
    """The group with every answer cut by its budget."""
    episodes = tuple(
        replace(e, completion=replace(e.completion, stop_reason=StopReason.length))
        for e in group.episodes
    )
    return replace(group, episodes=episodes)


def test_what_is_kept_of_the_start_survives_a_restart(tmp_path: Path) -> None:
    critique = _critique(CalibrationConfig())
    starting = [*_mixed_groups(10), _group(_task(1, TaskKind.open), ("right ü\n", 0.9))]
    baseline = asyncio.run(critique.start(Engines(_honest), starting))
    assert baseline.pairs and baseline.answers
    baseline.write(tmp_path / "baseline.json")
    assert Baseline.read(tmp_path / "baseline.json") == baseline
    (tmp_path / "baseline.json").write_text('{"answers": [')
    with pytest.raises(BadInput, match=r"baseline\.json cannot be read"):
        Baseline.read(tmp_path / "baseline.json")
