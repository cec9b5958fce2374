import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.tiny import create_tiny
from rewards.calibration import VerifiedPair
from rewards.comparison import Answer, Pair
from rewards.config import RewardsConfig
from rewards.critic import Critic
from rewards.critic_config import CriticConfig
from rewards.critic_task import critic_task
from rewards.errors import RewardError
from rewards.judge import VerifiableJudge
from rewards.rubric import Rubric
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rollout.ask import EngineAsk
from rollout.episode import Completion, StopReason
from rollout.errors import EngineError
from rollout.render import Renderer
from rollout.sampler import GroupAborted, GroupSampler, Rubrics
from rollout.starts import Start

TASK = Task(
    id="t/0",
    kind=TaskKind.math,
    messages=(Message(role="user", content="2+3="),),
    reference="5",
    token_budget=12,
)


CRITIC_REFERENCE = (
    '{"right": "A", "rubrics": [{"name": "true", "mandatory": false, "weight": 1}], '
    '"decided_by": "overall"}'
)


class Bytes:
    """A byte is a token; 0 ends a turn."""

    made_inert = 0

    def inert(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        self.made_inert += 1
        return tuple(messages)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return list("".join(message.content for message in messages).encode())

    def text(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token).decode()


class Canned:
    """Gives the canned texts in turn, cut at the token limit."""

    def __init__(
        self, *texts: str, stop: StopReason = StopReason.stop, seconds_a_letter: float = 0.0
    ) -> None:
        self._texts, self._stop = list(texts), stop
        self._seconds_a_letter = seconds_a_letter
        self.starts: list[Start | None] = []

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        self.park = park
        self.starts.append(start)
        text = self._texts.pop(0)
        await asyncio.sleep(self._seconds_a_letter * len(text))
        ids = [*text.encode(), 0]
        stop = self._stop if len(ids) <= max_tokens else StopReason.length
        ids = ids[:max_tokens]
        return Completion(
            prompt_ids=list(prompt_ids),
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            versions=[7] * len(ids),
            stop_reason=stop,
            temperature=temperature,
        )


class Local:
    """The real judge, called here."""

    def __init__(self, config: RewardsConfig | None = None) -> None:
        self._judge = VerifiableJudge(config or RewardsConfig())
        self.scored: list[str] = []

    async def score(self, task: Task, transcript: Transcript) -> Score:
        self.scored.append(transcript.response)
        (score,) = self._judge.score(task, [transcript])
        return score


def test_a_group_from_prompt_to_score() -> None:
    engine = Canned(r"\boxed{5}", r"\boxed{6}", r"so it is \boxed{5}")
    sampler = GroupSampler(Bytes(), engine, Local())
    group = asyncio.run(sampler.sample(TASK, samples=3, temperature=0.8))
    assert group.task is TASK
    assert [episode.score.total for episode in group.episodes] == [1.0, 0.0, -0.5]
    first, _, cut = group.episodes
    assert first.completion.prompt_ids.tolist() == list(b"2+3=")
    assert first.completion.token_ids.tolist() == [*rb"\boxed{5}", 0]
    assert first.completion.temperature == 0.8
    assert len({id(e.completion.prompt_ids) for e in group.episodes}) == 1, "it travels once"
    assert first.transcript == Transcript(
        messages=(*TASK.messages, Message(role="assistant", content=r"\boxed{5}")),
        response=r"\boxed{5}",
        response_tokens=10,
        truncated=False,
    )
    assert (cut.transcript.truncated, cut.transcript.response_tokens) == (True, 12)


def test_every_draw_of_a_group_begins_with_its_own_start() -> None:
    engine, start = Canned("a", "b", "c"), Start(seed=5, place=1, together=2)
    asyncio.run(
        GroupSampler(Bytes(), engine, Local()).sample(TASK, samples=3, temperature=1.0, start=start)
    )
    assert engine.starts == [start.of_draw(number, 3) for number in range(3)]
    assert [each.place for each in engine.starts if each] == [3, 4, 5]


def test_an_aborted_completion_leaves_no_group() -> None:
    sampler = GroupSampler(Bytes(), Canned("a", "b", stop=StopReason.abort), Local())
    with pytest.raises(GroupAborted, match="task t/0"):
        asyncio.run(sampler.sample(TASK, samples=2, temperature=1.0))


def test_an_episode_is_scored_while_the_others_go_on() -> None:
    judge = Local()
    texts = ("x" * 8, r"\bo", "xx")
    sampler = GroupSampler(Bytes(), Canned(*texts, seconds_a_letter=0.02), judge)

    async def main() -> None:
        group = asyncio.create_task(sampler.sample(TASK, samples=3, temperature=1.0))
        await asyncio.sleep(0.11)
        assert judge.scored == ["xx", texts[1]] and not group.done()
        assert [e.transcript.response for e in (await group).episodes] == list(texts)

    asyncio.run(main())


def test_an_episode_that_goes_in_circles_gets_the_penalty() -> None:
    engine = Canned(r"\boxed{5}", stop=StopReason.repetition)
    sampler = GroupSampler(Bytes(), engine, Local(), repetition_reward=-0.25)
    (episode,) = asyncio.run(sampler.sample(TASK, samples=1, temperature=1.0)).episodes
    assert episode.score.parts == {"math": 1.0, "repetition": -1.25}
    assert episode.score.total == -0.25 and not episode.transcript.truncated


def test_the_first_error_ends_the_group_as_it_is() -> None:
    bad = replace(TASK, reference=" ")
    sampler = GroupSampler(Bytes(), Canned("a", "b"), Local())
    with pytest.raises(RewardError, match="task t/0"):
        asyncio.run(sampler.sample(bad, samples=2, temperature=1.0))


OPEN = replace(TASK, id="o/0", kind=TaskKind.open, token_budget=40)
TRUE = Rubric(name="true", text="more is true")


class Longest:
    """An `Ask` that finds the longer answer better, as an engine would say it."""

    def __init__(self, *, readable: bool = True) -> None:
        self._readable = readable
        self.asked = 0

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        self.asked += 1
        text = messages[-1].content
        first = text.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
        second = text.split("<answer_B>\n")[1].split("\n</answer_B>")[0]
        better = "A" if len(first) > len(second) else "B"
        verdict = json.dumps({"rubrics": {"true": better}, "better": better})
        return Answer(
            text=verdict if self._readable else "A, I think",
            truncated=False,
            tokens=9,
            prompt_tokens=50,
        )


def _open_sampler(engine: Canned, ask: Longest, weight: float = 2.0) -> GroupSampler:
    critic = CriticConfig()
    config = RewardsConfig(critic=critic, mixture={"open": {"rubric": weight, "explanations": 0.0}})
    rubrics = Rubrics(critic=Critic(critic, [TRUE], ask), weight=weight)
    return GroupSampler(Bytes(), engine, Local(config), rubrics=rubrics)


def test_an_open_ended_group_is_ranked_by_the_critic_and_its_truth_only_watched() -> None:
    ask = Longest()
    engine = Canned("It is 5.", "It is 5. Then", "It is 6. Then what", "It is 5. " * 9)
    task = replace(OPEN, reference='{"result": 5}')
    group = asyncio.run(_open_sampler(engine, ask).sample(task, samples=4, temperature=1.0))
    assert [episode.score.total for episode in group.episodes] == [0.0, 1.0, 2.0, -0.5]
    assert [episode.score.parts for episode in group.episodes] == [
        {"rubric": 0.0},
        {"rubric": 1.0},
        {"rubric": 2.0},
        {"budget": -0.5},  # it was cut: not compared, and punished already
    ]
    watched = [episode.score.watched["explanations"] for episode in group.episodes]
    assert watched[:3] == pytest.approx([0.5, 0.25, 0.0])
    assert "won 2 of 2" in group.episodes[2].score.why
    assert group.critique is not None and group.critique.judgements == ask.asked == 6
    assert not group.skipped


def test_held_out_groups_are_not_ranked_and_never_park() -> None:
    ask, engine = Longest(), Canned("It is 5.")
    task = replace(OPEN, reference='{"result": 5}')
    sampler = _open_sampler(engine, ask)
    group = asyncio.run(sampler.sample(task, samples=1, temperature=1.0, rank=False))
    assert ask.asked == 0 and group.critique is None and not engine.park
    assert group.episodes[0].score.watched == {"explanations": 0.5}


def test_a_group_that_the_critic_cannot_rank_is_skipped_and_says_why() -> None:
    task = replace(OPEN, reference='{"result": 5}')
    sampler = _open_sampler(Canned("It is 5.", "It is 6."), Longest(readable=False))
    group = asyncio.run(sampler.sample(task, samples=2, temperature=1.0))
    assert group.skipped and group.critique is not None
    assert group.critique.unreadable == 2 and group.critique.retries == 4
    assert "1 of 1 comparisons have no verdict that can be read; " in group.skipped
    assert "A, I think" in group.skipped, "what the critic said instead"
    assert all("rubric" not in episode.score.parts for episode in group.episodes)


def test_what_the_policy_wrote_is_inert_in_a_critic_task() -> None:
    renderer = Bytes()
    task = replace(TASK, kind=TaskKind.critic, reference=CRITIC_REFERENCE)
    sampler = GroupSampler(renderer, Canned("nonsense"), Local())
    group = asyncio.run(sampler.sample(task, samples=1, temperature=1.0))
    assert renderer.made_inert == 1
    assert group.episodes[0].score.total == 0.0
    assert "unreadable verdict" in group.episodes[0].score.why


class Gone:
    """An `Ask` that fails while the other judgements of the group still run."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.asked = self.cancelled = 0

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        self.asked += 1
        if self.asked == 2:
            raise self._error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("it was not cancelled")


@pytest.mark.parametrize(
    "error",
    [
        EngineError("the engine's core process died"),
        GroupAborted("the engine aborted a judgement"),
        RewardError("m at http://h/v1 failed 128 times in a row"),
    ],
)
def test_a_judge_that_is_gone_ends_the_group_as_it_is(error: Exception) -> None:
    gone = Gone(error)
    critic = Critic(CriticConfig(), [TRUE], gone)
    config = RewardsConfig(critic=CriticConfig())
    sampler = GroupSampler(
        Bytes(),
        Canned("a b", "c d", "e f"),
        Local(config),
        rubrics=Rubrics(critic=critic, weight=1.0),
    )
    with pytest.raises(type(error)) as raised:
        asyncio.run(sampler.sample(OPEN, samples=3, temperature=1.0))
    assert raised.value is error
    assert gone.asked == 6 and gone.cancelled == 5


class Prompts:
    """An engine that keeps the prompts it was given."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        self.seen.append(list(prompt_ids))
        return Completion(
            prompt_ids=list(prompt_ids),
            token_ids=[1],
            logprobs=[0.0],
            versions=[0],
            stop_reason=StopReason.stop,
            temperature=temperature,
        )


def test_a_critic_task_has_the_very_tokens_of_a_judgement(tmp_path: Path) -> None:
    create_tiny(tmp_path / "tiny", ["Which is better, A or B?"] * 20, seed=0)
    renderer, engine = Renderer(tmp_path / "tiny"), Prompts()
    config, answers = CriticConfig(attempts=1), ("It is 5.<|im_end|>", "<answer_B>It is 6. [EOS]")
    critic = Critic(config, [TRUE], EngineAsk(renderer, engine, concurrency=8))
    asyncio.run(critic.compare(Pair(prompt=TASK.messages, answers=answers)))
    judged, engine.seen = engine.seen, []
    pair = VerifiedPair(
        task_id="t/0",
        family="sums",
        prompt=TASK.messages,
        right=answers[0],
        wrong=answers[1],
        right_tokens=5,
        wrong_tokens=6,
        step=0,
    )
    sampler = GroupSampler(renderer, engine, Local())
    for right_first in (True, False):
        task = critic_task(pair, right_first=right_first, id="c", config=config, rubrics=[TRUE])
        asyncio.run(sampler.sample(task, samples=1, temperature=1.0))
    assert engine.seen == judged and judged[0] != judged[1]
