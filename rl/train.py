"""One run from recipe to report, as the commands call it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from rl.cluster import Cluster
from rl.config import TrainConfig
from rl.errors import BadInput, RunFailed
from rl.evaluate import PassRate
from rl.metrics import Summary
from rl.progress import Display
from rl.report import write_report
from rl.training import Training

Result = TypeVar("Result")


def train(config: TrainConfig, display: Display) -> Summary:
    """Supervised start (if the recipe has one), RL, evaluation before and after, report."""
    training, summary = _run(config, display, _reinforce)
    folder = training.folder
    summary.write(folder.summary)
    write_report(folder)
    for what, path in (
        ("report", folder.report),
        ("plot", folder.plot),
        ("metrics", folder.metrics),
        ("samples", folder.samples),
        ("checkpoint", Path(summary.checkpoint)),
    ):
        display.say(f"{what:<10} {path}")
    return summary


def sft(config: TrainConfig, display: Display) -> Path:
    """The supervised start alone; returns the checkpoint that `policy.path` accepts."""
    if config.sft is None:
        raise BadInput(f"recipe {config.name} has no section sft: nothing to train on")
    _, checkpoint = _run(config, display, _supervise)
    display.say(f"checkpoint {checkpoint}")
    return checkpoint


def evaluate(config: TrainConfig, display: Display) -> dict[str, PassRate]:
    """Held-out pass@1 of the recipe's model."""
    _, rates = _run(config, display, _evaluate)
    return rates


async def _reinforce(training: Training) -> Summary:
    await _start(training)
    if training.resumed_from is not None:
        before = training.state.eval_before
    else:
        before = await training.evaluate_before()
        training.display.say(f"before RL: pass@1 {before['all']}")
        await training.save(training.state)
    return await training.reinforce(before)


async def _supervise(training: Training) -> Path:
    await _start(training)
    return await training.save(training.state) / "model"


async def _evaluate(training: Training) -> dict[str, PassRate]:
    await _start(training)
    return await training.evaluate()


async def _start(training: Training) -> None:
    """Bring learner and engines to the weights that the run goes on from."""
    sft = training.config.sft
    if sft is not None and training.resumed_from is None:
        await training.supervised_start(sft)
    await training.engines()
    await training.serve()


def _run(
    config: TrainConfig, display: Display, work: Callable[[Training], Awaitable[Result]]
) -> tuple[Training, Result]:
    """Open the run, start its cluster, do `work`, and put everything away, whatever happens."""

    async def main() -> tuple[Training, Result]:
        training = Training(config, display)
        display.say(f"run folder {training.folder.root}")
        cluster = Cluster(config)
        task = asyncio.current_task()
        assert task is not None
        # After Ray has started: it installs a handler of its own, which would leave engines behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await training.place(cluster)
            return training, await work(training)
        finally:
            training.close()
            await cluster.shutdown()

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError) as stop:
        raise RunFailed("stopped; go on from the last checkpoint with resume=true") from stop
