"""The log of a run's steps when wandb dies, the disk is full, or the run goes back."""

import asyncio
import errno
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import wandb
from rich.console import Console
from rich.markup import escape

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch
from rl.checkpoint import RunState
from rl.config import CheckpointConfig, RolloutConfig, TrainConfig, WandbMode, WatchConfig
from rl.errors import PartLost, RunFailed
from rl.loop import Course
from rl.metrics import MetricsLog, Summary, read_metrics, write_samples
from rl.progress import Display
from rl.report import write_report
from rl.run_folder import RunFolder
from rl.supervision import Restarts
from rl.training import Training
from rl.watching import Watch
from rollout.episode import Completion, Episode, Group, StopReason

STEPS = 4


def _task(position: int, step: int) -> Task:
    question = (Message(role="user", content="?"),)
    return Task(
        id=str(position), kind=TaskKind.math, messages=question, reference="1", token_budget=4
    )


class Engines:
    """Rollouts that are there at once, and a learner that does what `at` says in a step."""

    def __init__(self, first: int, at: dict[int, Callable[[], None]]) -> None:
        self.version, self._step, self._at = first, first, at

    async def sample(self, task: Task, *, samples: int, **_: Any) -> Group:
        episode = Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[2, 3],
                logprobs=[-1.0, -1.0],
                versions=[self.version] * 2,
                stop_reason=StopReason.stop,
                temperature=1.0,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=2, truncated=False
            ),
            score=Score(total=1.0),
        )
        return Group(task=task, episodes=(episode,) * samples)

    async def busy_seconds(self) -> float:
        return 0.0

    async def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        self._step += 1
        self._at.get(self._step, lambda: None)()
        return {"objective/loss": 0.0}

    async def publish(self, version: int) -> dict[str, float]:
        self.version = version
        return {"time/sync": 0.0}


class Run:
    """A run folder, and the RL steps into it: `Training.reinforce` without any other process."""

    def __init__(self, root: Path, *, wandb: WandbMode = WandbMode.disabled) -> None:
        self.config = TrainConfig(
            run_dir=str(root),
            steps=STEPS,
            wandb=wandb,
            rollout=RolloutConfig(groups_per_step=4, samples_per_group=2),
            watch=WatchConfig(timeline=False),
            checkpoint=CheckpointConfig(every=100),
        )
        self.folder = RunFolder(root)
        self.output = io.StringIO()
        self.restarts = self.new_restarts()

    def new_restarts(self) -> Restarts:
        restarts = Restarts(lambda line: None, most=3)
        restarts.keep_in(self.folder.restarts)
        return restarts

    def go(self, *, start: int = 0, at: dict[int, Callable[[], None]] | None = None) -> str:
        engines, watch = Engines(start, at or {}), Watch(self.config.watch, "x", print)

        async def done() -> Any:
            return {}

        display = Display(Console(file=self.output, width=400))
        training = SimpleNamespace(
            config=self.config,
            display=display,
            folder=self.folder,
            restarts=self.restarts,
            watch=watch,
            rollouts=engines,
            policy=engines,
            state=RunState(step=start, rollout_tokens=0, train_seconds=0.0, eval_before={}),
            critique=None,
            checkpoints=SimpleNamespace(behind=False),
            save=done,
            saved=done,
            evaluate=done,
            _say=lambda line: display.say(escape(line)),
            _slow_rewards=SimpleNamespace(take=lambda: 0),
            _course=lambda: Course(task_at=_task),
            _progress=lambda state, metrics: None,
            _summary=lambda *_: "summary",
        )
        try:
            return asyncio.run(Training.reinforce(training, {}))
        finally:
            watch.close()

    def rows(self) -> list[dict[str, float]]:
        return read_metrics(self.folder.metrics)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def _steps(path: Path) -> list[float]:
    return [row["step"] for row in read_metrics(path)]


def _wandb() -> list[psutil.Process]:
    """Its process that takes the metrics, and the one that looks at the machine."""
    return [each for each in psutil.Process().children(recursive=True) if "wandb" in each.name()]


def _kill_wandb() -> None:
    ended = _wandb()
    assert ended
    for each in ended:
        each.kill()
    psutil.wait_procs(ended, timeout=10)


@pytest.mark.parametrize("then_lost", [False, True])
def test_a_run_goes_on_without_a_wandb_that_was_killed(tmp_path: Path, then_lost: bool) -> None:
    def lose() -> None:
        if then_lost:
            raise PartLost("learner shard 0", "killed")

    run = Run(tmp_path, wandb=WandbMode.offline)
    if then_lost:
        with pytest.raises(PartLost, match="learner shard 0"):
            run.go(at={2: _kill_wandb, STEPS: lose})
        assert run.go(start=1) == "summary", "and the next attempt has a wandb of its own"
    else:
        assert run.go(at={2: _kill_wandb}) == "summary"
    assert _steps(run.folder.metrics) == [1, 2, 3, 4]
    assert len(list(run.folder.samples.iterdir())) == STEPS
    (said,) = [line for line in run.output.getvalue().splitlines() if "WARNING" in line]
    assert "wandb failed" in said and "metrics.jsonl has every step" in said
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1 + then_lost


def test_a_run_does_not_wait_for_a_wandb_that_hangs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.wandb_copy.FINISH_S", 3.0)
    run = Run(tmp_path, wandb=WandbMode.offline)
    assert run.go(at={2: lambda: [each.suspend() for each in _wandb()] and None}) == "summary"
    assert _steps(run.folder.metrics) == [1, 2, 3, 4]
    assert "wandb did not finish within 3 s" in run.output.getvalue()
    assert not _wandb()
    again = Run(tmp_path / "again", wandb=WandbMode.offline)
    assert again.go() == "summary" and "WARNING" not in again.output.getvalue()


def test_wandb_gets_the_steps_that_the_disk_refuses_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[int] = []
    made = SimpleNamespace(log=lambda row, step: got.append(step), finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **_: made)
    log = MetricsLog(tmp_path, name="x", mode=WandbMode.offline, resume_step=0)
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        log.write(1, {})
    path.unlink()
    log.write(2, {})
    log.close()
    assert _steps(path) == [1, 2] and got == [1, 2]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_whatever_wandb_raises_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise wandb.Error("no [b]room[/b]")

    made = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    setattr(made, fails, refuse)
    monkeypatch.setattr(wandb, "init", refuse if fails == "init" else lambda **_: made)
    run = Run(tmp_path, wandb=WandbMode.offline)
    assert run.go() == "summary" and len(run.rows()) == STEPS
    assert run.output.getvalue().count("WARNING") == 1 and "[b]room[/b]" in run.output.getvalue()


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', [1, 2]),
        ('{"step": 1}\n{"step": 2}\n{"ste', [1, 2]),
        ('{"step": 1}\n{"step": 2}', [1, 2]),
        ('{"step": 1}\n\0\0\xff', [1]),
        ('{"step": 3}\n', []),
        ("", []),
    ],
)
def test_what_a_killed_run_left_is_cut_off_and_lines_stay_lines(
    tmp_path: Path, left: str, kept: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(left.encode("latin-1"))
    log = MetricsLog(tmp_path, name="x", mode=WandbMode.disabled, resume_step=2)
    assert _steps(path) == kept
    log.write(3, {})
    log.write(4, {})
    assert [json.loads(line)["step"] for line in path.open()] == [*kept, 3, 4]


def test_a_full_disk_is_no_reason_not_to_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before = path.stat()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    MetricsLog(tmp_path, name="x", mode=WandbMode.disabled, resume_step=2)
    assert path.stat().st_mtime_ns == before.st_mtime_ns, "nothing was to go"
    MetricsLog(tmp_path, name="x", mode=WandbMode.disabled, resume_step=1)
    assert _steps(path) == [1] and path.stat().st_ino == before.st_ino
    monkeypatch.setattr(os, "truncate", full)
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: No space .* Free space .* resume=true"):
        MetricsLog(tmp_path, name="x", mode=WandbMode.disabled, resume_step=0)


def test_samples_that_do_not_fit_leave_no_half_of_them(tmp_path: Path) -> None:
    group = asyncio.run(Engines(0, {}).sample(_task(0, 0), samples=2))
    path = tmp_path / "step_00001.jsonl"
    path.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_samples(tmp_path, 1, [group])
    assert list(tmp_path.iterdir()) == []
    write_samples(tmp_path, 1, [group])
    assert list(tmp_path.iterdir()) == [path] and len(path.read_text().splitlines()) == 2


def test_a_disk_that_is_full_at_the_end_is_named_with_what_to_do(run: Run) -> None:
    summary = Summary(
        steps=1,
        wall_seconds=1.0,
        rollout_tokens=1,
        tokens_per_second=1.0,
        eval_before={},
        eval_after={},
        restarts=0,
        restarts_by_part={},
        checkpoint="",
    )
    run.folder.summary.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"summary\.json: No space left on device.* resume=true"):
        summary.write(run.folder.summary)
    run.folder.summary.write_text(json.dumps(asdict(summary)))
    run.folder.metrics.write_text('{"step": 1}\n')
    run.folder.report.symlink_to("/dev/full")
    with pytest.raises(
        RunFailed, match=rf"report\.html: No space .*temper report {run.folder.root}"
    ):
        write_report(run.folder)


def test_budgets_that_a_full_disk_refuses_are_named(run: Run) -> None:
    run.folder.length_budgets.symlink_to("/dev/full")

    async def sample(*_: Any) -> list[Group]:
        return []

    training = SimpleNamespace(
        config=run.config,
        folder=run.folder,
        material=SimpleNamespace(tests=lambda count: []),
        _engines_for=lambda tasks: None,
        _sample=sample,
    )
    with pytest.raises(RunFailed, match=r"length_budgets\.json: No space .*the command again"):
        asyncio.run(Training.evaluate_before(training))


@pytest.mark.parametrize("process", ["the same", "another"])
def test_restarts_of_steps_that_are_given_up_are_counted_in_the_next(
    run: Run, process: str
) -> None:
    def lose_worker() -> None:
        run.restarts.lost("rollout worker 0", "killed")

    def lose_shard() -> None:
        raise PartLost("learner shard 0", "killed")

    with pytest.raises(PartLost):
        run.go(at={1: lose_worker, 3: lose_worker, 4: lose_shard})
    run.restarts.run_lost("learner shard 0", "killed")
    if process == "another":
        run.restarts = run.new_restarts()
    run.go(start=2)
    assert [row["faults/restarts"] for row in run.rows()] == [1, 0, 2, 0]
    assert run.restarts.total == 3
