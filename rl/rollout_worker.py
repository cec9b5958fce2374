"""What runs in a process that generates: one engine, and the critic that speaks through it."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.chat_endpoint import ChatEndpoint, critic_endpoint
from rewards.comparison import Ask, Pair, PairOutcome
from rewards.config import RUBRIC, RewardsConfig
from rewards.critic import Critic
from rewards.critic_config import CriticConfig
from rewards.errors import RewardError
from rewards.task import Message, Task, TaskKind
from rl.critic_rubrics import rubrics_of
from rl.reward_pool import RewardPool, ScoreItems, quick_kinds
from rl.rollout_config import RolloutConfig
from rl.timeline import Span
from rl.worker_spans import SpanLog, TimedAsk, TimedDraws, TimedJudge, of_task
from rollout.config import EngineConfig
from rollout.episode import Group
from rollout.starts import Start


class RolloutWorker:
    """Owns one vLLM engine; turns tasks into scored groups."""

    async def start(
        self,
        config: EngineConfig,
        checkpoint: Path,
        judges: Sequence[ScoreItems],
        rewards: RewardsConfig,
        rollout: RolloutConfig,
        sleeps: bool = False,
    ) -> None:
        """Start the engine on `checkpoint` and get it ready to take weights, and to sleep.

        Raises:
            RewardError: the critic's endpoint does not answer.
            EngineError: vLLM does not come up.
        """
        # First: an endpoint that is not there should not be found out after minutes.
        self._endpoint = await endpoint_of(rewards.critic)

        from rollout.ask import EngineAsk
        from rollout.engine import Engine
        from rollout.partial import PartialRollout
        from rollout.render import Renderer
        from rollout.sampler import GroupSampler, Rubrics

        self._spans = SpanLog()
        renderer = Renderer(checkpoint)
        self._engine = await Engine.start(
            config,
            checkpoint,
            repetition=rewards.repetition,
            sleeps=sleeps,
            end_of_turn=renderer.eos_id,
        )
        rubrics = None
        if rewards.critic is not None:
            settings = rewards.critic
            ask: Ask = self._endpoint or EngineAsk(
                renderer, self._engine, concurrency=settings.concurrency
            )
            ask = TimedAsk(ask, self._spans)
            self._critic = Critic(settings, rubrics_of(settings), ask)
            weight = rewards.mixture.get(TaskKind.open.value, {}).get(RUBRIC)
            rubrics = Rubrics(critic=self._critic, weight=weight) if weight else None
        self._draws = PartialRollout(
            self._engine,
            places=rollout.samples_in_flight(config.max_num_seqs),
            segment_tokens=rollout.segment_tokens,
            segment_s=rollout.segment_s,
        )
        pool = RewardPool(judges, concurrency=rewards.concurrency, quick=quick_kinds(rewards))
        self._sampler = GroupSampler(
            renderer,
            TimedDraws(self._draws, self._spans),
            TimedJudge(pool, self._spans),
            rubrics=rubrics,
            repetition_reward=rewards.repetition.reward,
        )
        gc.freeze()  # a collection need not look at a million objects that stay: 0.3 s

    async def sample(
        self, task: Task, samples: int, temperature: float, rank: bool, start: Start | None
    ) -> Group:
        """One group, from prompt to score."""
        with of_task(task):
            return await self._sampler.sample(
                task, samples=samples, temperature=temperature, rank=rank, start=start
            )

    async def compare(self, pair: Pair) -> PairOutcome:
        """The critic's outcome of one pair."""
        return await self._critic.compare(pair)

    async def sleep(self) -> None:
        """Leave the device to the learner until weights are received; requests are kept."""
        with self._spans.span("fall asleep"):
            await self._engine.sleep()

    async def receive(self, update: Any, probe: list[list[int]]) -> list[list[float]]:
        """Take the weights; return the log-probs of the probe sequences under them."""
        before = self._engine.version
        with self._spans.span("take weights", version=update.version):
            await self._engine.receive(update)
        if update.version != before:  # else it has slept, and they are those that it had
            self._draws.new_version()
        return await self._engine.score_tokens(probe)

    async def load_layer(
        self, layer: Any, first: bool, probe: list[list[int]] | None
    ) -> list[list[float]] | None:
        """Take one layer of new weights; with the last one comes the probe, whose log-probs are
        returned."""
        before = self._engine.version
        with self._spans.span("take a layer", version=layer.version):
            await self._engine.load_layer(layer, first=first, last=probe is not None)
        if probe is None:
            return None
        if layer.version != before:
            self._draws.new_version()
        return await self._engine.score_tokens(probe)

    async def take_spans(self, track: str) -> list[Span]:
        """What was done here since the last call."""
        return self._spans.take(track)

    async def busy_seconds(self) -> float:
        """Seconds with at least one request running."""
        return self._engine.stats().busy_seconds

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        if self._endpoint is not None:
            await self._endpoint.aclose()
        await self._engine.shutdown()


async def endpoint_of(critic: CriticConfig | None) -> ChatEndpoint | None:
    """The endpoint that judges, if one is named. Raises `RewardError` unless it answers."""
    if critic is None or critic.endpoint is None:
        return None
    endpoint = critic_endpoint(critic)
    hello = (Message(role="user", content="Say yes."),)
    try:
        await endpoint(hello, max_tokens=critic.token_budget, temperature=critic.temperature)
    except (RewardError, ValueError) as error:
        await endpoint.aclose()
        raise RewardError(f"rewards.critic.endpoint does not answer: {error}") from error
    return endpoint
