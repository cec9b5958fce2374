"""The critic: a model that ranks the answers to one prompt by comparing pairs (K2 sec. 3.2.2).

It reaches the model through `Ask` alone: the policy's own engine, or any endpoint.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from rewards.comparison import Answer, Ask, Judged, NoAnswer, Pair, PairOutcome
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.critic_prompt import asked, critic_messages
from rewards.critic_verdict import PairVerdict, decide, read_verdict
from rewards.group_ranking import Group, GroupRanking, Outcomes, rank_group
from rewards.ranking import schedule
from rewards.rubric import Rubric
from rewards.rubric_rules import disqualified
from rewards.task import Message, Task

RETRY_TEMPERATURE = 0.6  # after a greedy try: the same words again cannot be read either
SHOWN, MOST_SHOWN = 120, 300  # characters: last ones of an answer; of an error

Made = TypeVar("Made")

_EQUAL_TEXTS = PairOutcome(
    first=None,
    second=None,
    says=(None, None),
    preference=0.5,
    judgements=0,
    retries=0,
    tokens=0,
    prompt_tokens=0,
    problems=(),
)


class Critic:
    """Compares answers in both orders. An order that changes the verdict makes it a tie."""

    def __init__(self, config: CriticConfig, rubrics: Sequence[Rubric], ask: Ask) -> None:
        """`rubrics` are the recipe's; those of a task come with it.

        Raises:
            ValueError: two rubrics of one name, or rubrics that shall decide and are all rules.
        """
        self._config = config
        self._ask = ask
        self._rubrics: tuple[Rubric, ...] = ()
        self._rubrics = self._with(rubrics, "rewards.critic.rubrics")
        if config.decided_by is DecidedBy.rubrics and not asked(self._rubrics):
            raise ValueError(
                "rewards.critic.decided_by=rubrics needs a rubric without a rule: all of "
                f"{', '.join(config.rubrics)} have one"
            )

    async def judge(self, pair: Pair) -> Judged:
        """One comparison in one order, `answers[0]` shown as A: no rule is applied.

        Raises:
            ValueError: a rubric of the pair has the name of another one.
            RewardError: the model cannot be reached.
        """
        return await self._judge(pair.prompt, pair.answers, self._with(pair.rubrics, "a pair"))

    async def compare(self, pair: Pair) -> PairOutcome:
        """One comparison as the model makes it: no rule is applied.

        Raises:
            ValueError: a rubric of the pair has the name of another one.
            RewardError: the model cannot be reached.
        """
        one, other = pair.answers
        rubrics = self._with(pair.rubrics, "a pair")
        first, second = await _all(
            self._judge(pair.prompt, answers, rubrics) for answers in ((one, other), (other, one))
        )
        return _outcome(first, second)

    async def rank(
        self, task: Task, responses: Sequence[str], skip: Collection[int] = ()
    ) -> GroupRanking:
        """Rewards of the group of `responses` [K] to `task`.

        A reward is the share of the others that the answer beats, or the chance that it does. An
        answer that loses by rule, or that breaks a mandatory rubric, is rewarded 0.

        Args:
            task: what was asked, with its own rubrics.
            responses: the policy's words.
            skip: indices of answers that were cut; they are not compared.

        Raises:
            ValueError: a rubric of the task has the name of another one.
            RewardError: the model cannot be reached.
        """
        rubrics = self._with(task.rubrics, f"task {task.id}")
        entered = [index for index in range(len(responses)) if index not in skip]
        # In a thread: the rules read long answers for longer than an event loop should wait.
        reasons = await asyncio.to_thread(
            lambda: [disqualified(responses[i], task.messages, rubrics) for i in entered]
        )
        lost = {i: why for i, why in zip(entered, reasons, strict=True) if why is not None}
        clean = [index for index in entered if index not in lost]
        outcomes = await self._compare_all(
            task.messages, [responses[index].strip() for index in clean], rubrics
        )
        group = Group(
            count=len(responses), clean=clean, lost=lost, outcomes=outcomes, rubrics=asked(rubrics)
        )
        return rank_group(group, self._config.ranking)

    def _with(self, own: Sequence[Rubric], where: str) -> tuple[Rubric, ...]:
        rubrics = (*self._rubrics, *own)
        for name, times in Counter(rubric.name for rubric in rubrics).items():
            if times > 1:
                raise ValueError(f"{where}: {times} rubrics are named {name!r}: rename one")
        return rubrics

    async def _compare_all(
        self, prompt: Sequence[Message], answers: Sequence[str], rubrics: Sequence[Rubric]
    ) -> Outcomes:
        pairs = schedule(len(answers), self._config.partners)
        differ = [(i, j) for i, j in pairs if answers[i] != answers[j]]
        # What has the same answer as A stands together: an engine computes their prefix once.
        orders = sorted([*differ, *((j, i) for i, j in differ)])
        judged = await _all(
            self._judge(prompt, (answers[i], answers[j]), rubrics) for i, j in orders
        )
        by_order = dict(zip(orders, judged, strict=True))
        return dict.fromkeys(pairs, _EQUAL_TEXTS) | {
            (i, j): _outcome(by_order[i, j], by_order[j, i]) for i, j in differ
        }

    async def _judge(
        self, prompt: Sequence[Message], answers: tuple[str, str], rubrics: Sequence[Rubric]
    ) -> Judged:
        messages = critic_messages(self._config.instruction, prompt, answers, rubrics)
        temperature = self._config.temperature
        verdict: PairVerdict | str = ""
        answer: Answer | None = None
        tries = tokens = prompt_tokens = 0
        while isinstance(verdict, str) and tries < self._config.attempts:
            tries += 1
            try:
                answer = await self._ask(
                    messages, max_tokens=self._config.token_budget, temperature=temperature
                )
            except (NoAnswer, ValueError) as error:  # another try would end alike
                verdict, answer = " ".join(str(error).split())[:MOST_SHOWN], None
                break
            tokens += answer.tokens
            prompt_tokens += answer.prompt_tokens
            verdict = self._read(answer, rubrics)
            temperature = self._config.temperature or RETRY_TEMPERATURE
        read = None if isinstance(verdict, str) else verdict
        return Judged(
            verdict=read,
            says=None if read is None else decide(read, rubrics, self._config.decided_by),
            last=answer,
            retries=tries - 1,
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            problem=verdict if isinstance(verdict, str) else None,
        )

    def _read(self, answer: Answer, rubrics: Sequence[Rubric]) -> PairVerdict | str:
        verdict: PairVerdict | str = f"cut by its token budget of {self._config.token_budget}"
        if not answer.truncated:
            verdict = read_verdict(answer.text, rubrics)
        if isinstance(verdict, str):
            return f"{verdict}; it ended: {' '.join(answer.text[-SHOWN:].split())!r}"
        return verdict


async def _all(coroutines: Iterable[Coroutine[Any, Any, Made]]) -> list[Made]:
    """Their results in order; the first error as itself, when the others have been cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


def _outcome(first: Judged, second: Judged) -> PairOutcome:
    preference = None
    if first.says is not None and second.says is not None:
        preference = first.says if first.says == 1.0 - second.says else 0.5
    both = (first, second)
    return PairOutcome(
        first=first.verdict,
        second=second.verdict,
        says=(first.says, second.says),
        preference=preference,
        judgements=2,
        retries=first.retries + second.retries,
        tokens=first.tokens + second.tokens,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        problems=tuple(each.problem for each in both if each.problem is not None),
    )
