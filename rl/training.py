"""A run in progress: its folder, its parts, its counters, and what can be done with them."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from rewards.config import RUBRIC
from rewards.plugin import load_plugins
from rewards.task import Task, TaskKind
from rl.batch import Batch
from rl.checkpoint import RunState, checkpoints_in, latest_checkpoint, read_state
from rl.cluster import Cluster
from rl.config import SftConfig, TrainConfig
from rl.critic_baseline import Baseline
from rl.critic_checks import check_critic, check_gate, check_kinds, check_room, pairs_too_old
from rl.critic_rubrics import rubrics_of
from rl.errors import BadInput, bad_input, writing
from rl.evaluate import PassRate, Sampler, rates, sample_all
from rl.learner_spec import LearnerSpec
from rl.length import LengthRecorder, length_shaping
from rl.loop import Course, Loop, Step
from rl.material import Material
from rl.metrics import RESTARTS, MetricsLog, Summary, write_samples
from rl.progress import Display
from rl.prometheus import Progress
from rl.recipe import to_yaml
from rl.remote import RemotePolicy
from rl.rollout_seats import RemoteRollouts
from rl.run_folder import open_run
from rl.save_checkpoint import Checkpoints, Written, shards_written
from rl.self_critique import CritiqueState, SelfCritique
from rl.sft import SupervisedResult, supervised_start
from rl.slow_rewards import SlowRewardLog
from rl.starting_model import check_network, starting_model
from rl.supervision import Restarts
from rl.together import Together
from rl.watching import Watch
from rollout.episode import Group
from rollout.probe import default_tolerance
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream

ANEW = "give the command again"  # there is no checkpoint yet


class Training:
    """A run in progress: its folder, its parts and its counters."""

    def __init__(
        self, config: TrainConfig, display: Display, restarts: Restarts | None = None
    ) -> None:
        """Open the run folder, and find or make the model to start from.

        `restarts`: those of earlier attempts at the same run in this process.
        """
        self.config = config
        self.display = display
        self.restarts = restarts or Restarts(self._say, most=config.cluster.max_restarts)
        with bad_input():
            load_plugins(config.rewards)  # reward workers do it again, minutes later
        self.watch = Watch(config.watch, config.name, self._say)
        with open_run(config) as self.folder:
            self._prepare()

    def _prepare(self) -> None:
        """Find the model to start from, and refuse what cannot work."""
        config, say = self.config, self._say
        self.restarts.keep_in(self.folder.restarts)
        tasks = TaskStream(config.tasks, Split.train)
        held_out = TaskStream(config.tasks, Split.held_out)
        for note in tasks.notes:
            self.display.say(note)
        self.kinds = tasks.kinds | held_out.kinds
        self._ranks = RUBRIC in config.rewards.mixture.get(TaskKind.open.value, {})
        check_kinds(config.rewards, self.kinds)
        if config.rewards.critic is not None:
            names = tasks.rubric_names | held_out.rubric_names
            check_critic(config.rewards.critic, rubrics_of(config.rewards.critic), names)
            check_gate(config.rewards, tasks.kinds)
        self.state = RunState(step=0, rollout_tokens=0, train_seconds=0.0, eval_before={})
        self.resumed_from: Path | None = None
        self._slow_rewards = SlowRewardLog(
            self.display.say, every_s=max(config.rewards.slow_s / 2, 1.0)
        )
        if config.resume:
            self.resumed_from = latest_checkpoint(self.folder.checkpoints, say)
            self.state = read_state(self.resumed_from)
            self.start_checkpoint = self.resumed_from / "model"
        else:
            with writing(self.folder.config, ANEW):
                self.folder.config.write_text(to_yaml(config))
            self.start_checkpoint = starting_model(config, self.folder.start, ANEW)
        self.checkpoints = Checkpoints(
            self.folder.checkpoints, say, keep=config.checkpoint.keep, whole=self.resumed_from
        )
        check_network(config, self.start_checkpoint)
        try:
            renderer = Renderer(self.start_checkpoint)
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.start_checkpoint} has no usable tokenizer: {error}") from error
        self.material = Material(config, tasks, held_out, renderer=renderer, say=say)
        self.material.check()
        self._starting: list[asyncio.Task[Any]] = []
        self.critique = self._self_critique(renderer)
        self.baseline: Baseline | None = None  # of a run with a critic, from before RL
        if self.critique is not None and self.resumed_from is not None:
            self.baseline = Baseline.read(self.folder.baseline)

    def _say(self, line: str) -> None:
        """What may quote the policy, or a path, as it is."""
        self.display.say(escape(line))

    def _self_critique(self, renderer: Renderer) -> SelfCritique | None:
        """What the driver does about it, if the recipe has a critic."""
        rewards, critic = self.config.rewards, self.config.rewards.critic
        if critic is None:
            return None
        rubrics = rubrics_of(critic)
        if critic.endpoint is None:
            check_room(
                critic,
                rubrics,
                lambda messages: len(renderer.prompt_ids(renderer.inert(messages))),
                self.config.engine.max_model_len,
            )
        if old := pairs_too_old(rewards.calibration, self.config.rollout.max_staleness):
            self.display.say(old)
        return SelfCritique(
            rewards,
            rubrics,
            seed=self.config.seed,
            fits=self.material.fits,
            say=self._say,
            state=self.state.critique,
        )

    async def place(self, cluster: Cluster) -> None:
        """Create learner and engines; both load at the same time."""
        config, probe = self.config, self.material.probe()
        self.watch.start(self.folder, self._progress(self.state, {}))
        spec = LearnerSpec.of(config, self.start_checkpoint)
        # Sampling must not repeat itself when a run goes on at a later step.
        draws = self.state.step * config.cluster.rollout_workers
        seed = (config.seed * 1_000_003 + draws) % 2**31
        self._slow_rewards.start(cluster.slow_rewards)
        placing = asyncio.create_task(cluster.place_learner(spec, probe))
        self._placing = asyncio.create_task(
            cluster.place_rollouts(
                self.start_checkpoint, seed=seed, again=self._model_on_disk, learner=placing
            )
        )
        self._starting = [placing, self._placing]
        self._probe = probe
        with self.watch.doing("learner", "learner and reward workers to start"):
            self._learner, _ = await asyncio.gather(placing, cluster.check_rewards(self.kinds))
        if self._learner.note is not None:
            self.display.say(f"QK-Clip is off: {self._learner.note}")
        if self.resumed_from is not None:
            await self.call_learner("resume", self.resumed_from)

    def _progress(self, state: RunState, metrics: Mapping[str, float]) -> Progress:
        """Where the run is, for those who ask over HTTP."""
        return Progress(
            steps=state.step,
            tokens=state.rollout_tokens,
            restarts=self.restarts.total,
            metrics=metrics,
        )

    async def close(self) -> None:
        """Watch the run no more, and let the checkpoint that is being written become whole."""
        self._slow_rewards.stop()
        self.watch.close()
        for task in self._starting:  # it would go on beyond the end of Ray, and start another
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await self.checkpoints.close()

    async def call_learner(self, method: str, *args: Any) -> Any:
        """Call a method of the learner."""
        return await self._learner.call(method, *args)

    async def engines(self) -> RemoteRollouts:
        """The rollout workers, once they are ready."""
        if not self._placing.done():
            self.display.say("waiting for the engines to start")
            with self.watch.doing("engines", "the engines to start"):
                await asyncio.wait([self._placing])
        self.rollouts = await self._placing
        given = self.config.weights.probe_tolerance
        policy = RemotePolicy(
            self._learner,
            self.rollouts,
            self.restarts,
            probe=self._probe,
            tolerance=default_tolerance(self.config.probe_dtype) if given is None else given,
        )
        self.policy = self.watch.policy(policy)
        return self.rollouts

    async def serve(self) -> None:
        """Bring the learner's weights to the engines as the version that the run goes on from."""
        await self.call_learner("set_threads", self.config.policy.threads)
        await self.policy.publish(self.state.step)

    async def supervise(self, batches: list[Batch], learning_rates: list[float]) -> list[float]:
        """Supervised optimiser steps (rl.sft.Pupil)."""
        if self._placing.done():
            self._placing.result()  # engines that did not start are told of now, not at the test
        with self.watch.doing("learner", "supervised steps"):
            return await self.call_learner("supervise", batches, learning_rates)

    async def test(self, step: int) -> PassRate:
        """Pass@1 on the first held-out tasks (rl.sft.Pupil), under weights of negative version."""
        assert self.config.sft is not None
        await self.engines()
        await self.policy.publish(step - self.config.sft.max_steps - 1)
        tasks = self.material.tests(self.config.sft.test_tasks)
        groups = await self._sample(self._engines_for(tasks), tasks, samples=1)
        return rates(groups, ranked=self._ranks)["all"]

    async def supervised_start(self, sft: SftConfig) -> None:
        """Train on worked solutions until the recipe's target; the optimiser forgets them after."""
        self.display.say(f"supervised start: at most {sft.max_steps} steps")
        await self.call_learner("set_threads", sft.threads)
        result = await supervised_start(sft, self.material.supervised, self, self._said_test)
        self.display.say(
            f"supervised start done after {result.steps} steps: pass@1 {result.accuracy}"
        )
        await self.call_learner("reset_optimizer")

    def _said_test(self, result: SupervisedResult) -> None:
        self.display.say(
            f"supervised step {result.steps}: loss {result.loss:.3f}, pass@1 {result.accuracy}"
        )

    async def _sample(self, sampler: Sampler, tasks: Sequence[Task], samples: int) -> list[Group]:
        with self.watch.doing("engines", "held-out tasks"):
            return await sample_all(
                sampler, tasks, samples=samples, temperature=self.config.evaluation.temperature
            )

    def _engines_for(self, tasks: Sequence[Task]) -> Sampler:
        """What draws one group of each held-out task."""
        if self.config.rollout.max_staleness:
            return self.rollouts
        return Together(self.rollouts, len(tasks), self.config.seed)

    async def evaluate(self) -> dict[str, PassRate]:
        """Pass@1 on the held-out tasks of the recipe, and the critic's agreement if it has one."""
        test = self.config.evaluation
        tasks = self.material.tests(test.tasks)
        groups = await self._sample(self._engines_for(tasks), tasks, test.samples)
        return rates(groups, ranked=self._ranks) | await self._agreement(groups)

    async def evaluate_before(self) -> dict[str, PassRate]:
        """The same before RL, and what is kept of it: Toggle's budgets, what to compare with."""
        test = self.config.evaluation
        tasks = self.material.tests(test.tasks)
        recorder = LengthRecorder(self._engines_for(tasks))
        groups = await self._sample(recorder, tasks, test.samples)
        budgets = recorder.budgets(self.config.rewards.length.percentile)
        with writing(self.folder.length_budgets, ANEW):
            self.folder.length_budgets.write_text(json.dumps(budgets, indent=1) + "\n")
        if self.critique is not None:
            self.baseline = await self.critique.start(self.rollouts, groups)
            with writing(self.folder.baseline, ANEW):
                self.baseline.write(self.folder.baseline)
        return rates(groups, ranked=self._ranks) | await self._agreement(groups)

    async def _agreement(self, groups: Sequence[Group]) -> dict[str, PassRate]:
        """How often the critic agrees with the verifiers on held-out tasks."""
        if self.critique is None:
            return {}
        return await self.critique.agreement(self.rollouts, groups, self.baseline)

    async def save(self) -> None:
        """Begin a checkpoint of the run; it is finished while the run goes on."""
        with self.watch.doing("driver", "the checkpoint", f"of step {self.state.step}"):
            await self.checkpoints.save(self.state, self._write_files)

    async def saved(self) -> Path:
        """The checkpoint of where the run is, whole."""
        return await self.checkpoints.complete(self.state, self._write_files)

    async def _write_files(self, folder: Path) -> Written:
        await self.call_learner("save", folder)
        return partial(shards_written, self._learner.shards, folder)

    def _model_on_disk(self) -> Path:
        """What an engine may start from at any time; its weights are sent to it after."""
        places = [self.start_checkpoint, self.folder.checkpoints / "step_0" / "model"]
        places += [each / "model" for each in checkpoints_in(self.folder.checkpoints)]
        return next((each for each in places if (each / "config.json").is_file()), places[0])

    async def reinforce(self, before: Mapping[str, PassRate]) -> Summary:
        """The RL steps, the evaluation after them, and the summary."""
        config = self.config
        started, earlier = time.perf_counter(), self.state
        log = MetricsLog(
            self.folder.root,
            name=config.name,
            mode=config.wandb,
            resume_step=earlier.step,
            say=self._say,
        )

        async def on_step(step: Step) -> None:
            counted = {
                "reward/slow": float(self._slow_rewards.take()),
                RESTARTS: self.restarts.total - log.restarts,  # those of dropped lines too
            }
            if config.watch.timeline:
                self.watch.collect(self.rollouts.spans)  # a worker may be busy
                self.watch.add(await self._learner.spans())
            self.state = RunState(
                step=step.number,
                rollout_tokens=self.state.rollout_tokens + int(step.metrics["rollout/tokens"]),
                train_seconds=earlier.train_seconds + time.perf_counter() - started,
                eval_before=dict(before),
                critique=self.critique.state if self.critique else CritiqueState(),
                journal=step.journal,
            )
            measured = {**step.metrics, **counted}
            measured |= self.watch.step(self._progress(self.state, measured))
            try:
                log.write(step.number, measured)
                await asyncio.to_thread(
                    write_samples, self.folder.samples, step.number, step.groups
                )
            except OSError as error:  # a full disk must not end what is only in memory
                self.display.say(f"WARNING: step {step.number} is not all on the disk: {error}")
            self.display.step(step.number, config.steps, step.metrics)
            due = step.number % config.checkpoint.every == 0 or step.number == config.steps
            if due or self.checkpoints.behind:
                await self.save()
            if step.number < config.steps:
                self.watch.expect_groups(step.number)

        loop = Loop(
            config,
            rollouts=self.watch.rollouts(self.rollouts),
            policy=self.policy,
            course=self._course(),
            start=earlier.step,
            journal=earlier.journal,
        )
        self.watch.expect_groups(earlier.step)
        try:
            await loop.run(on_step)
        finally:
            log.close()
        if self.critique is not None:
            self.display.say(self.critique.describe())
        after = await self.evaluate()
        self.display.table(before, after)
        return self._summary(before, after, await self.saved())

    def _course(self) -> Course:
        """What the RL steps ask, imitate, reward and measure."""
        length, critique, material = self.config.rewards.length, self.critique, self.material
        budgets, tasks = self.folder.length_budgets, self.config.tasks
        shape = length_shaping(length, budgets, tasks, self._say).shape
        if critique is None:
            return Course(
                task_at=lambda at, step: material.task_at(at), ptx_at=material.ptx_at, shape=shape
            )
        baseline = self.baseline
        assert baseline is not None, "measured before RL, or read by a run that goes on"
        temperature = self.config.evaluation.temperature
        return Course(
            task_at=lambda at, step: critique.task(at, step, material.task_at(at)),
            ptx_at=material.ptx_at,
            observe=critique.observe,  # pairs are of verifiers' rewards, before length changes them
            shape=shape,
            measure=self.watch.measuring(
                lambda step: critique.measure(step, self.rollouts, baseline, temperature)
            ),
        )

    def _summary(
        self, before: Mapping[str, PassRate], after: Mapping[str, PassRate], checkpoint: Path
    ) -> Summary:
        state = self.state
        return Summary(
            steps=state.step,
            wall_seconds=state.train_seconds,
            rollout_tokens=state.rollout_tokens,
            tokens_per_second=state.rollout_tokens / max(state.train_seconds, 1e-9),
            eval_before={name: rate.value for name, rate in before.items() if rate.tasks},
            eval_after={name: rate.value for name, rate in after.items() if rate.tasks},
            restarts=self.restarts.total,
            restarts_by_part=dict(self.restarts.counts),
            checkpoint=str(checkpoint),
        )
