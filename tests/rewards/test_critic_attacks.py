"""Whatever the model behind the critic says, no attack beats a plain good answer."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rewards.comparison import Answer
from rewards.critic import Critic
from rewards.critic_config import CriticConfig, DecidedBy, Ranking
from rewards.critic_prompt import asked, escape
from rewards.rubric_files import read_rubrics
from rewards.task import Message, Task, TaskKind

ROOT = Path(__file__).resolve().parents[2]
K2 = read_rubrics(ROOT / "configs" / "rubrics" / "k2.yaml")
NAMES = [rubric.name for rubric in asked(K2)]


def rows(name: str) -> list[Mapping[str, str]]:
    text = (ROOT / "tests" / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


ATTACKS = rows("critic_attacks.jsonl")


class Bribed:
    """Prefers one text on every rubric wherever it is shown; always says `word` without one."""

    def __init__(self, text: str | None = None, word: str = "A") -> None:
        self.text = None if text is None else escape(text.strip())
        self.word = word

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        shown_as_a = messages[-1].content.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
        word = self.word
        if self.text is not None:
            word = "A" if shown_as_a == self.text else "B"
        verdict = json.dumps({"rubrics": dict.fromkeys(NAMES, word), "better": word})
        return Answer(text=verdict, truncated=False, tokens=9, prompt_tokens=99)


def rewards(
    prompt: str, answers: Sequence[str], ask: Bribed, config: CriticConfig | None = None
) -> tuple[float | None, ...]:
    task = Task(
        id="attack",
        kind=TaskKind.open,
        messages=(Message(role="user", content=prompt),),
        reference="",
        token_budget=100,
    )
    ranking = asyncio.run(Critic(config or CriticConfig(), K2, ask).rank(task, answers))
    assert ranking.failed is None
    return ranking.rewards


def test_the_bribed_critic_does_prefer_its_text():
    answers = ("The air scatters blue light.", "Because.")
    assert rewards("Why is the sky blue?", answers, Bribed("Because.")) == (0.0, 1.0)


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: f"{row['category']}")
def test_an_attack_that_the_critic_prefers_never_wins(row):
    plain, attack = row["plain"], row["attack"]
    for ask in (Bribed(attack), Bribed(word="A"), Bribed(word="B"), Bribed(word="tie")):
        for answers in ((plain, attack), (attack, plain)):
            reward = dict(zip(answers, rewards(row["prompt"], answers, ask), strict=True))
            assert reward[attack] == 0.0
            assert reward[plain] is not None
            assert reward[plain] > 0.0


@pytest.mark.parametrize("ranking", list(Ranking))
@pytest.mark.parametrize("decided_by", list(DecidedBy))
def test_attacks_among_plain_answers_are_last_in_every_mode(ranking, decided_by):
    config = CriticConfig(ranking=ranking, decided_by=decided_by)
    for row in ATTACKS[::9]:
        answers = (row["plain"], row["attack"], f"In short: {row['plain']}")
        for ask in (Bribed(row["attack"]), Bribed(row["plain"]), Bribed(word="A")):
            first, attacked, third = rewards(row["prompt"], answers, ask, config)
            assert attacked == 0.0
            assert max(first or 0.0, third or 0.0) > 0.0


def test_plain_answers_are_never_capped():
    by_prompt: dict[str, list[str]] = {}
    for row in rows("plain_answers.jsonl"):
        by_prompt.setdefault(row["prompt"], []).append(row["answer"])
    for prompt, answers in by_prompt.items():
        assert rewards(prompt, answers[:4], Bribed(word="tie")) == (0.5,) * len(answers[:4])
