"""What the driver does about self-critique: train the critic, measure it, and freeze it in time.

verifiable groups -> pairs -> critic tasks, a share of the prompts: rewarded if right
                           -> held-out pairs, judged while the learner trains -> gate
open-ended groups -> ranked by the critic in the rollout workers, while the gate is open
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from rewards.calibration import Gate, PairPool, Verified, VerifiedPair, is_critic_position
from rewards.comparison import Pair, PairOutcome
from rewards.config import RUBRIC, RewardsConfig
from rewards.critic_config import CalibrationConfig
from rewards.critic_metrics import CriticWindow, JudgedPair
from rewards.critic_task import critic_task
from rewards.rubric import Rubric
from rewards.score import Score
from rewards.task import Task, TaskKind
from rl.critic_baseline import Baseline, StartingAnswer, starting_answers
from rl.evaluate import PassRate, pass_rate, sample_all, watched
from rollout.episode import Group, StopReason

STARTING_ANSWERS = 2  # open-ended tasks a step whose answers are compared with the first policy's


class Comparer(Protocol):
    """The engines, as the critic needs them."""

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        """`samples` episodes of `task`."""
        ...

    async def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        """The critic's outcome of each pair, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueState:
    """What a resumed run needs to have the same gate; plain numbers."""

    judged_pairs: tuple[JudgedPair, ...] = ()
    against_start: tuple[tuple[float, float], ...] = ()


class SelfCritique:
    """The pairs, the window over which the critic is measured, and the gate."""

    def __init__(
        self,
        rewards: RewardsConfig,
        rubrics: Sequence[Rubric],
        *,
        seed: int,
        fits: Callable[[Task], bool],
        say: Callable[[str], None],
        state: CritiqueState,
    ) -> None:
        """Take the settings.

        Args:
            rewards: those of a recipe with a critic.
            rubrics: the recipe's.
            seed: of the pairs.
            fits: whether prompt and budget of a task fit the engines.
            say: takes a line for a person.
            state: of the run that goes on; of a new one, empty.
        """
        assert rewards.critic is not None
        self._config, self._critic, self._rubrics = rewards.calibration, rewards.critic, rubrics
        self._seed = seed
        self._fits = fits
        self._turns = self._made = self._too_long = self._frozen = 0
        self._say = say
        config = self._config
        self._pool = PairPool(config, seed)
        self._window = CriticWindow(config.window, state.judged_pairs)
        self._against_start = deque(state.against_start, maxlen=config.window)
        self._gate = Gate(config)
        self._gate.update(self._window.agreement, self._window.judged)
        # An endpoint does not learn: nothing that the policy judges would make it better.
        self._share = 0.0 if self._critic.endpoint else config.share
        # Open-ended tasks that other rewards score alone do not depend on the critic.
        self._ranks = RUBRIC in rewards.mixture.get(TaskKind.open.value, {})

    @property
    def state(self) -> CritiqueState:
        """For a resumed run."""
        return CritiqueState(
            judged_pairs=self._window.state(), against_start=tuple(self._against_start)
        )

    def task(self, position: int, step: int, task: Task | None) -> Task | None:
        """What is asked at a position of the stream: `task`, a critic task, or nothing.

        None is for an open-ended task while rubric rewards are frozen; of `task`, for one that does
        not fit the engines.
        """
        if is_critic_position(position, self._share):
            self._turns += 1
            judged = self._critic_task(position, step)
            if judged is not None:
                self._made += 1
                return judged
        if task is None:
            return None
        if task.kind is TaskKind.open and self._ranks and not self._gate.open:
            self._frozen += 1
            return None
        return task

    def describe(self) -> str:
        """One line at the end: what became of critic tasks and of open-ended ones."""
        return (
            f"critic tasks: {self._made} of {self._turns} that were due had a pair; "
            f"{self._frozen} open-ended prompts were passed over while rubric rewards were frozen"
        )

    def _critic_task(self, position: int, step: int) -> Task | None:
        """The next pair as a task; those that do not fit the engines are left out."""
        while (drawn := self._pool.draw(step)) is not None:
            made = critic_task(
                drawn.pair,
                right_first=drawn.right_first,
                id=f"critic/train/{position}",
                config=self._critic,
                rubrics=self._rubrics,
            )
            if self._fits(made):
                return made
            self._too_long += 1
            if self._too_long == 1:
                self._say(
                    f"step {step + 1}: two answers to {drawn.pair.task_id} with "
                    f"rewards.critic.token_budget={self._critic.token_budget} do not fit "
                    "engine.max_model_len: such pairs do not train the critic"
                )
        return None

    def observe(self, step: int, group: Group) -> Group:
        """Take pairs from a group while its rewards are the verifiers' alone."""
        self._pool.add(step, group.task, verified(group))
        return group

    async def start(self, engines: Comparer, groups: Sequence[Group]) -> Baseline:
        """Measure the critic on held-out groups before RL, and keep what to compare with later."""
        baseline = Baseline(
            answers=tuple(starting_answers(groups)),
            pairs=balanced_pairs(self._config, groups, self._seed),
        )
        outcomes = await outcomes_of(engines, baseline.pairs)
        for pair, outcome in zip(baseline.pairs, outcomes, strict=True):
            self._window.add(pair, outcome)
        self._gate.update(self._window.agreement, self._window.judged)
        problems = [problem for outcome in outcomes for problem in outcome.problems]
        if problems:
            asked = sum(outcome.judgements for outcome in outcomes)
            self._say(
                f"{len(problems)} of {asked} judgements have no verdict that can be read, "
                f"such as: {problems[0]}"
            )
        self._say(self._gate.describe())
        return baseline

    async def agreement(
        self, engines: Comparer, groups: Sequence[Group], baseline: Baseline | None
    ) -> dict[str, PassRate]:
        """How often the critic agrees with the verifiers, a tie half.

        "critic" is over pairs of the groups, "critic/start" over those of the policy before RL.
        """
        rates = {}
        pairs = {"critic": balanced_pairs(self._config, groups, self._seed)}
        if baseline is not None:
            pairs["critic/start"] = baseline.pairs
        for name, some in pairs.items():
            outcomes = await outcomes_of(engines, some)
            credits = [o.preference for o in outcomes if o.preference is not None]
            if credits:
                rates[name] = pass_rate(credits)
        return rates

    async def measure(
        self, step: int, engines: Comparer, baseline: Baseline, temperature: float
    ) -> Mapping[str, float]:
        """The critic on some held-out pairs, and the policy against the one before RL.

        Both over the last pairs (`calibration.window`): `critic/agreement` and the like; and of
        today's answers to held-out open-ended tasks, drawn at `temperature`,
        `critic/win_rate_start` as the critic judges and `watched/win_rate_start` as what is
        watched says, with the difference, `critic/gap`.
        """
        pairs = self._pool.measure(step, self._config.pairs_per_step)
        outcomes, _ = await asyncio.gather(
            outcomes_of(engines, pairs),
            self._compare_with_start(step, engines, baseline.answers, temperature),
        )
        for pair, outcome in zip(pairs, outcomes, strict=True):
            self._window.add(pair, outcome)
        moved = self._gate.update(self._window.agreement, self._window.judged)
        if moved:
            self._say(f"step {step + 1}: {moved}")
        metrics = {**self._window.metrics(), "critic/gate_open": float(self._gate.open)}
        if self._against_start:
            judged, true = (fmean(values) for values in zip(*self._against_start, strict=True))
            metrics["critic/win_rate_start"] = judged
            metrics["watched/win_rate_start"] = true
            metrics["critic/gap"] = judged - true
        return metrics

    async def _compare_with_start(
        self,
        step: int,
        engines: Comparer,
        answers: Sequence[StartingAnswer],
        temperature: float,
    ) -> None:
        known = [each for each in answers if each.watched is not None]
        count = min(STARTING_ANSWERS, len(known))
        chosen = [known[(step * STARTING_ANSWERS + i) % len(known)] for i in range(count)]
        tasks = [start.task for start in chosen]
        groups = await sample_all(engines, tasks, samples=1, temperature=temperature)
        now = [group.episodes[0] for group in groups]
        pairs = [
            Pair(
                prompt=start.task.messages,
                answers=(episode.transcript.response, start.response),
                rubrics=start.task.rubrics,
            )
            for episode, start in zip(now, chosen, strict=True)
        ]
        outcomes = await engines.compare(pairs)
        for episode, start, outcome in zip(now, chosen, outcomes, strict=True):
            value = watched(episode)
            if outcome.preference is not None and value is not None and start.watched is not None:
                self._against_start.append((outcome.preference, _credit(value, start.watched)))


def verified(group: Group) -> list[Verified]:
    """The answers of a group that ended by themselves, with the rewards of their verifiers.

    Where others are mixed in, as of style, they do not say which answer is right; a verifier that
    is only watched does.
    """

    def truth(score: Score) -> float:
        return score.parts.get(verifier, score.watched.get(verifier, score.total))

    verifier = group.task.kind.value
    return [
        Verified(
            response=episode.transcript.response.strip(),  # as answers are ranked
            tokens=len(episode.completion.token_ids),
            reward=truth(episode.score),
        )
        for episode in group.episodes
        if episode.completion.stop_reason is StopReason.stop
    ]


def balanced_pairs(
    config: CalibrationConfig, groups: Sequence[Group], seed: int
) -> tuple[VerifiedPair, ...]:
    """Pairs of verifiable groups in which neither length nor side tells which answer is right."""
    pool = PairPool(replace(config, held_out_percent=0, least_agreement=0.0), seed)
    for group in groups:
        pool.add(0, group.task, verified(group))
    return tuple(drawn.pair for drawn in iter(lambda: pool.draw(0), None))


async def outcomes_of(engines: Comparer, pairs: Sequence[VerifiedPair]) -> list[PairOutcome]:
    """The critic's outcome of each pair; a preference of 1 is for the right answer."""
    return await engines.compare(
        [Pair(prompt=pair.prompt, answers=(pair.right, pair.wrong)) for pair in pairs]
    )


def _credit(value: float, other: float) -> float:
    """1 for the greater, 0.5 for equals."""
    return 0.5 if value == other else float(value > other)
