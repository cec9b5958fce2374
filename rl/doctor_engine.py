"""Checks that start processes: Ray, and the engine and the learner of a recipe."""

import asyncio
import math
from dataclasses import replace

from rich.console import Console

from model.config import ScheduleConfig
from rewards.task import TaskKind
from rl.batch import Batch, pack
from rl.cluster import Cluster
from rl.config import ClusterConfig, TrainConfig, WandbMode, WatchConfig
from rl.doctor import Agreement, Finding, Tell, Verdict, fine
from rl.evaluate import sample_all
from rl.progress import Display
from rl.sample import samples_of
from rl.train import run_parts
from rl.training import Training
from rollout.probe import default_tolerance

TASKS, SAMPLES = 8, 4
LEARNING_RATE = 2e-3  # large, so that old weights in an engine show; nothing of it is kept


def examine_ray(tell: Tell, config: ClusterConfig) -> None:
    """Ray starts, or answers, and a reward worker in it scores."""

    async def main() -> None:
        cluster = Cluster(TrainConfig(cluster=config))
        try:
            await cluster.check_rewards([TaskKind.math])
        finally:
            await cluster.shutdown()

    asyncio.run(main())
    where = f"joined {config.ray_address}" if config.ray_address else "starts here"
    tell(fine("ray", f"{where}; a reward worker answers"))


def examine_recipe(tell: Tell, config: TrainConfig) -> None:
    """The recipe's engines and learner start, take weights, and agree on log-probs."""
    once = throwaway(config)
    run_parts(once, Display(Console(quiet=True)), lambda training: _compare(training, tell))


def throwaway(config: TrainConfig) -> TrainConfig:
    """The recipe for one look at its parts: nothing is resumed, reported or kept."""
    return replace(
        config,
        resume=False,
        sft=None,
        wandb=WandbMode.disabled,
        watch=WatchConfig(timeline=False),
        cluster=replace(config.cluster, max_restarts=0),
        schedule=ScheduleConfig(),
        optimizer=replace(config.optimizer, learning_rate=LEARNING_RATE),
        # The doctor judges for itself, and goes on after a verdict.
        weights=replace(config.weights, probe_tolerance=math.inf),
    )


async def _compare(training: Training, tell: Tell) -> None:
    """Two versions of the weights: log-probs of fixed prompts, and of what was sampled."""
    await training.engines()
    tell(fine("engine and learner", "both start"))
    config = training.config
    fixed = default_tolerance(config.probe_dtype)
    sampled = max(fixed, default_tolerance(config.policy.dtype))
    served = await training.policy.publish(0)
    tell(_agreement("fixed prompts, first weights", served, "probe/", fixed))
    batch = await _sample(training)
    if config.engine.routing_replay:
        without = await training.call_learner("compare", batch, False)
        replayed = await training.call_learner("compare", batch, True)
        tell(_replay(without, replayed, sampled))
    seen = await training.policy.update([batch], [])
    tell(_agreement("sampled, first weights", seen, "mismatch/", sampled))
    served = await training.policy.publish(1)
    tell(_agreement("fixed prompts, after an update", served, "probe/", fixed))
    moved = (await training.policy.update([batch], []))["mismatch/abs_logprob"]
    tell(_moved(moved, fixed))


async def _sample(training: Training) -> Batch:
    """Completions of held-out tasks, with rewards that make the learner move."""
    tasks = training.material.tests(TASKS)
    groups = await sample_all(training.rollouts, tasks, samples=SAMPLES, temperature=1.0)
    rewards = [float(place % 2) for place in range(SAMPLES)]
    return pack([s for group in groups for s in samples_of(group, rewards, oldest=0)])


def _agreement(tokens: str, metrics: dict[str, float], prefix: str, tolerance: float) -> Agreement:
    return Agreement(
        tokens=tokens,
        mean=metrics[f"{prefix}abs_logprob"],
        largest=metrics[f"{prefix}max_abs_logprob"],
        tolerance=tolerance,
    )


def _replay(without: dict[str, float], replayed: dict[str, float], tolerance: float) -> Finding:
    """What the engine's experts change of the difference on the same tokens."""
    if "mismatch/experts" not in without:
        return Finding(
            check="routing replay",
            verdict=Verdict.fail,
            found="the engine recorded no experts",
            advice="engine.routing_replay=false, or a network with routed experts",
        )
    before, after = (each["mismatch/abs_logprob"] for each in (without, replayed))
    most = [each["mismatch/max_abs_logprob"] for each in (without, replayed)]
    found = (
        f"|log-prob: engine - learner| is {after:.2g} nats on average, at most {most[1]:.2g}; with "
        f"the learner's own experts {before:.2g}, at most {most[0]:.2g}; "
        f"{without['mismatch/experts']:.2%} of the engine's choices are not its own"
    )
    if after <= max(before, tolerance):
        return fine("routing replay", found)
    return Finding(
        check="routing replay",
        verdict=Verdict.fail,
        found=found,
        advice="the engine's experts are not those of these tokens: engine.routing_replay=false, "
        "and please report it",
    )


def _moved(moved: float, tolerance: float) -> Finding:
    """Whether the update was large enough for its comparison to mean something."""
    found = f"taken; it moved log-probs by {moved:.3g} nats on average"
    if moved > 2 * tolerance:
        return fine("weight update", found)
    return Finding(
        check="weight update",
        verdict=Verdict.warning,
        found=found,
        advice="too little for an engine with the old weights to be told from one with the new",
    )
