"""One run from recipe to report, as the commands call it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.markup import escape

from rl.checkpoint import checkpoints_in, stopped
from rl.cluster import Cluster
from rl.config import TrainConfig
from rl.errors import BadInput, PartLost, writing
from rl.evaluate import PassRate
from rl.metrics import Summary
from rl.progress import Display
from rl.recipe import changes, from_run, to_yaml
from rl.report import write_report
from rl.run_folder import RunFolder, run_root
from rl.self_critique import CritiqueState
from rl.training import Training

Result = TypeVar("Result")


def train(config: TrainConfig, display: Display, lost: Sequence[str] = ()) -> Summary:
    """Supervised start (if the recipe has one), RL, evaluation before and after, report.

    `lost`: why drivers before this one have ended since the checkpoint that it goes on from.
    """
    training, summary = run_parts(config, display, _reinforce, lost)
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
    _, checkpoint = run_parts(config, display, _supervise)
    display.say(f"checkpoint {checkpoint}")
    return checkpoint


def evaluate(config: TrainConfig, display: Display) -> dict[str, PassRate]:
    """Held-out pass@1 of the recipe's model."""
    _, rates = run_parts(config, display, _evaluate)
    return rates


async def _reinforce(training: Training) -> Summary:
    if training.resumed_from is not None:
        _keep_recipe(training)
    await _start(training)
    before = training.state.eval_before
    if not training.state.step and not before:
        before = await training.evaluate_before()
        training.display.say(f"before RL: pass@1 {before['all']}")
        critique = training.critique.state if training.critique else CritiqueState()
        training.state = replace(training.state, eval_before=dict(before), critique=critique)
        await training.save()
    return await training.reinforce(before)


def _keep_recipe(training: Training) -> None:
    """Say how the recipe of a run that goes on differs from the one so far, and keep it."""
    now, config = replace(training.config, resume=False), training.folder.config
    before = from_run(training.folder.root, [])
    began, named = before.policy.path, now.policy.path
    if named is not None and (began is None or Path(named).absolute() != Path(began).absolute()):
        raise BadInput(
            f"policy.path={named}: this run goes on from its own checkpoint, and began with "
            f"{began or 'the tiny model'}; leave it out, or train into another run_dir"
        )
    now = replace(now, policy=replace(now.policy, path=began))
    if training.state.step >= now.steps:
        done = training.state.step
        training.display.say(f"the run has {done} steps already: none is left of {now.steps}")
    for change in changes(before, now):
        training.display.say(escape(f"resuming with another {change}"))
    beside = config.with_suffix(".partial")
    with writing(config):
        beside.write_text(to_yaml(now))
        beside.replace(config)


async def _supervise(training: Training) -> Path:
    await _start(training)
    return await training.saved() / "model"


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
    training.restarts.run_back()


def run_parts(
    config: TrainConfig,
    display: Display,
    work: Callable[[Training], Awaitable[Result]],
    lost: Sequence[str] = (),
) -> tuple[Training, Result]:
    """Do `work`; from the last checkpoint once more if the run's state is lost on the way.

    Rollout and reward workers are replaced while a run goes on. A learner shard takes the state of
    all with it: everything is put away and started again, as a person would with resume=true.
    `lost`: why drivers before this one have ended.
    """

    async def main() -> tuple[Training, Result]:
        _end_on_sigterm()
        training = Training(config, display)
        display.say(f"run folder {training.folder.root}")
        for why in lost:
            training.restarts.driver_lost(why)
        while True:
            await asyncio.sleep(0)  # hear of a stop before anything is started
            try:
                return training, await _attempt(training, work)
            except PartLost as error:
                training.restarts.run_lost(error.part, error.why)
            resume = config.resume or bool(checkpoints_in(training.folder.checkpoints))
            display.say(
                f"starting again from {'the last checkpoint' if resume else 'the beginning'}"
            )
            training = Training(replace(config, resume=resume), display, training.restarts)

    try:
        return asyncio.run(main())
    # SystemExit: what Ray's own handler makes of SIGTERM while Ray starts.
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError) as stop:
        raise stopped(RunFolder(run_root(config)).checkpoints) from stop


def _end_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: all is put away."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _attempt(training: Training, work: Callable[[Training], Awaitable[Result]]) -> Result:
    """Start a cluster, do `work`, and put everything away, whatever happens."""
    try:
        cluster = Cluster(training.config, training.restarts)
    except BaseException:
        await training.close()
        raise
    _end_on_sigterm()  # again: Ray has installed a handler of its own, which leaves engines behind
    try:
        await training.place(cluster)
        return await _unless(cluster.failed(), work(training))
    finally:
        try:
            await training.close()
        finally:
            await cluster.shutdown()


async def _unless(failure: Awaitable[None], work: Awaitable[Result]) -> Result:
    """What the work returns; what `failure` raises as soon as it does.

    The work may wait for the learner alone for an hour, and Ray ends who has lost its head sooner.
    """
    working, failing = asyncio.ensure_future(work), asyncio.ensure_future(failure)
    try:
        await asyncio.wait((working, failing), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            failing.result()
        return working.result()
    finally:
        working.cancel()
        failing.cancel()
        await asyncio.gather(working, failing, return_exceptions=True)
