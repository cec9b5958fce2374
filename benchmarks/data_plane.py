"""How fast do a step's samples come from rollout worker to learner, against a copy of the bytes?

Groups made ahead lie in a Ray actor. As in a run, the driver calls for them (worker), makes a batch
of them (pack), and has the learner's actor read it (learner). Bytes are those of the batch's
tensors; a copy of as many in memory, on one thread, is the yardstick. Medians of interleaved
rounds.

    OMP_NUM_THREADS=1 python -m benchmarks.data_plane
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.machine import hardware
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch, pack
from rl.cluster import Actor, connect
from rl.config import ClusterConfig
from rl.remote import RemoteLearner
from rl.sample import samples_of
from rollout.episode import Completion, Episode, Group, StopReason

DATA = Path(__file__).resolve().parent / "data" / "data_plane.json"
GROUPS, SAMPLES = 16, 8
LENGTHS = (64, 1024, 8192)
PROMPT = 64
VOCABULARY = 163_840
CHARACTERS = 4  # of a token
WARM = 2  # rounds


def group_of(index: int, length: int) -> Group:
    """K samples of `length` random tokens each."""
    draw = random.Random(index)
    prompt = [draw.randrange(VOCABULARY) for _ in range(PROMPT)]
    question = (Message(role="user", content="?" * PROMPT * CHARACTERS),)
    task = Task(
        id=str(index), kind=TaskKind.math, messages=question, reference="", token_budget=length
    )
    episodes = [
        Episode(
            completion=Completion(
                prompt_ids=prompt,
                token_ids=[draw.randrange(VOCABULARY) for _ in range(length)],
                logprobs=[-draw.random() for _ in range(length)],
                versions=[index] * length,
                stop_reason=StopReason.stop,
                temperature=1.0,
            ),
            transcript=Transcript(
                messages=question,
                response="x" * length * CHARACTERS,
                response_tokens=length,
                truncated=False,
            ),
            score=Score(total=draw.random()),
        )
        for _ in range(SAMPLES)
    ]
    return Group(task=task, episodes=tuple(episodes))


class Worker:
    """In the place of a rollout worker."""

    def prepare(self, length: int) -> None:
        """Make the groups of a step."""
        self._groups = [group_of(index, length) for index in range(GROUPS)]

    async def sample(self, index: int) -> Group:
        """One of them."""
        return self._groups[index]


class Learner:
    """In the place of a learner shard."""

    def call(self, method: str, minibatches: list[Batch]) -> int:
        """Read every tensor; the tokens that came."""
        for batch in minibatches:
            parts = (batch.ids, batch.loss_mask, batch.behaviour_logprobs, batch.versions)
            for part in parts:
                part.max()
        return sum(len(batch.ids) for batch in minibatches)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians in seconds for a step of samples of one length."""

    length: int
    num_bytes: int
    memcpy: float
    worker: float
    pack: float
    learner: float
    driver_cpu: float  # of all three, in the driver's process

    @property
    def share(self) -> float:
        """Bytes/s over those of memcpy."""
        return self.memcpy / (self.worker + self.pack + self.learner)


def batch_of(groups: list[Group]) -> Batch:
    """What the loop makes of a step."""
    scores = [[episode.score.total for episode in group.episodes] for group in groups]
    return pack(
        [
            s
            for g, rewards in zip(groups, scores, strict=True)
            for s in samples_of(g, rewards, oldest=0)
        ]
    )


def bytes_of(batch: Batch) -> int:
    """Of its tensors."""
    return sum(value.nbytes for value in asdict(batch).values() if torch.is_tensor(value))


async def measure(worker: Actor, learner: RemoteLearner, length: int, rounds: int) -> Result:
    """All stages, `rounds` times."""
    await worker.call("prepare", length)
    groups = await asyncio.gather(*(worker.call("sample", i) for i in range(GROUPS)))
    num_bytes = bytes_of(batch_of(groups))
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    times: list[list[float]] = []
    for _ in range(rounds + WARM):
        marks = [time.perf_counter()]
        target.copy_(source)
        marks.append(time.perf_counter())
        cpu = time.process_time()
        groups = await asyncio.gather(*(worker.call("sample", i) for i in range(GROUPS)))
        marks.append(time.perf_counter())
        batch = batch_of(groups)
        marks.append(time.perf_counter())
        tokens = await learner.call("update", [batch])
        marks.append(time.perf_counter())
        assert tokens == len(batch.ids)
        stages = [after - before for before, after in itertools.pairwise(marks)]
        times.append([*stages, time.process_time() - cpu])
    names = ("memcpy", "worker", "pack", "learner", "driver_cpu")
    medians = map(statistics.median, zip(*times[WARM:], strict=True))
    seconds: dict[str, Any] = dict(zip(names, medians, strict=True))
    return Result(length=length, num_bytes=num_bytes, **seconds)


async def results(rounds: int) -> list[Result]:
    """One for each length."""
    worker = Actor("rollout worker", Worker)
    learner = RemoteLearner([Actor("learner", Learner)], None, ray.put)
    return [await measure(worker, learner, length, rounds) for length in LENGTHS]


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    connect(ClusterConfig())
    try:
        found = asyncio.run(results(arguments.rounds))
    finally:
        ray.shutdown()
    print("length      MB  memcpy  worker    pack  learner (ms)  driver's CPU    MB/s  of memcpy")
    for r in found:
        seconds = r.worker + r.pack + r.learner
        print(
            f"{r.length:6} {r.num_bytes / 1e6:7.2f} {1e3 * r.memcpy:7.2f} {1e3 * r.worker:7.1f} "
            f"{1e3 * r.pack:7.1f} {1e3 * r.learner:8.1f} {1e3 * r.driver_cpu:18.1f} "
            f"{r.num_bytes / seconds / 1e6:7.0f} {r.share:10.4f}"
        )
    content = {
        "hardware": hardware("cpu"),
        "results": [asdict(r) | {"share": round(r.share, 5)} for r in found],
    }
    DATA.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
