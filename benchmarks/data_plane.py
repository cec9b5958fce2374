"""How fast do a step's samples come from rollout worker to learner, against a copy of the bytes?

Groups made ahead lie in a Ray actor, with the words that belong to them. As in a run, the driver
calls for them (worker), makes a batch of them (pack), and has the learner's actor cut it into
micro-batches of tensors (learner). Bytes are those of the micro-batches' tensors, counted once:
the words travel too and are not counted. A copy of as many bytes in memory, on one thread, is the
yardstick; beside it, what Ray takes for as many bytes in one array per group that nobody looks at
(ray): the same calls, without our records. Seconds are medians of interleaved rounds; CPU seconds
are those of all three processes, which other jobs on the machine do not lengthen.

    OMP_NUM_THREADS=1 python -m benchmarks.data_plane
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from benchmarks.machine import hardware
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch, micro_batches, pack
from rl.cluster import LearnerWorker
from rl.config import ClusterConfig
from rl.ray_parts import Actor, connect
from rl.remote import RemoteLearner
from rl.sample import samples_of
from rollout.episode import Completion, Episode, Group, StopReason, kept
from rollout.versions import Versions

DATA = Path(__file__).resolve().parent / "data" / "data_plane.json"
PROMPT = 64
VOCABULARY = 163_840
CHARACTERS = 4  # of a token
MICRO_BATCH_TOKENS = 65_536
WARM = 2  # rounds


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step."""

    groups: int
    samples: int  # of a group
    tokens: int  # of a sample


CASES = (
    Case(groups=16, samples=8, tokens=64),  # the quickstart's
    Case(groups=16, samples=8, tokens=1024),
    Case(groups=16, samples=8, tokens=8192),
    Case(groups=8, samples=8, tokens=32_768),
    Case(groups=4, samples=64, tokens=32_768),
)


def group_of(index: int, case: Case) -> Group:
    """Random tokens, half of each sample drawn under the next version of the weights."""
    draw = np.random.default_rng(index)
    prompt = kept(draw.integers(VOCABULARY, size=PROMPT), np.int32)
    question = (Message(role="user", content="?" * PROMPT * CHARACTERS),)
    task = Task(
        id=str(index), kind=TaskKind.math, messages=question, reference="", token_budget=case.tokens
    )
    half = case.tokens // 2
    episodes = [
        Episode(
            completion=Completion(
                prompt_ids=prompt,
                token_ids=kept(draw.integers(VOCABULARY, size=case.tokens), np.int32),
                logprobs=kept(-draw.random(case.tokens), np.float32),
                versions=Versions.of_runs([(index, half), (index + 1, case.tokens - half)]),
                stop_reason=StopReason.stop,
                temperature=1.0,
            ),
            transcript=Transcript(
                messages=question,
                response="x" * case.tokens * CHARACTERS,
                response_tokens=case.tokens,
                truncated=False,
            ),
            score=Score(total=draw.random()),
        )
        for _ in range(case.samples)
    ]
    return Group(task=task, episodes=tuple(episodes))


class Worker:
    """In the place of a rollout worker."""

    def prepare(self, case: Case) -> None:
        """Make the groups of a step."""
        self._groups = [group_of(index, case) for index in range(case.groups)]

    async def sample(self, index: int) -> Group:
        """One of them."""
        return self._groups[index]

    def prepare_array(self, num_bytes: int) -> None:
        """What `array` gives."""
        self._array = np.ones(num_bytes, np.uint8)

    async def array(self) -> NDArray[np.uint8]:
        """Bytes."""
        return self._array

    def cpu_s(self) -> float:
        """Of this process."""
        return time.process_time()


class Cutter:
    """What a learner does with a batch before its first pass."""

    def update(self, minibatches: Sequence[Batch]) -> int:
        """Make every tensor of this shard's micro-batches; their bytes."""
        parts = [part for batch in minibatches for part in micro_batches(batch, MICRO_BATCH_TOKENS)]
        return sum(tensor.nbytes for part in parts for tensor in tensors(part))

    def count(self, arrays: Sequence[NDArray[np.uint8]]) -> int:
        """Their bytes."""
        return sum(array.nbytes for array in arrays)

    def cpu_s(self) -> float:
        """Of this process."""
        return time.process_time()


class Learner(LearnerWorker):
    """In the place of a learner shard."""

    def __init__(self) -> None:
        super().__init__()
        self._learner: Any = Cutter()


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    """All that a pass needs."""
    return (
        batch.ids,
        batch.loss_mask,
        batch.behaviour_logprobs,
        batch.versions,
        batch.advantages,
        batch.temperatures,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians in seconds for a step."""

    case: Case
    num_bytes: int
    memcpy: float
    worker: float
    pack: float
    learner: float
    ray: float  # as many bytes without our records
    memcpy_cpu: float
    cpu: float  # of worker, driver and learner
    ray_cpu: float

    @property
    def share(self) -> float:
        """Bytes/s over those of memcpy."""
        return self.memcpy / (self.worker + self.pack + self.learner)

    @property
    def share_of_cpu(self) -> float:
        """Bytes per CPU second over those of memcpy."""
        return self.memcpy_cpu / self.cpu


def batch_of(groups: Sequence[Group]) -> Batch:
    """What the loop makes of a step."""
    scores = [[episode.score.total for episode in group.episodes] for group in groups]
    return pack(
        [
            s
            for g, rewards in zip(groups, scores, strict=True)
            for s in samples_of(g, rewards, oldest=0)
        ]
    )


class Way:
    """The processes of a run, and what a step takes through them."""

    def __init__(self) -> None:
        """Start them, the learner with the memory settings of a run's."""
        keep = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", **keep}}
        self.worker = Actor("rollout worker", Worker)
        shard = Actor("learner", Learner, runtime_env=environment)
        self.learner = RemoteLearner([shard], None, ray.put)

    async def step(self, case: Case) -> tuple[int, list[float]]:
        """Bytes that came, and when each stage had ended."""
        marks = [time.perf_counter()]
        groups = await asyncio.gather(*(self.worker.call("sample", i) for i in range(case.groups)))
        marks.append(time.perf_counter())
        batch = batch_of(groups)
        marks.append(time.perf_counter())
        num_bytes = await self.learner.call("update", [batch])
        return num_bytes, [*marks, time.perf_counter()]

    async def raw(self, case: Case) -> int:
        """The same calls with arrays of bytes."""
        arrays = await asyncio.gather(*(self.worker.call("array") for _ in range(case.groups)))
        return await self.learner.call("count", arrays)

    async def cpu_s(self) -> float:
        """Of all processes so far."""
        there = await self.worker.call("cpu_s"), await self.learner.call("cpu_s")
        return time.process_time() + sum(there)


async def measure(way: Way, case: Case, rounds: int) -> Result:
    """All stages, `rounds` times."""
    await way.worker.call("prepare", case)
    num_bytes, _ = await way.step(case)
    await way.worker.call("prepare_array", num_bytes // case.groups)
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    times: list[dict[str, float]] = []
    for _ in range(rounds + WARM):
        start, cpu = time.perf_counter(), time.thread_time()
        target.copy_(source)
        found = {"memcpy": time.perf_counter() - start, "memcpy_cpu": time.thread_time() - cpu}
        cpu = await way.cpu_s()
        came, marks = await way.step(case)
        assert came == num_bytes
        found["cpu"] = await way.cpu_s() - cpu
        stages = [after - before for before, after in itertools.pairwise(marks)]
        found |= zip(("worker", "pack", "learner"), stages, strict=True)
        cpu, start = await way.cpu_s(), time.perf_counter()
        await way.raw(case)
        found |= {"ray": time.perf_counter() - start, "ray_cpu": await way.cpu_s() - cpu}
        times.append(found)
    medians = {name: statistics.median(t[name] for t in times[WARM:]) for name in times[0]}
    return Result(case=case, num_bytes=num_bytes, **medians)


async def results(rounds: int) -> list[Result]:
    """One for each case."""
    way = Way()
    return [await measure(way, case, rounds) for case in CASES]


def show(found: Sequence[Result]) -> None:
    """A line for each, in milliseconds."""
    print(
        "   groups x samples x tokens    MB  memcpy  worker   pack learner     ray  of memcpy",
        end="",
    )
    print("   CPU: memcpy    all     ray  of memcpy")
    for r in found:
        step = f"{r.case.groups} x {r.case.samples} x {r.case.tokens}"
        seconds = [r.memcpy, r.worker, r.pack, r.learner, r.ray]
        cpu = [r.memcpy_cpu, r.cpu, r.ray_cpu]
        print(
            f"{step:>28}{r.num_bytes / 1e6:6.1f}"
            + "".join(f"{1e3 * each:8.2f}" for each in seconds)
            + f"{r.share:11.4f}      "
            + "".join(f"{1e3 * each:8.2f}" for each in cpu)
            + f"{r.share_of_cpu:11.4f}"
        )


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
    show(found)
    shares = [{"share": round(r.share, 5), "share_of_cpu": round(r.share_of_cpu, 5)} for r in found]
    content = {
        "hardware": hardware("cpu"),
        "results": [asdict(r) | share for r, share in zip(found, shares, strict=True)],
    }
    DATA.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
