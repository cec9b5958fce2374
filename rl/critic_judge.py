"""The critic of open-ended answers as a judge of labelled ones: same prompt, same verdict."""

import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

from rewards.chat_endpoint import ChatEndpoint, read_key
from rewards.comparison import Answer, Ask, Judged, Pair
from rewards.critic import Critic
from rewards.critic_config import INSTRUCTION, CriticConfig, DecidedBy
from rewards.preference.answering import Answered, Answering, answers
from rewards.preference.judges import Failure, Judgement, Question
from rewards.preference.records import ProblemKind
from rl.critic_rubrics import rubrics_of
from rl.errors import bad_input
from rl.open_judge import ANSWER_TOKENS, JudgeOptions


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
        self._config = config if config.temperature else replace(config, attempts=1)
        self._served = served
        self._rubrics = rubrics_of(config)
        with bad_input():
            Critic(config, self._rubrics, _never)  # its checks of the two
        self.name = f"critic {served.name}"
        asked = {
            "instruction": config.instruction,
            "rubrics": [asdict(rubric) for rubric in self._rubrics],
            "decided_by": config.decided_by.value,
            "token_budget": config.token_budget,
            "temperature": config.temperature,
            "attempts": self._config.attempts,
        }
        digest = sha256(json.dumps([served.identity, asked]).encode()).hexdigest()
        self.identity = f"critic {digest}"
        self._answers: Generator[Answered] | None = None

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """Several at a time, each as it comes; the model is up while there are any.

        Raises what opening the model and `Ask` raise.
        """
        self._answers = answers(questions, self._open, self._config.concurrency)
        return self._answers

    def close(self) -> None:
        """Ask nothing more."""
        if self._answers is not None:
            self._answers.close()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Answering]:
        async with self._served.open() as ask:
            critic = Critic(self._config, self._rubrics, ask)

            async def answer(question: Question) -> Judgement | Failure:
                one, other = question.responses
                return _said(await critic.judge(Pair(prompt=question.prompt, answers=(one, other))))

            yield answer


def _said(judged: Judged) -> Judgement | Failure:
    if judged.says is not None and judged.last is not None:
        return Judgement(value=judged.says, text=judged.last.text)
    kind = ProblemKind.failed
    if judged.last is not None:
        kind = ProblemKind.truncated if judged.last.truncated else ProblemKind.nonsense
    return Failure(kind=kind, why=judged.problem or "")


def critic_config(options: JudgeOptions) -> CriticConfig:
    """The critic that a command line asks for. Raises BadInput."""
    with bad_input():
        return CriticConfig(
            instruction=options.instruction or INSTRUCTION,
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
            api_key=read_key(options.api_key_env),
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
