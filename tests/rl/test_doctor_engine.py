"""What the doctor makes of engine and learner, with fakes: the real pair is examined by hand."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from model.config import MuonClipConfig, Schedule, ScheduleConfig
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch
from rl.config import PolicyConfig, SftConfig, TrainConfig, WatchConfig
from rl.doctor import Agreement, Finding, Told, Verdict
from rl.doctor_engine import LEARNING_RATE, _compare, throwaway
from rl.training import Training
from rollout.config import Dtype, EngineConfig
from rollout.episode import Completion, Episode, Group, StopReason


class Rollouts:
    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        assert temperature == 1.0, "the temperature at which fixed prompts are compared"
        episode = Episode(
            completion=Completion(
                prompt_ids=[1, 2],
                token_ids=[5, 6],
                logprobs=[-1.0, -1.0],
                versions=[0, 0],
                stop_reason=StopReason.stop,
                temperature=temperature,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=2, truncated=False
            ),
            score=Score(total=0.0),
        )
        return Group(task=task, episodes=(episode,) * samples)


class Policy:
    """Answers with what it was made of: by publication, and by update."""

    def __init__(self, probes: Sequence[float], mismatches: Sequence[float]) -> None:
        self.probes, self.mismatches = list(probes), list(mismatches)
        self.advantages: set[float] = set()

    async def publish(self, version: int) -> dict[str, float]:
        mean = self.probes.pop(0)
        return {"probe/abs_logprob": mean, "probe/max_abs_logprob": 3 * mean}

    async def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        (batch,) = minibatches
        self.advantages |= set(batch.advantages.tolist())
        mean = self.mismatches.pop(0)
        return {"mismatch/abs_logprob": mean, "mismatch/max_abs_logprob": 4 * mean}


class Tasks:
    def tests(self, count: int) -> list[Task]:
        return [
            Task(
                id=f"t/{position}",
                kind=TaskKind.math,
                messages=(Message(role="user", content="?"),),
                reference="1",
                token_budget=4,
            )
            for position in range(count)
        ]


class FakeTraining:
    def __init__(self, config: TrainConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        self.rollouts, self.material = Rollouts(), Tasks()
        self.compared = {False: 0.02, True: 0.004}  # without and with the engine's experts
        self.recorded = True

    async def engines(self) -> Rollouts:
        return self.rollouts

    async def call_learner(self, method: str, batch: Batch, replay: bool) -> dict[str, float]:
        assert method == "compare"
        mean = self.compared[replay]
        found = {"mismatch/abs_logprob": mean, "mismatch/max_abs_logprob": 10 * mean}
        return found | ({"mismatch/experts": 0.03 - 0.01 * replay} if self.recorded else {})


def _told(probes: Sequence[float], mismatches: Sequence[float]) -> tuple[list[Told], Policy]:
    config = TrainConfig(
        engine=EngineConfig(dtype=Dtype.float32), policy=PolicyConfig(dtype=Dtype.bfloat16)
    )
    told: list[Told] = []
    policy = Policy(probes, mismatches)
    training = cast(Training, FakeTraining(config, policy))
    asyncio.run(asyncio.wait_for(_compare(training, told.append), 30))
    return told, policy


def test_engine_and_learner_that_agree() -> None:
    told, policy = _told([1e-6, 2e-6], [4e-3, 0.3])
    assert [each.agrees for each in told if isinstance(each, Agreement)] == [True] * 3
    assert told[1] == Agreement(
        tokens="fixed prompts, first weights", mean=1e-6, largest=3e-6, tolerance=1e-3
    )
    assert told[2] == Agreement(
        tokens="sampled, first weights", mean=4e-3, largest=16e-3, tolerance=3e-2
    )
    findings = [each for each in told if isinstance(each, Finding)]
    assert [each.verdict for each in findings] == [Verdict.ok, Verdict.ok]
    assert findings[1].found == "taken; it moved log-probs by 0.3 nats on average"
    assert policy.advantages == {-0.5, 0.5}, "the learner has something to learn"


def test_an_engine_that_keeps_its_old_weights_differs() -> None:
    told, _ = _told([1e-6, 0.04], [4e-3, 0.3])
    assert [each.agrees for each in told if isinstance(each, Agreement)] == [True, True, False]


def test_an_update_too_small_to_prove_anything_is_told_of() -> None:
    told, _ = _told([1e-6, 1e-6], [4e-3, 1.5e-3])
    assert isinstance(told[-1], Finding) and told[-1].verdict is Verdict.warning


@pytest.mark.parametrize(("replayed", "verdict"), [(0.004, Verdict.ok), (0.2, Verdict.fail)])
def test_routing_replay_is_compared_with_the_learners_own_experts(
    replayed: float, verdict: Verdict
) -> None:
    config = TrainConfig(engine=EngineConfig(routing_replay=True))
    training = FakeTraining(config, Policy([1e-3, 1e-3], [4e-3, 0.3]))
    training.compared[True] = replayed
    told: list[Told] = []
    asyncio.run(asyncio.wait_for(_compare(cast(Training, training), told.append), 30))
    (finding,) = (t for t in told if isinstance(t, Finding) and t.check == "routing replay")
    assert finding.verdict is verdict
    assert finding.found == (
        f"|log-prob: engine - learner| is {replayed:.2g} nats on average, at most "
        f"{10 * replayed:.2g}; with the learner's own experts 0.02, at most 0.2; 3.00% of the "
        "engine's choices are not its own"
    )


def test_an_engine_that_records_no_experts_is_told_of() -> None:
    config = TrainConfig(engine=EngineConfig(routing_replay=True))
    training = FakeTraining(config, Policy([1e-3, 1e-3], [4e-3, 0.3]))
    training.recorded = False
    told: list[Told] = []
    asyncio.run(asyncio.wait_for(_compare(cast(Training, training), told.append), 30))
    (finding,) = (t for t in told if isinstance(t, Finding) and t.check == "routing replay")
    assert (finding.verdict, finding.found) == (Verdict.fail, "the engine recorded no experts")
    assert isinstance(told[-1], Finding) and told[-1].check == "weight update", "it goes on"


@pytest.mark.parametrize("resume", [False, True])
def test_a_recipe_is_looked_at_without_its_costs_and_consequences(resume: bool) -> None:
    config = TrainConfig(
        resume=resume,
        run_dir="mine",
        sft=SftConfig(),
        watch=WatchConfig(metrics_port=9911),
        schedule=ScheduleConfig(kind=Schedule.wsd, warmup_steps=100),
        optimizer=MuonClipConfig(learning_rate=1e-6),
    )
    once = throwaway(config)
    assert (once.resume, once.sft, once.watch.metrics_port) == (False, None, None)
    assert once.schedule == ScheduleConfig()
    assert once.optimizer.learning_rate == LEARNING_RATE
    assert once.cluster.max_restarts == 0
    assert once.run_dir == "mine"
