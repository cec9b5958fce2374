import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.calibration import (
    MOST_WAITING,
    PAIRS_PER_GROUP,
    DrawnPair,
    PairPool,
    Verified,
    VerifiedPair,
    distance,
    held_out,
)
from rewards.critic_config import CalibrationConfig
from rewards.task import Message, Task, TaskKind

ALL_TRAIN = CalibrationConfig(held_out_percent=0, least_agreement=0.0)


def ask(text: str, kind: TaskKind = TaskKind.math, family: str = "sums", id: str = "t") -> Task:
    messages = (Message(role="user", content=text),)
    return Task(id=id, kind=kind, messages=messages, reference="", token_budget=9, tags=(family,))


def answer(text: str, tokens: int, reward: float) -> Verified:
    return Verified(response=text, tokens=tokens, reward=reward)


def couple(right: int, wrong: int) -> list[Verified]:
    return [answer("right", right, 1.0), answer("wrong", wrong, 0.0)]


def random_group(random: Random) -> list[Verified]:
    return [
        answer(f"{random.random()}", random.randint(1, 9), float(random.randint(0, 1)))
        for _ in range(6)
    ]


def drain(pool: PairPool, step: int) -> list[DrawnPair]:
    drawn = []
    while (each := pool.draw(step)) is not None:
        drawn.append(each)
    return drawn


def pair_of(right: int, wrong: int, family: str = "sums") -> VerifiedPair:
    return VerifiedPair(
        task_id="t",
        family=family,
        prompt=(),
        right="right",
        wrong="wrong",
        right_tokens=right,
        wrong_tokens=wrong,
        step=0,
    )


# What becomes a pair


def test_a_pair_says_where_it_is_from() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    assert pool.add(3, ask("1+1?", id="sums/7"), [answer("3", 4, 0.0), answer("2", 4, 1.0)]) == 1
    drawn = pool.draw(3)
    assert drawn is not None
    assert drawn.pair == VerifiedPair(
        task_id="sums/7",
        family="sums",
        prompt=(Message(role="user", content="1+1?"),),
        right="2",
        wrong="3",
        right_tokens=4,
        wrong_tokens=4,
        step=3,
    )
    assert pool.draw(3) is None  # each once


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [answer("2", 1, 1.0)],
        [answer("2", 1, 1.0), answer("two", 1, 1.0)],
        [answer("3", 1, 0.0), answer("4", 1, 0.0)],
        [answer("3", 1, 0.1 + 0.2), answer("4", 1, 0.3)],
        [answer("2", 1, 1.0), answer("2", 1, 0.0)],
        [answer("2", 1, 1.0), answer(" 2\n", 2, 0.0)],
        [answer("2", 1, math.nan), answer("3", 1, 0.0)],
    ],
    ids=["none", "one", "all right", "all wrong", "rounding", "one text", "space", "nan"],
)
def test_no_pair_without_a_difference(answers: list[Verified]) -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    assert pool.add(0, ask("q"), answers) == 0
    assert pool.draw(0) is None


def test_a_text_that_was_rewarded_in_two_ways_is_left_out() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    group = [answer("2", 1, 1.0), answer("2", 1, 0.0), answer("3", 1, 0.0), answer("4", 1, 1.0)]
    assert pool.add(0, ask("q"), group) == 1
    assert [(each.pair.right, each.pair.wrong) for each in drain(pool, 0)] == [("4", "3")]


@pytest.mark.parametrize("kind", list(TaskKind))
def test_only_verified_kinds_give_pairs(kind: TaskKind) -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    verified = kind in (TaskKind.math, TaskKind.code, TaskKind.instructions)
    assert pool.add(0, ask("q", kind), couple(1, 1)) == int(verified)


def test_a_large_group_gives_few_pairs_that_balance() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    group = [answer(f"{i}", 5 + i, float(i % 2)) for i in range(200)]
    assert pool.add(0, ask("q"), group) == PAIRS_PER_GROUP
    assert sorted(each.pair.longer for each in drain(pool, 0)) in ([-1, 1], [0, 0])


# Held-out questions


def test_the_side_of_a_question_is_the_same_everywhere() -> None:
    sides = [held_out(ask(f"question {i}"), 50, seed=1) for i in range(12)]
    assert [i for i in range(12) if sides[i]] == [1, 2, 4, 5, 7]
    assert held_out(ask("question 0", id="other", family="x"), 50, 1) == sides[0]


def test_the_held_out_share_is_the_one_asked_for() -> None:
    asked = [ask(f"question {i}") for i in range(5_000)]
    assert abs(sum(held_out(each, 20, seed=0) for each in asked) / 5_000 - 0.2) < 0.02
    assert not any(held_out(each, 0, seed=0) for each in asked)
    moved = sum(held_out(each, 20, seed=0) != held_out(each, 20, seed=1) for each in asked)
    assert abs(moved / 5_000 - 0.32) < 0.03  # 2 * 0.2 * 0.8: another seed, another choice


def test_held_out_questions_only_measure() -> None:
    config = CalibrationConfig(held_out_percent=50)
    pool = PairPool(config, seed=4)
    for i in range(40):
        pool.add(0, ask(f"question {i}"), couple(3 + i % 2, 4 - i % 2))
    trained = {each.pair.prompt[0].content for each in drain(pool, 0)}
    measured = {pair.prompt[0].content for pair in pool.measure(0, 100)}
    expected = {f"question {i}" for i in range(40) if held_out(ask(f"question {i}"), 50, 4)}
    assert measured and measured <= expected and trained and not trained & expected


def test_measured_pairs_are_newest_balanced_and_given_once() -> None:
    config = CalibrationConfig(held_out_percent=99, max_age=5)
    pool = PairPool(config, seed=0)
    asked = [ask(f"{i}") for i in range(200) if held_out(ask(f"{i}"), 99, 0)]
    for i, task in enumerate(asked[:60]):
        right, wrong = (9, 4) if i % 3 else (4, 9)
        pool.add(i // 20, task, couple(right, wrong))
    first = pool.measure(2, 4)
    assert [pair.step for pair in first] == [2, 2, 2, 2]
    assert sorted(pair.longer for pair in first) == [-1, -1, 1, 1]
    rest = pool.measure(2, 100)
    assert len(first + rest) == len({pair.prompt for pair in first + rest}) == 40
    assert sum(pair.longer for pair in rest) == 0
    assert pool.measure(2, 4) == []


def test_a_rule_on_lengths_cannot_be_measured_as_agreement() -> None:
    pool = PairPool(CalibrationConfig(held_out_percent=99), seed=0)
    asked = [ask(f"{i}") for i in range(50) if held_out(ask(f"{i}"), 99, 0)]
    for task in asked[:10]:
        pool.add(0, task, couple(9, 4))
    assert pool.measure(0, 6) == []
    for task in asked[10:20]:
        pool.add(0, task, couple(4, 9))
    assert sorted(pair.longer for pair in pool.measure(0, 6)) == [-1, -1, -1, 1, 1, 1]


# Balance


def test_one_class_alone_is_not_drawn() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    for i in range(10):
        pool.add(0, ask(f"{i}"), couple(9, 4))
    assert pool.draw(0) is None
    pool.add(0, ask("equal"), couple(5, 5))
    drawn = pool.draw(0)
    assert drawn is not None and drawn.pair.longer == 0
    assert pool.draw(0) is None
    pool.add(0, ask("like"), couple(4, 9))
    assert sorted(each.pair.longer for each in drain(pool, 0)) == [-1, 1]


def test_a_couple_has_like_lengths_and_one_family() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    pool.add(0, ask("long"), couple(90, 40))
    pool.add(0, ask("short"), couple(4, 9))
    pool.add(0, ask("other", family="code"), couple(40, 90))
    assert pool.draw(0) is None
    pool.add(0, ask("like"), couple(41, 91))
    assert {each.pair.prompt[0].content for each in drain(pool, 0)} == {"long", "like"}


def test_distance_is_between_lengths_whichever_is_right() -> None:
    assert distance(pair_of(9, 4), pair_of(4, 9)) == 0.0
    assert distance(pair_of(9, 4), pair_of(4, 19)) == pytest.approx(math.log(2))
    assert distance(pair_of(9, 4), pair_of(9, 9)) == pytest.approx(math.log(2))
    assert distance(pair_of(9, 4), pair_of(9, 4, "code")) == math.inf


def test_a_partner_that_grew_too_old_is_replaced() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    pool.add(0, ask("a"), couple(9, 4))
    pool.add(0, ask("b"), couple(4, 9))
    first = pool.draw(1)
    assert first is not None
    for i in range(3):
        pool.add(2, ask(f"c{i}"), couple(30 - 10 * i, 4))
        pool.add(2, ask(f"d{i}"), couple(4, 30 - 10 * i))
    second = pool.draw(3)
    assert second is not None and second.pair.longer == -first.pair.longer
    assert second.pair.step == 2 and second.pair.lengths == [4, 10]  # the most like it


def test_the_newest_are_drawn_first_and_old_ones_never() -> None:
    pool = PairPool(CalibrationConfig(held_out_percent=0, least_agreement=0, max_age=2), seed=0)
    for step in (0, 1, 2):
        pool.add(step, ask(f"a{step}"), couple(9, 4))
        pool.add(step, ask(f"b{step}"), couple(4, 9))
    assert {each.pair.step for each in (pool.draw(3), pool.draw(3)) if each} == {2}
    assert [each.pair.step for each in drain(pool, 3)] == [1, 1]
    assert pool.waiting == 0
    for step in (3, 4, 5):
        pool.add(step, ask(f"equal {step}"), couple(6, 6))
    assert [each.pair.step for each in drain(pool, 6)] == [5, 4]


def test_every_prefix_of_the_draws_is_balanced() -> None:
    pool, random, drawn = PairPool(ALL_TRAIN, seed=2), Random(2), 0
    counts = {(longer, first): 0 for longer in (-1, 0, 1) for first in (False, True)}
    for step in range(60):
        for i in range(8):
            pool.add(step, ask(f"{step} {i}"), random_group(random))
        for each in filter(None, (pool.draw(step) for _ in range(5))):
            counts[each.pair.longer, each.right_first] += 1
            check_balance(counts)
            drawn += 1
    assert drawn > 200 and min(counts.values()) > 10


Groups = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), max_size=6
)
Acts = st.lists(
    st.one_of(
        st.tuples(st.just("add"), Groups, st.sampled_from(["sums", "code"])),
        st.tuples(st.just("draw"), st.integers(1, 4)),
        st.tuples(st.just("step"), st.integers(0, 2)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(acts=Acts, max_age=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_bounds_hold_whatever_is_added_and_drawn(
    acts: list[tuple[object, ...]], max_age: int, seed: int
) -> None:
    config = CalibrationConfig(held_out_percent=30, max_age=max_age)
    pool, step = PairPool(config, seed), 0
    rewards: dict[str, dict[str, list[float]]] = {}
    counts = {(longer, first): 0 for longer in (-1, 0, 1) for first in (False, True)}
    for number, act in enumerate(acts):
        match act:
            case ("step", int(more)):
                step += more
            case ("add", list(group), str(family)):
                question = f"{number}"
                made = [answer(f"{text}", tokens, reward) for tokens, reward, text in group]
                rewards[question] = {each.response: [] for each in made}
                for each in made:
                    rewards[question][each.response].append(each.reward)
                pool.add(step, ask(question, family=family), made)
            case ("draw", int(times)):
                for drawn in filter(None, (pool.draw(step) for _ in range(times))):
                    counts[drawn.pair.longer, drawn.right_first] += 1
                    check_drawn(drawn.pair, rewards, step, max_age, seed)
                    check_balance(counts)


def check_drawn(
    pair: VerifiedPair,
    rewards: dict[str, dict[str, list[float]]],
    step: int,
    max_age: int,
    seed: int,
) -> None:
    question = pair.prompt[0].content
    given = rewards[question]
    assert pair.right != pair.wrong
    assert min(given[pair.right]) > max(given[pair.wrong])
    assert 0 <= step - pair.step <= max_age
    assert not held_out(ask(question), 30, seed)


def check_balance(counts: dict[tuple[int, bool], int]) -> None:
    total = {longer: counts[longer, False] + counts[longer, True] for longer in (-1, 0, 1)}
    assert abs(total[1] - total[-1]) <= 1
    assert all(abs(counts[each, False] - counts[each, True]) <= 1 for each in (-1, 0, 1))


def test_the_same_seed_draws_the_same() -> None:
    def play(seed: int) -> list[tuple[str, str, bool]]:
        pool, random = PairPool(ALL_TRAIN, seed), Random(5)
        drawn = []
        for step in range(10):
            for i in range(20):
                pool.add(step, ask(f"{step} {i}"), random_group(random))
            drawn += [pool.draw(step) for _ in range(5)]
        return [(each.pair.right, each.pair.wrong, each.right_first) for each in drawn if each]

    assert play(1) == play(1) and len(play(1)) == 50
    assert play(1) != play(2)


def test_memory_is_bounded() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    most = 0
    for i in range(100_000):
        pool.add(0, ask(f"{i % 1000}"), couple(9, 4 + i % 11))
        most = max(most, pool.waiting)
    assert most == 3 * MOST_WAITING


def test_the_oldest_go_first_when_full() -> None:
    pool = PairPool(ALL_TRAIN, seed=0)
    for i in range(2 * MOST_WAITING):
        pool.add(1 if i < MOST_WAITING else 0, ask(f"{i}"), couple(5, 5))
    assert {each.pair.step for each in drain(pool, 1)} == {1}
