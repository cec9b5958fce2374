"""What a critic earns that looks at lengths and sides alone."""

import functools
from collections.abc import Callable, Sequence
from random import Random

import pytest

from rewards.calibration import DrawnPair, PairPool, Verified, VerifiedPair
from rewards.critic_config import CalibrationConfig
from rewards.task import Message, Task, TaskKind

DRAWS = 2_000
NOISE = 0.02  # couples cancel: less than that of 2,000 tosses
ALL_TRAIN = CalibrationConfig(held_out_percent=0, least_agreement=0.0)
Rule = Callable[[int, int, str], int]  # tokens of A, of B, family -> 1: A, -1: B, 0: a tie


def policy_answers(random: Random, family: str, group: int) -> list[Verified]:
    """Worked answers are longer, and in sums righter, than bare ones; right ones longer again."""
    answers = []
    for i in range(group):
        worked = random.random() < 0.6
        chance = {"sums": (0.25, 0.75), "code": (0.6, 0.3)}[family][worked]
        right = random.random() < chance
        length = random.gauss(60, 12) + 8 * right if worked else random.randint(3, 7)
        text = f"{i} {random.random()}"
        answers.append(Verified(response=text, tokens=max(2, int(length)), reward=float(right)))
    return answers


def question(text: str, family: str) -> Task:
    messages = (Message(role="user", content=text),)
    return Task(
        id=text,
        kind=TaskKind.math,
        messages=messages,
        reference="",
        token_budget=9,
        tags=(family,),
    )


@functools.cache
def drawn_pairs() -> tuple[DrawnPair, ...]:
    pool, random = PairPool(ALL_TRAIN, seed=3), Random(3)
    drawn: list[DrawnPair] = []
    for step in range(1_000):
        for i in range(24):
            family = random.choice(("sums", "sums", "code"))
            pool.add(step, question(f"{step} {i}", family), policy_answers(random, family, 8))
        drawn += filter(None, (pool.draw(step) for _ in range(4)))
    assert len(drawn) >= DRAWS
    return tuple(drawn[:DRAWS])


@functools.cache
def sign_balanced_pairs() -> tuple[DrawnPair, ...]:
    """The reference: random pairs, as often longer as shorter, with no regard to how much."""
    random, wanted = Random(3), 1
    chosen: list[DrawnPair] = []
    while len(chosen) < DRAWS:
        family = random.choice(("sums", "sums", "code"))
        group = policy_answers(random, family, 8)
        right = random.choice([each for each in group if each.reward] or [group[0]])
        wrong = random.choice([each for each in group if not each.reward] or [group[0]])
        pair = VerifiedPair(
            task_id="t",
            family=family,
            prompt=(),
            right=right.response,
            wrong=wrong.response,
            right_tokens=right.tokens,
            wrong_tokens=wrong.tokens,
            step=0,
        )
        if pair.longer == wanted and right.reward > wrong.reward:
            chosen.append(DrawnPair(pair=pair, right_first=random.random() < 0.5))
            wanted = -wanted
    return tuple(chosen)


def earned(rule: Rule, drawn: Sequence[DrawnPair]) -> float:
    total = 0.0
    for each in drawn:
        lengths = (each.pair.right_tokens, each.pair.wrong_tokens)
        a, b = lengths if each.right_first else lengths[::-1]
        says = rule(a, b, each.pair.family)
        total += 0.5 if says == 0 else float((says > 0) == each.right_first)
    return total / len(drawn)


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


def longer_if(test: Callable[[int, int, str], bool]) -> Rule:
    return lambda a, b, family: sign(a - b) * (1 if test(a, b, family) else -1)


def thresholds(tokens: int) -> dict[str, Rule]:
    return {
        f"longer by {tokens}": longer_if(lambda a, b, _: abs(a - b) > tokens),
        f"longest over {tokens}": longer_if(lambda a, b, _: max(a, b) > tokens),
        f"shortest over {tokens}": longer_if(lambda a, b, _: min(a, b) > tokens),
        f"near {tokens}": lambda a, b, _: sign(abs(b - tokens) - abs(a - tokens)),
    }


RULES: dict[str, Rule] = {
    "longer": lambda a, b, _: sign(a - b),
    "shorter": lambda a, b, _: sign(b - a),
    "first": lambda a, b, _: 1,
    "second": lambda a, b, _: -1,
    "first unless much longer": lambda a, b, _: -1 if b - a > 30 else 1,
    "longer in sums": longer_if(lambda a, b, family: family == "sums"),
}
for tokens in (1, 2, 3, 5, 10, 20, 30, 40, 50, 55, 60, 65, 70):
    RULES |= thresholds(tokens)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_on_lengths_or_sides_earns_more_than_half(name: str) -> None:
    assert abs(earned(RULES[name], drawn_pairs()) - 0.5) < NOISE


def test_balancing_the_sign_alone_would_not_do() -> None:
    naive = {name: earned(rule, sign_balanced_pairs()) for name, rule in RULES.items()}
    assert abs(naive["longer"] - 0.5) < 0.001
    assert max(naive.values()) > 0.58
    assert naive["longer in sums"] > 0.58
