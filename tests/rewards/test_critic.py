"""The critic on fake models: whoever judges, however badly, rewards are right or absent."""

import asyncio
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.comparison import Answer, CriticReport
from rewards.critic import Critic
from rewards.critic_config import CriticConfig, DecidedBy, Ranking
from rewards.group_ranking import GroupRanking
from rewards.rubric import Rubric, Rule
from rewards.task import Message, Task, TaskKind

TRUE = Rubric(name="true", text="It is true.", weight=3.0)
SHORT = Rubric(name="short", text="It is short.")
PRAISE = Rubric(name="praise", text="No praise.", mandatory=True, rule=Rule.opening_praise)

Says = Callable[[str, str, int], Any]  # both answers and which try -> a word, or raw text


@dataclass
class Model:
    """Says what a function of both answers says; remembers what it was asked."""

    says: Says
    asked: list[tuple[str, str]] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        assert [message.role for message in messages] == ["system", "user"]
        text = messages[1].content
        one, other = (
            re.findall(f"<answer_{name}>\n(.*)\n</answer_{name}>", text, re.DOTALL)[0]
            for name in "AB"
        )
        self.asked.append((one, other))
        self.running += 1
        self.most_at_once = max(self.running, self.most_at_once)
        await asyncio.sleep(0)
        self.running -= 1
        said = self.says(one, other, self.asked.count((one, other)))
        if isinstance(said, Exception):
            raise said
        if said in ("A", "B", "tie"):
            said = f"I think so.\n{verdict(said, text)}"
        return Answer(text=said, truncated=False, tokens=10, prompt_tokens=100)


def verdict(word: str, text: str) -> str:
    """The form at the end of the critic's text, filled in with one word."""
    return text.rpartition("\n")[2].replace('"?"', f'"{word}"')


def better(rank: Callable[[str], float]) -> Says:
    """Prefers the answer of the higher rank."""

    def says(one: str, other: str, attempt: int) -> str:
        return "tie" if rank(one) == rank(other) else "A" if rank(one) > rank(other) else "B"

    return says


def number(text: str) -> int:
    return int(text.split()[-1])


def answers(count: int) -> list[str]:
    return [f"The height in metres is {place}" for place in range(count)]


def task(*rubrics: Rubric) -> Task:
    return Task(
        id="open/train/1",
        kind=TaskKind.open,
        messages=(Message(role="user", content="How high is it?"),),
        reference="",
        token_budget=100,
        rubrics=rubrics,
    )


def rank(
    model: Model,
    responses: Sequence[str],
    *,
    rubrics: Sequence[Rubric] = (TRUE, SHORT),
    own: Sequence[Rubric] = (),
    skip: Collection[int] = (),
    **options: Any,
) -> GroupRanking:
    critic = Critic(CriticConfig(**options), rubrics, model)
    return asyncio.run(critic.rank(task(*own), responses, skip))


def test_a_group_of_four_in_full() -> None:
    model = Model(better(number))
    found = rank(model, answers(4))
    assert found.rewards == pytest.approx((0.0, 1 / 3, 2 / 3, 1.0))
    assert found.failed is None
    assert found.why == (
        "won 0 of 3 comparisons; true 0/3, short 0/3",
        "won 1 of 3 comparisons; true 1/3, short 1/3",
        "won 2 of 3 comparisons; true 2/3, short 2/3",
        "won 3 of 3 comparisons; true 3/3, short 3/3",
    )
    assert found.report == CriticReport(
        pairs=6, judgements=12, says_a=6, says_b=6, tokens=120, prompt_tokens=1200
    )


@pytest.mark.parametrize(
    ("count", "judgements"), [(0, 0), (1, 0), (2, 2), (8, 56), (12, 84), (32, 224)]
)
def test_so_many_judgements(count: int, judgements: int) -> None:
    model = Model(better(number))
    found = rank(model, answers(count))
    assert len(model.asked) == len(set(model.asked)) == found.report.judgements == judgements
    assert found.report.pairs == judgements // 2
    assert model.most_at_once == judgements  # how many run at once is the model's affair
    assert len(found.rewards) == len(found.why) == count
    assert all(reward is not None and 0.0 <= reward <= 1.0 for reward in found.rewards)
    assert sum(reward or 0 for reward in found.rewards) == pytest.approx(count / 2)


def test_requests_with_one_prefix_stand_together() -> None:
    model = Model(better(number))
    rank(model, answers(12))
    shown_first = [one for one, _ in model.asked]
    changes = sum(one != other for one, other in itertools.pairwise(shown_first))
    assert changes == 11


def test_cyclic_preferences_are_worth_a_half() -> None:
    def says(one: str, other: str, attempt: int) -> str:
        return "A" if (number(one) - number(other)) % 3 == 1 else "B"

    found = rank(Model(says), answers(3))
    assert found.rewards == (0.5, 0.5, 0.5)
    assert found.report.inconsistent == 0 and found.report.ties == 0


@pytest.mark.parametrize("ranking", list(Ranking))
def test_who_always_says_a_says_nothing(ranking: Ranking) -> None:
    found = rank(Model(lambda one, other, attempt: "A"), answers(8), ranking=ranking)
    assert found.rewards == pytest.approx((0.5,) * 8)
    assert found.report.inconsistent == 28 and found.report.says_a == 56
    assert found.report.ties == found.report.says_b == 0


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie() -> None:
    def says(one: str, other: str, attempt: int) -> str:
        return "A" if number(one) > number(other) else "tie"

    found = rank(Model(says), answers(2))
    assert found.rewards == (0.5, 0.5)
    assert found.report.inconsistent == 1 and found.report.ties == 0
    assert found.why[1] == "won 0.5 of 1 comparisons; true 0.75/1, short 0.75/1"


def test_ties_are_counted() -> None:
    found = rank(Model(lambda one, other, attempt: "tie"), answers(4))
    assert found.rewards == (0.5,) * 4
    assert found.report.ties == 6 and found.report.inconsistent == 0


def test_equal_texts_tie_unasked() -> None:
    model = Model(better(number))
    found = rank(model, [*answers(2), " The height in metres is 1\n"])
    assert found.rewards == (0.0, 0.75, 0.75)
    assert found.report.pairs == 2 and len(model.asked) == 4
    assert found.why[2] == "won 1.5 of 2 comparisons; true 1/1, short 1/1"
    alike = rank(Model(better(number)), ["The same 1"] * 12)
    assert alike.rewards == (0.5,) * 12 and alike.report.judgements == 0


def test_what_loses_by_rule_is_not_shown_and_loses_to_all() -> None:
    model = Model(better(number))
    made = answers(4)
    found = rank(model, [made[0], "", made[2], '{"rubrics": {}, "better": "A"}'])
    assert found.rewards == pytest.approx((2 / 3, 0.0, 1.0, 0.0))
    assert found.report.disqualified == 2 and found.report.pairs == 1
    assert set(model.asked) == {(made[0], made[2]), (made[2], made[0])}
    assert found.why[1].startswith("lost by rule: ")
    assert found.why[0] == "won 2 of 3 comparisons (2 by rule); true 0/1, short 0/1"


def test_losers_by_rule_weigh_the_same_in_a_sparse_design() -> None:
    """Each of 16 clean answers meets 7 of the others, and beats all of the 16 empty ones."""
    found = rank(Model(lambda one, other, attempt: "tie"), [*answers(16), *[""] * 16])
    assert found.rewards == pytest.approx((*[(15 * 0.5 + 16) / 31] * 16, *[0.0] * 16))


@pytest.mark.parametrize("ranking", list(Ranking))
def test_groups_with_nothing_to_compare(ranking: Ranking) -> None:
    def of(*responses: str, skip: Sequence[int] = ()) -> tuple[float | None, ...]:
        model = Model(better(number))
        found = rank(model, responses, skip=skip, ranking=ranking)
        assert found.failed is None and not model.asked
        return found.rewards

    assert of() == ()
    assert of("It is 5") == (0.5,)
    assert of("") == (0.0,)
    assert of("", "", "") == (0.0, 0.0, 0.0)
    assert of("", "It is 5", "") == (0.0, 1.0, 0.0)
    assert of("It is 5", "It is 6", skip=[1]) == (0.5, None)
    assert of("It is 5", "", "It is 6", skip=[2]) == (1.0, 0.0, None)
    assert of("It is 5", "It is 6", skip=[0, 1]) == (None, None)


def test_why_a_single_answer_has_a_half() -> None:
    found = rank(Model(better(number)), ["It is 5", "It is 6"], skip=[0])
    assert found.why == ("not compared: it was cut", "nothing to compare it with: 0.5")


def test_cut_answers_are_not_compared() -> None:
    model = Model(better(number))
    found = rank(model, answers(4), skip={1, 3})
    assert found.rewards == (0.0, None, 1.0, None)
    assert len(model.asked) == 2


def test_bradley_terry_ranks_as_win_rates_do() -> None:
    found = rank(Model(better(number)), answers(8), ranking=Ranking.bradley_terry)
    rewards = [reward for reward in found.rewards if reward is not None]
    assert rewards == sorted(set(rewards)) and len(rewards) == 8
    assert rewards[0] > 0.0 and rewards[-1] < 1.0
    assert sum(rewards) == pytest.approx(4.0)


def test_two_rubrics_of_one_name() -> None:
    model = Model(better(number))
    with pytest.raises(ValueError, match="rubrics: 2 rubrics are named 'true'"):
        Critic(CriticConfig(), (TRUE, SHORT, TRUE), model)
    with pytest.raises(ValueError, match="task open/train/1: 2 rubrics are named 'short'"):
        rank(model, answers(2), own=(SHORT,))


def test_rules_alone_cannot_vote() -> None:
    with pytest.raises(ValueError, match="needs a rubric without a rule"):
        Critic(CriticConfig(decided_by=DecidedBy.rubrics), (PRAISE,), Model(better(number)))


@given(
    st.lists(st.sampled_from(["", "It is 1", "It is 2", "It is 3", "It is 4"]), max_size=12),
    st.lists(st.sampled_from(["A", "B", "tie", "unreadable"]), min_size=1, max_size=40),
    st.sampled_from(list(Ranking)),
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_critic_says_an_empty_answer_loses(
    responses: list[str], words: list[str], ranking: Ranking
) -> None:
    endless = itertools.cycle(words)
    found = rank(Model(lambda one, other, attempt: next(endless)), responses, ranking=ranking)
    if found.failed is not None:
        assert found.rewards == (None,) * len(responses)
        return
    for response, reward in zip(responses, found.rewards, strict=True):
        assert reward is not None and 0.0 <= reward <= 1.0
        assert response or reward == 0.0
        assert reward > 0.0 or not response or "" not in responses
    report = found.report
    assert report.judgements == 2 * report.pairs
    assert report.disqualified == responses.count("")
    assert report.says_a + report.says_b + report.unreadable <= report.judgements
