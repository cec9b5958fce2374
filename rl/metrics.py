"""What a run measures: one JSON object per step, the same to wandb, and the samples behind it."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from rewards.comparison import CriticReport
from rl.batch import Batch
from rl.config import WandbMode
from rl.errors import writing
from rl.wandb_copy import WandbCopy
from rollout.episode import Episode, Group, StopReason

RESTARTS = "faults/restarts"  # since the line before


class MetricsLog:
    """Appends to `metrics.jsonl`, and has wandb copy it."""

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        mode: WandbMode,
        resume_step: int,
        say: Callable[[str], None] = print,
    ) -> None:
        """Open both; lines of steps after `resume_step` belong to a killed run and are dropped.

        Raises:
            RunFailed: they cannot be dropped.
        """
        self._path = run_dir / "metrics.jsonl"
        self._unwritten = ""  # since the disk refused
        self.restarts = 0.0  # that the lines count
        with writing(self._path):
            self._keep_until(resume_step)
        self._wandb = WandbCopy(run_dir, name=name, mode=mode, say=say)

    def _keep_until(self, step: int) -> None:
        """Cut the file after the lines until `step`: no kill halves that, and it needs no space."""
        data = self._path.read_bytes() if self._path.exists() else b""
        kept = list(takewhile(lambda row: row[0]["step"] <= step, _whole(data)))
        size = kept[-1][1] if kept else 0
        if size < len(data):
            os.truncate(self._path, size)
        if data[:size][-1:] not in (b"", b"\n"):
            self._unwritten = "\n"  # a kill has left a line that lacks but its end
        self.restarts = sum(row.get(RESTARTS, 0.0) for row, _ in kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step (1 for the first).

        Raises OSError where the disk refuses; the line is written with a later one then.
        """
        self._unwritten += json.dumps({"step": step, **metrics}) + "\n"
        self.restarts += metrics.get(RESTARTS, 0.0)
        self._wandb.log(step, metrics)  # once, whatever the disk does
        whole = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(self._unwritten)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, whole)  # no half lines
            raise
        self._unwritten = ""

    def close(self) -> None:
        """Let wandb finish its copy, within a time."""
        self._wandb.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a `metrics.jsonl`; a last line cut by a kill is left out."""
    return [row for row, _ in _whole(path.read_bytes())] if path.exists() else []


def _whole(data: bytes) -> Iterator[tuple[dict[str, float], int]]:
    """The lines before the first that is cut, and where each ends."""
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:
            return
        yield row, end


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, lengths and budgets of one step's groups; rewards also by family of task.

    Groups that the critic could not rank have no reward, and are counted alone.
    """
    critic = _critic_metrics(groups)
    groups = [g for g in groups if not g.skipped]
    episodes = [(g.task, e) for g in groups for e in g.episodes]
    count = len(episodes)
    if not count:
        return critic
    by_name: dict[str, list[float]] = {}
    for task, episode in episodes:
        by_name.setdefault("reward/mean", []).append(episode.score.total)
        for part, value in episode.score.parts.items():
            by_name.setdefault(f"reward/{part}", []).append(value)
        for name, value in episode.score.watched.items():
            by_name.setdefault(f"watched/{name}", []).append(value)
        if task.tags:
            by_name.setdefault(f"reward/family/{task.tags[0]}", []).append(episode.score.total)
    metrics = {name: sum(values) / len(values) for name, values in by_name.items()}
    mixed = [len({e.score.total for e in g.episodes}) > 1 for g in groups]
    return (
        metrics
        | critic
        | {
            "reward/mixed_groups": sum(mixed) / len(groups),
            "budget/over": sum(e.transcript.truncated for _, e in episodes) / count,
            "budget/repeated": sum(_repeated(e) for _, e in episodes) / count,
            "rollout/response_tokens": sum(len(e.completion.token_ids) for _, e in episodes)
            / count,
        }
    )


def _critic_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What ranking the step's open-ended groups took."""
    reports = [group.critique for group in groups if group.critique is not None]
    if not reports:
        return {}
    whole = sum(reports, CriticReport())
    return {
        "critic/judgements": float(whole.judgements),
        "critic/tokens": float(whole.tokens),
        "critic/prompt_tokens": float(whole.prompt_tokens),
        "critic/retries": float(whole.retries),
        "critic/unreadable_verdicts": float(whole.unreadable),
        "critic/inconsistent": whole.inconsistent / max(whole.pairs, 1),
        "critic/disqualified": float(whole.disqualified),
        "critic/skipped_groups": float(sum(bool(group.skipped) for group in groups)),
    }


def _repeated(episode: Episode) -> bool:
    return episode.completion.stop_reason is StopReason.repetition


def segment_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """How samples of one step's groups were cut by new weights, and by partial rollout.

    A segment is what a sample drew under one version; it parks each time that others take its place
    in the engine.
    """
    done = [e.completion for g in groups for e in g.episodes]
    if not done:
        return {}
    return {
        "rollout/segments": sum(len(set(c.versions.values)) for c in done) / len(done),
        "rollout/parked": float(sum(c.parked for c in done)),
    }


def staleness(batches: Iterable[Batch], version: int) -> dict[str, float]:
    """How many versions old the tokens in the loss are, and how many are too old to be in it."""
    in_loss: Counter[int] = Counter()  # tokens by lag
    masked = 0
    for sample in (sample for batch in batches for sample in batch.samples):
        for drawn_with, tokens in sample.completion.versions.runs():
            if drawn_with >= sample.oldest:
                in_loss[version - drawn_with] += tokens
            else:
                masked += tokens
    if not in_loss:
        return {"rollout/masked_tokens": float(masked)} if masked else {}
    return {
        "staleness/mean": sum(lag * n for lag, n in in_loss.items()) / in_loss.total(),
        "staleness/max": float(max(in_loss)),
        "rollout/masked_tokens": float(masked),
    }


def write_samples(folder: Path, step: int, groups: Sequence[Group]) -> None:
    """Every episode of the step with its score, one JSON object a line, in `step_NNNNN.jsonl`.

    Written beside, then renamed. Raises OSError where the disk refuses, and leaves no half.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {
            "task": group.task.id,
            "prompt": group.task.messages[-1].content,
            "reference": group.task.reference,
            "response": episode.transcript.response,
            "score": episode.score.total,
            "parts": dict(episode.score.parts),
            "watched": dict(episode.score.watched),
            "why": group.skipped or episode.score.why,
            "tokens": episode.transcript.response_tokens,
            "truncated": episode.transcript.truncated,
            "stopped": episode.completion.stop_reason.value,
            "versions": sorted(set(episode.completion.versions.values)),
        }
        for group in groups
        for episode in group.episodes
    )
    path = folder / f"step_{step:05d}.jsonl"
    beside = path.with_suffix(".partial")
    try:
        with beside.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # the space that it took is needed
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to; `summary.json`."""

    steps: int
    wall_seconds: float
    rollout_tokens: int
    tokens_per_second: float
    eval_before: dict[str, float]
    eval_after: dict[str, float]
    restarts: int
    restarts_by_part: dict[str, int]
    checkpoint: str

    def write(self, path: Path) -> None:
        """Write beside, then rename. Raises RunFailed where the disk refuses."""
        beside = path.with_suffix(".partial")
        with writing(path):
            beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
            os.replace(beside, path)
