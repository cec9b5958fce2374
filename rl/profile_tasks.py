"""Measures how hard the training tasks are for a model, and writes those worth training on.

Interrupted, the same command goes on with the tasks that are missing.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from rewards.plugin import load_plugins
from rewards.task import Task, TaskKind
from rl.checkpoint import latest_checkpoint
from rl.cluster import Cluster
from rl.config import TrainConfig
from rl.difficulty import (
    BARS,
    Shares,
    TaskProfile,
    Verdict,
    guessable,
    histogram,
    profile_of,
    shares,
    with_guesses,
)
from rl.errors import BadInput, RunFailed, bad_input
from rl.evaluate import Sampler
from rl.material import prompt_tokens
from rl.profile_files import ProfileFiles
from rl.progress import Display
from rl.recipe import from_run, load_recipe
from rl.run_folder import RunFolder
from rl.train import sft
from rollout.problem import user_turn
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream
from rollout.worked import boxed

GUESSES = 8  # tries without reasoning (K1.5 sec. 2.1)
GUESS_PROMPT = r"Do not reason. Give nothing but the final answer in \boxed{}."
GUESS_MARGIN = 4  # tokens beside the bare box: too few to reason in
UNDER_WAY = 64  # groups asked of the engines at a time
LOOKED_AT = 20  # positions of the stream for every task asked for: rows come again every epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What was asked for."""

    out: Path
    samples: int = 10  # of a task (K1.5 sec. 2.1)
    tasks: int = 256
    keep: tuple[float, float] = (0.1, 0.9)  # pass rates of moderate difficulty, ends included

    def __post_init__(self) -> None:
        """Raise `BadInput` for what cannot be measured or written."""
        if self.samples < 1 or self.tasks < 1:
            raise BadInput("--samples and --tasks must be at least 1")
        if not 0.0 <= self.keep[0] <= self.keep[1] <= 1.0:
            raise BadInput(f"--keep takes two pass rates in order, in [0, 1]; got {self.keep}")
        if self.out.suffix != ".jsonl":
            raise BadInput(f"--out must name a file that ends in .jsonl, got {self.out}")
        if not self.out.absolute().parent.is_dir():
            raise BadInput(f"--out={self.out}: make its folder first")
        files = ProfileFiles(self.out)
        for path in (files.tasks, files.partial, files.profile, files.plot):
            if path.is_dir():
                raise BadInput(f"--out={self.out}: {path} is a folder; choose another name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummary:
    """What was found."""

    tasks: int  # sampled
    kept: int
    histogram: list[int]  # tasks by pass rate, in tenths
    families: dict[str, Shares]  # "all" and by name
    verdicts: dict[str, int]  # what became of how many; see `candidates` for those not sampled
    files: list[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A distinct task of the stream, and the question that decides its split."""

    task: Task
    question: str


def load_target(target: str, overrides: Sequence[str]) -> TrainConfig:
    """The recipe, or that of a run folder with its last checkpoint as the model."""
    if Path(target).is_dir():
        folder = RunFolder(Path(target).absolute())
        config = from_run(folder.root, overrides)
        config.policy.path = str(latest_checkpoint(folder.checkpoints) / "model")
    else:
        config = load_recipe(target, overrides)
    config.resume = False
    if not any(override.startswith("run_dir=") for override in overrides):
        config.run_dir, config.name = None, config.name + "-profile"
    return config


def profile_tasks(
    config: TrainConfig, settings: ProfileSettings, display: Display
) -> ProfileSummary:
    """Sample, score and sort the training tasks; see `ProfileFiles` for what is written.

    A recipe without a checkpoint is measured after its supervised start, which is made first.
    """
    with bad_input():
        load_plugins(config.rewards)  # reward workers do it again, minutes later
    if config.policy.path is None:
        if config.sft is None:
            raise BadInput(
                "policy.path is missing: name the checkpoint to measure, or a run folder"
            )
        config.policy.path = str(sft(config, display))
    try:
        renderer = Renderer(config.policy.path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"policy.path={config.policy.path} has no usable tokenizer: {error}"
        ) from error
    stream = TaskStream(config.tasks, Split.train)
    for note in stream.notes:
        display.say(note)
    longest = config.engine.max_model_len
    chosen, dropped = candidates(stream, settings.tasks, lambda task: fits(task, renderer, longest))
    if len(chosen) < settings.tasks:
        display.say(f"{len(chosen)} distinct tasks to sample; {settings.tasks} were asked for")
    files = ProfileFiles(settings.out)
    job = _Job(config, settings, renderer, files, display)
    profiles = job.run(chosen)
    kept = [(c.task, c.question) for c, p in zip(chosen, profiles, strict=True) if p.kept]
    files.write(kept, profiles)
    fates = Counter(dropped) + Counter(each.verdict for each in profiles)
    summary = ProfileSummary(
        tasks=len(profiles),
        kept=len(kept),
        histogram=histogram(profiles),
        families=shares(profiles, config.rollout.samples_per_group),
        verdicts={verdict.value: fates[verdict] for verdict in Verdict if fates[verdict]},
        files=[str(files.tasks), str(files.profile), str(files.plot)],
    )
    _show(summary, min(config.rollout.samples_per_group, settings.samples), display)
    return summary


def candidates(
    stream: TaskStream, count: int, fits: Callable[[Task], bool]
) -> tuple[list[Candidate], list[Verdict]]:
    """The first `count` distinct tasks that fit the engines and are not easy to hack.

    And why the others are left out.
    """
    chosen: list[Candidate] = []
    dropped: list[Verdict] = []
    seen: set[str] = set()
    for position in range(count * LOOKED_AT):
        if len(chosen) == count:
            break
        question = stream.problem(position)[1].question
        if question in seen:
            continue
        seen.add(question)
        task = stream.at(position)
        rule = guessable(task) if fits(task) else Verdict.too_long
        if rule is None:
            chosen.append(Candidate(task, question))
        else:
            dropped.append(rule)
    return chosen, dropped


def fits(task: Task, renderer: Renderer, longest: int) -> bool:
    """Whether the engines take all that they are asked of a task: `longest` tokens."""
    asked = [task, guess_task(task, renderer)] if task.kind is TaskKind.math else [task]
    return all(prompt_tokens(each, renderer) + each.token_budget <= longest for each in asked)


def guess_task(task: Task, renderer: Renderer) -> Task:
    """The task, to be answered without reasoning: told so, and with no room for it."""
    *earlier, last = task.messages
    messages = (*earlier, *user_turn(last.content, GUESS_PROMPT))
    _, answer = renderer.training_ids(messages, boxed(task.reference))
    budget = min(task.token_budget, len(answer) + GUESS_MARGIN)
    return replace(task, id=f"{task.id}/guess", messages=messages, token_budget=budget)


class _Job:
    """The sampling of one call."""

    def __init__(
        self,
        config: TrainConfig,
        settings: ProfileSettings,
        renderer: Renderer,
        files: ProfileFiles,
        display: Display,
    ) -> None:
        assert config.policy.path is not None
        self._config, self._settings, self._renderer = config, settings, renderer
        self._files, self._display = files, display
        self._checkpoint = Path(config.policy.path).absolute()
        self._temperature = config.rollout.temperature_start
        # What the rows of an earlier run must have in common with ours.
        self._record: dict[str, Any] = {
            "model": str(self._checkpoint),
            "temperature": self._temperature,
            "asked_samples": settings.samples,
            "keep": list(settings.keep),
            "rewards": config.rewards.mixture,
            "budgets": [
                *asdict(config.tasks.token_budgets).values(),
                *(family.token_budget for family in config.tasks.families),
            ],
        }

    def run(self, chosen: Sequence[Candidate]) -> list[TaskProfile]:
        """The profiles of all, in order; those of an earlier run are not measured again."""
        known = self._files.read(self._record)
        missing = [c for c in chosen if (c.task.id, c.question) not in known]
        if len(missing) < len(chosen):
            self._display.say(f"{len(chosen) - len(missing)} tasks were measured before")
        if missing:
            try:
                asyncio.run(self._measure_all(missing, known))
            except (KeyboardInterrupt, asyncio.CancelledError) as stop:
                raise RunFailed("stopped; the same command goes on with what is missing") from stop
        return [known[c.task.id, c.question] for c in chosen]

    async def _measure_all(
        self, missing: Sequence[Candidate], known: dict[tuple[str, str], TaskProfile]
    ) -> None:
        """Fill `known`, and the file with it."""
        cluster = Cluster(self._config)
        whole = asyncio.current_task()
        assert whole is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)
        try:
            await cluster.check_rewards({each.task.kind for each in missing})
            sampler = await cluster.place_rollouts(self._checkpoint, seed=self._config.seed)
            self._display.say(f"{len(missing)} tasks, {self._settings.samples} samples each")
            slots = asyncio.Semaphore(UNDER_WAY)
            said = max(len(missing) // 10, 1)
            jobs = [asyncio.create_task(self._measure(sampler, c, slots)) for c in missing]
            try:
                for done, job in enumerate(asyncio.as_completed(jobs), start=1):
                    candidate, profile = await job
                    known[candidate.task.id, candidate.question] = profile
                    self._files.append(profile, self._record)
                    if done % said == 0:
                        self._display.say(f"measured {done}/{len(missing)}")
            finally:
                for unfinished in jobs:
                    unfinished.cancel()
        finally:
            await cluster.shutdown()

    async def _measure(
        self, sampler: Sampler, candidate: Candidate, slots: asyncio.Semaphore
    ) -> tuple[Candidate, TaskProfile]:
        async with slots:
            task, hot = candidate.task, self._temperature
            group = await sampler.sample(
                task, samples=self._settings.samples, temperature=hot, rank=False
            )
            profile = profile_of(group, candidate.question, self._settings.keep)
            if profile.kept and task.kind is TaskKind.math:
                bare = guess_task(task, self._renderer)
                guesses = await sampler.sample(bare, samples=GUESSES, temperature=hot)
                profile = with_guesses(profile, guesses)
            return candidate, profile


def _show(summary: ProfileSummary, group_size: int, display: Display) -> None:
    table = Table(title="How often the model solves the training tasks")
    table.add_column("family", no_wrap=True)
    for column in ("tasks", "pass", "all 0", "all 1", "mixed", f"mixed, K={group_size}", "kept"):
        table.add_column(column, justify="right")
    for name, row in summary.families.items():
        numbers = (row.pass_rate, row.all_wrong, row.all_right, row.mixed, row.mixed_in_training)
        table.add_row(name, str(row.tasks), *(f"{n:.3f}" for n in numbers), str(row.kept))
    display.console.print(table)
    most = max([*summary.histogram, 1])
    for bar, count in enumerate(summary.histogram):
        drawn = "█" * round(40 * count / most)
        display.console.print(f"{bar / BARS:.1f}-{(bar + 1) / BARS:.1f} {count:>6} {drawn}")
    fates = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
    display.say(fates or "no tasks")
    for what, path in zip(("tasks", "profile", "plot"), summary.files, strict=True):
        display.say(f"{what:<10} {path}")
