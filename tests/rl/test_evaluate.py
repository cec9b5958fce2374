import math
from collections.abc import Mapping

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.evaluate import pass_at_k, pass_rate, passed, rates
from rollout.episode import Completion, Episode, Group, StopReason


def _group(kind: TaskKind, family: str, *scores: Score) -> Group:
    task = Task(
        id=f"{family}/0",
        kind=kind,
        messages=(Message(role="user", content="?"),),
        reference="",
        token_budget=8,
        tags=(family,),
    )
    completion = Completion(
        prompt_ids=[1],
        token_ids=[2],
        logprobs=[-1.0],
        versions=[0],
        stop_reason=StopReason.stop,
        temperature=1.0,
    )
    transcript = Transcript(messages=(), response="x", response_tokens=1, truncated=False)
    episodes = (Episode(completion=completion, transcript=transcript, score=s) for s in scores)
    return Group(task=task, episodes=tuple(episodes))


def _score(total: float, parts: Mapping[str, float], **watched: float) -> Score:
    return Score(total=total, parts=parts, watched=watched)


def test_wilson_interval_of_known_numbers() -> None:
    rate = pass_rate([1.0] * 10 + [0.0] * 10)
    assert math.isclose(rate.value, 0.5)
    # Wilson, n = 20, p = 0.5: (0.2993, 0.7007), as statsmodels computes it.
    assert math.isclose(rate.low, 0.2993, abs_tol=1e-4)
    assert math.isclose(rate.high, 0.7007, abs_tol=1e-4)


def test_interval_stays_inside_zero_and_one() -> None:
    assert pass_rate([0.0] * 5).low == 0.0
    assert pass_rate([1.0] * 5).high <= 1.0


def test_pass_at_k_equals_enumeration() -> None:
    # 4 samples, 1 right: of the 6 pairs, 3 hold the right one.
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 4, 1) == 1.0


def test_what_the_critic_ranks_is_watched_and_never_passed() -> None:
    right, wrong = _score(1.0, {"math": 1.0}), _score(0.0, {"math": 0.0})
    told = _group(TaskKind.open, "told", _score(0.0, {}, truth=1.0), _score(0.0, {}, truth=0.5))
    unknown = _group(TaskKind.open, "unknown", _score(0.0, {}))
    found = rates([_group(TaskKind.math, "sums", right, wrong), told, unknown], ranked=True)
    assert {name: (rate.value, rate.tasks) for name, rate in found.items()} == {
        "all": (0.5, 1),
        "sums": (0.5, 1),
        "told": (0.75, 1),
    }
    assert not passed(_group(TaskKind.open, "t", _score(1.0, {"rubric": 1.0})).episodes[0])


def test_only_full_marks_pass() -> None:
    group = _group(TaskKind.code, "programs", _score(0.75, {}), _score(1.0, {}))
    assert [passed(episode) for episode in group.episodes] == [False, True]


def test_open_ended_tasks_with_a_reward_of_their_own_can_be_passed() -> None:
    scores = _score(1.0, {"mine": 1.0}), _score(0.2, {"mine": 0.2})
    found = rates([_group(TaskKind.open, "essays", *scores)], ranked=False)
    assert {name: rate.value for name, rate in found.items()} == {"all": 0.5, "essays": 0.5}


def test_without_a_task_that_can_be_passed_nothing_is_known() -> None:
    told = _group(TaskKind.open, "told", _score(0.0, {}, truth=0.5))
    rate = rates([told], ranked=True)["all"]
    assert (rate.low, rate.high, rate.tasks, str(rate)) == (0.0, 1.0, 0, "no tasks")
