"""The critic where its model says nothing that can be read, or nothing at all."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from rewards.comparison import Answer, NoAnswer
from rewards.critic import RETRY_TEMPERATURE, Critic
from rewards.critic_config import CriticConfig
from rewards.errors import RewardError
from rewards.group_ranking import GroupRanking
from rewards.rubric import Rubric
from rewards.task import Message, Task, TaskKind

TRUE = Rubric(name="true", text="It is true.", weight=3.0)
SHORT = Rubric(name="short", text="It is short.")
Says = Callable[[str, str, int], Any]  # both answers and which try -> "A", "B", words or an error


@dataclass
class Model:
    """Says what a function of both answers says; remembers what it was asked."""

    says: Says
    truncated: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        text = messages[1].content
        one, other = (re.findall(f"<answer_{name}>\n(.*)\n</", text)[0] for name in "AB")
        self.asked.append((one, other))
        self.temperatures.append(temperature)
        said = self.says(one, other, self.asked.count((one, other)))
        if isinstance(said, Exception):
            raise said
        form = text.rpartition("\n")[2]
        said = form.replace('"?"', f'"{said}"') if said in ("A", "B") else said
        return Answer(text=said, truncated=self.truncated, tokens=10, prompt_tokens=100)


def higher(one: str, other: str, attempt: int) -> str:
    return "A" if number(one) > number(other) else "B"


def number(text: str) -> int:
    return int(text.split()[-1])


def answers(count: int) -> list[str]:
    return [f"The height in metres is {place}" for place in range(count)]


TASK = Task(
    id="open/train/1",
    kind=TaskKind.open,
    messages=(Message(role="user", content="How high is it?"),),
    reference="",
    token_budget=100,
)


def rank(model: Model, responses: Sequence[str], **options: Any) -> GroupRanking:
    critic = Critic(CriticConfig(**options), (TRUE, SHORT), model)
    return asyncio.run(critic.rank(TASK, responses))


def test_what_cannot_be_read_is_asked_again() -> None:
    def says(one: str, other: str, attempt: int) -> str:
        return "I like both." if attempt < 3 else higher(one, other, attempt)

    model = Model(says)
    found = rank(model, answers(2))
    assert found.rewards == (0.0, 1.0)
    assert found.report.retries == 4 and found.report.judgements == 2
    assert found.report.tokens == 60 and found.report.unreadable == 0
    assert found.report.problems == ()
    assert model.temperatures == [0.6] * 6


def test_a_greedy_critic_is_asked_again_less_greedily() -> None:
    model = Model(lambda one, other, attempt: "Hm.")
    rank(model, answers(2), temperature=0.0)
    assert sorted(model.temperatures) == [0.0, 0.0, *[RETRY_TEMPERATURE] * 4]


def test_nothing_readable_is_no_reward_at_all() -> None:
    found = rank(Model(lambda one, other, attempt: "It is\nhard to say."), ["", *answers(4)])
    assert found.rewards == (None,) * 5
    assert found.failed == "6 of 6 comparisons have no verdict that can be read"
    assert found.why == (f"not ranked: {found.failed}",) * 5
    assert found.report.unreadable == 12 and found.report.retries == 24
    assert len(found.report.problems) == 5
    assert found.report.problems[0] == ("the last line is not JSON; it ended: 'It is hard to say.'")


def test_a_lost_comparison_is_left_out() -> None:
    def says(one: str, other: str, attempt: int) -> str:
        lost = {number(one), number(other)} == {0, 1} and number(one) == 0
        return "?" if lost else higher(one, other, attempt)

    found = rank(Model(says), answers(3))
    assert found.rewards == (0.0, 0.0, 1.0)  # 1 has met 2 alone
    assert found.why[1] == "won 0 of 1 comparisons; true 0/1, short 0/1"
    assert found.report.unreadable == 1 and len(found.report.problems) == 1


def test_half_of_the_comparisons_are_needed() -> None:
    def says(keep: set[tuple[int, int]]) -> Says:
        def said(one: str, other: str, attempt: int) -> str:
            pair = sorted((number(one), number(other)))
            return higher(one, other, attempt) if tuple(pair) in keep else "?"

        return said

    three = rank(Model(says({(0, 1), (1, 2), (2, 3)})), answers(4))
    assert three.failed is None and three.rewards == (0.0, 0.5, 0.5, 1.0)
    two = rank(Model(says({(0, 1), (2, 3)})), answers(4))
    assert two.failed == "4 of 6 comparisons have no verdict that can be read"
    apart = rank(Model(says({(0, 1), (1, 2), (0, 2)})), answers(4))
    assert apart.failed == ("the comparisons whose verdict can be read do not connect all answers")
    assert apart.rewards == (None,) * 4


def test_a_judgement_that_was_cut_is_unreadable() -> None:
    found = rank(Model(higher, truncated=True), answers(2))
    assert found.failed is not None and found.report.retries == 4
    assert found.report.problems[0].startswith("cut by its token budget of 2048; it ended: ")


@pytest.mark.parametrize("error", [ValueError("9000 tokens do not fit"), NoAnswer("HTTP 500")])
def test_a_question_that_cannot_be_asked_is_not_asked_again(error: Exception) -> None:
    def says(one: str, other: str, attempt: int) -> Any:
        hard = 0 in (number(one), number(other)) and 3 in (number(one), number(other))
        return error if hard else higher(one, other, attempt)

    model = Model(says)
    found = rank(model, answers(4))
    assert found.rewards == pytest.approx((0.0, 1 / 3, 2 / 3, 1.0))
    assert found.report.problems == (str(error), str(error))
    assert len(model.asked) == 12 and found.report.retries == 0


def test_a_model_that_is_gone_is_an_error() -> None:
    model = Model(lambda one, other, attempt: RewardError("gone"))
    with pytest.raises(RewardError, match="gone"):
        rank(model, answers(8))


def test_a_cancelled_ranking_leaves_no_question_behind() -> None:
    started = asyncio.Event()
    left: list[str] = []

    async def ask(messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Answer:
        try:
            started.set()
            await asyncio.sleep(3600)
        finally:
            left.append("ended")
        raise AssertionError

    async def run() -> None:
        ranking = asyncio.create_task(Critic(CriticConfig(), (TRUE,), ask).rank(TASK, answers(4)))
        await started.wait()
        await asyncio.sleep(0)
        ranking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ranking

    asyncio.run(run())
    assert len(left) == 12
