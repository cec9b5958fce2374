"""The critic of open-ended answers as a judge of labelled ones: same prompt, same verdict."""

import asyncio
import json
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256

from rewards.chat_endpoint import ChatEndpoint
from rewards.comparison import Answer, Ask, NoAnswer
from rewards.critic import Critic
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.critic_prompt import critic_messages
from rewards.critic_verdict import decide, read_verdict
from rewards.preference.judges import Failure, Judgement, Question
from rewards.preference.records import ProblemKind
from rl.critic_rubrics import rubrics_of
from rl.errors import bad_input
from rl.open_judge import ANSWER_TOKENS, JudgeOptions

SHOWN = 120  # characters of a judgement that cannot be read

Found = queue.SimpleQueue[tuple[int, Judgement | Failure] | BaseException | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is there while its context is open, in one event loop."""

    name: str
    identity: str  # what its answers depend on
    open: Callable[[], AbstractAsyncContextManager[Ask]]


class CriticJudge:
    """Compares two answers by rubrics, in the order in which they are shown; no rule is applied.

    A greedy model is asked once: the same again would not be read either.
    """

    compares = True

    def __init__(self, config: CriticConfig, served: Served) -> None:
        """Opens nothing yet. Raises BadInput for rubrics that cannot be used."""
        self._config, self._served = config, served
        self._rubrics = rubrics_of(config)
        with bad_input():
            Critic(config, self._rubrics, _never)  # its checks of the two
        self._attempts = config.attempts if config.temperature else 1
        self.name = f"critic {served.name}"
        asked = {
            "instruction": config.instruction,
            "rubrics": [asdict(rubric) for rubric in self._rubrics],
            "decided_by": config.decided_by.value,
            "token_budget": config.token_budget,
            "temperature": config.temperature,
            "attempts": self._attempts,
        }
        digest = sha256(json.dumps([served.identity, asked]).encode()).hexdigest()
        self.identity = f"critic {digest}"
        self._stop = threading.Event()

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """Several at a time, each as it comes; the model is up while there are any.

        Raises what opening the model and `Ask` raise.
        """
        if not questions:
            return
        found: Found = queue.SimpleQueue()
        self._stop.clear()

        def work() -> None:
            try:
                asyncio.run(self._answer_all(questions, found))
            except BaseException as error:  # goes on in the thread that reads
                found.put(error)
            found.put(None)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()

    def close(self) -> None:
        """Ask nothing more."""
        self._stop.set()

    async def _answer_all(self, questions: Sequence[Question], found: Found) -> None:
        waiting = iter(enumerate(questions))

        async def work(ask: Ask) -> None:
            for index, question in waiting:
                if self._stop.is_set():
                    return
                found.put((index, await self._answer(ask, question)))

        async with self._served.open() as ask:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._config.concurrency, len(questions))):
                        group.create_task(work(ask))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors

    async def _answer(self, ask: Ask, question: Question) -> Judgement | Failure:
        one, other = question.responses
        messages = critic_messages(
            self._config.instruction, question.prompt, (one, other), self._rubrics
        )
        said: Judgement | Failure = Failure(kind=ProblemKind.failed, why="not asked")
        for _ in range(self._attempts):
            try:
                answer = await ask(
                    messages,
                    max_tokens=self._config.token_budget,
                    temperature=self._config.temperature,
                )
            except (NoAnswer, ValueError) as error:  # another try would end alike
                return Failure(kind=ProblemKind.failed, why=str(error)[:300])
            said = self._read(answer)
            if isinstance(said, Judgement):
                break
        return said

    def _read(self, answer: Answer) -> Judgement | Failure:
        ended = f"it ended: {' '.join(answer.text[-SHOWN:].split())!r}"
        if answer.truncated:
            why = f"cut by max_tokens={self._config.token_budget}; {ended}"
            return Failure(kind=ProblemKind.truncated, why=why)
        verdict = read_verdict(answer.text, self._rubrics)
        if isinstance(verdict, str):
            return Failure(kind=ProblemKind.nonsense, why=f"{verdict}; {ended}")
        value = decide(verdict, self._rubrics, self._config.decided_by)
        return Judgement(value=value, text=answer.text)


def critic_config(options: JudgeOptions) -> CriticConfig:
    """The critic that a command line asks for. Raises BadInput."""
    with bad_input():
        return CriticConfig(
            rubrics=[name.strip() for name in options.rubrics.split(",") if name.strip()],
            decided_by=DecidedBy(options.decided_by),
            token_budget=options.max_tokens or ANSWER_TOKENS,
            temperature=options.temperature,
            concurrency=options.concurrency,
        )


def open_endpoint_critic(url: str, options: JudgeOptions) -> CriticJudge:
    """The critic over an OpenAI-compatible endpoint. Raises BadInput."""

    def endpoint() -> ChatEndpoint:
        return ChatEndpoint(
            url=url,
            model=options.model,
            api_key=os.environ.get(options.api_key_env, ""),
            timeout_s=options.timeout_s,
            concurrency=options.concurrency,
        )

    @asynccontextmanager
    async def connected() -> AsyncIterator[Ask]:
        chat = endpoint()
        try:
            yield chat
        finally:
            await chat.aclose()

    with bad_input():
        name = endpoint().name
    identity = f"endpoint {url} {options.model}"
    served = Served(name=name, identity=identity, open=connected)
    return CriticJudge(critic_config(options), served)


async def _never(messages: object, *, max_tokens: int, temperature: float) -> Answer:
    raise AssertionError("asked before the model is up")
