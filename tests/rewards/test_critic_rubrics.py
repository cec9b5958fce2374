"""The critic's rubrics: what is mandatory, what a task brings along, and what they decide."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence

import pytest

from rewards.comparison import Answer
from rewards.critic import Critic
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.group_ranking import GroupRanking
from rewards.rubric import Rubric, Rule
from rewards.task import Message, Task, TaskKind

TRUE = Rubric(name="true", text="It is true.", weight=3.0)
SHORT = Rubric(name="short", text="It is short.")
KIND = Rubric(name="kind", text="It is kind.")
POLITE = Rubric(name="polite", text="It is polite.", mandatory=True)
PRAISE = Rubric(name="praise", text="No praise.", mandatory=True, rule=Rule.opening_praise)
Says = Callable[[int, int], str]  # the numbers in both answers -> a judgement


def answers(count: int) -> list[str]:
    return [f"The height in metres is {place}" for place in range(count)]


def rank(
    says: Says,
    responses: Sequence[str],
    rubrics: Sequence[Rubric],
    own: Sequence[Rubric] = (),
    decided_by: DecidedBy = DecidedBy.overall,
) -> GroupRanking:
    async def ask(messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Answer:
        text = messages[1].content
        one, other = (int(re.findall(f"(\\d+)\n</answer_{name}>", text)[0]) for name in "AB")
        return Answer(text=says(one, other), truncated=False, tokens=10, prompt_tokens=100)

    task = Task(
        id="open/train/1",
        kind=TaskKind.open,
        messages=(Message(role="user", content="How high is it?"),),
        reference="",
        token_budget=100,
        rubrics=tuple(own),
    )
    critic = Critic(CriticConfig(decided_by=decided_by), rubrics, ask)
    return asyncio.run(critic.rank(task, responses))


def verdict(word: str, *names: str, **more: object) -> str:
    return json.dumps({"rubrics": dict.fromkeys(names, word), **more, "better": word})


def blames(guilty: int, share: Callable[[int], bool]) -> Says:
    """Prefers the higher number, and names one for being rude in some judgements."""
    turn = 0

    def says(one: int, other: int) -> str:
        nonlocal turn
        broken = {
            name: ["polite"] if shown == guilty and share(turn) else []
            for name, shown in (("A", one), ("B", other))
        }
        turn += guilty in (one, other)
        return verdict("A" if one > other else "B", "true", "polite", violations=broken)

    return says


def test_breaking_what_is_mandatory_caps_the_reward() -> None:
    found = rank(blames(3, lambda turn: turn < 4), answers(4), (TRUE, POLITE))
    assert found.rewards == pytest.approx((0.0, 1 / 3, 2 / 3, 0.0))
    assert found.why[3] == (
        "reward 0: breaks polite by 4 of 6 judgements; won 3 of 3 comparisons; true 3/3, polite 3/3"
    )


def test_half_of_the_judgements_are_not_most() -> None:
    found = rank(blames(3, lambda turn: turn < 3), answers(4), (TRUE, POLITE))
    assert found.rewards[3] == 1.0 and "breaks" not in found.why[3]


def test_what_is_mandatory_is_broken_by_most_judgements_on_itself() -> None:
    brief = Rubric(name="brief", text="It is brief.", mandatory=True)
    fair = Rubric(name="fair", text="It is fair.", mandatory=True)

    def rude(named: list[list[str]]) -> GroupRanking:
        """The highest number is blamed for these, in one judgement after the other."""
        left = iter(named)

        def says(one: int, other: int) -> str:
            broken = {"A": next(left) if one == 3 else [], "B": next(left) if other == 3 else []}
            names = ("true", "polite", "brief", "fair")
            return verdict("A" if one > other else "B", *names, violations=broken)

        return rank(says, answers(4), (TRUE, POLITE, brief, fair))

    each_twice = rude([["polite"], ["brief"], ["fair"]] * 2)
    assert each_twice.rewards[3] == 1.0 and "breaks" not in each_twice.why[3]
    two = rude([["brief", "polite"]] * 4 + [["polite"], ["fair"]])
    assert two.rewards[3] == 0.0
    assert two.why[3].startswith("reward 0: breaks brief by 4, polite by 5 of 6 judgements; won")


def test_a_rubric_of_the_task_is_asked_about_as_well() -> None:
    def says(one: int, other: int) -> str:
        return verdict("A" if one > other else "B", "true", "kind")

    found = rank(says, answers(2), (TRUE, PRAISE), own=(KIND,))
    assert found.why[1] == "won 1 of 1 comparisons; true 1/1, kind 1/1"


def split(one: int, other: int) -> str:
    """The higher is true, the lower is short and kind; overall the lower is better."""
    up, down = ("A", "B") if one > other else ("B", "A")
    return json.dumps({"rubrics": {"true": up, "short": down, "kind": down}, "better": down})


def test_the_weighted_vote_may_decide() -> None:
    rubrics = (TRUE, SHORT, KIND)  # 3 against 1 + 1
    overall = rank(split, answers(3), rubrics)
    assert overall.rewards == (1.0, 0.5, 0.0)
    vote = rank(split, answers(3), rubrics, decided_by=DecidedBy.rubrics)
    assert vote.rewards == (0.0, 0.5, 1.0)
    assert vote.why[2] == "won 2 of 2 comparisons; true 2/2, short 0/2, kind 0/2"
