"""One learner shard of test_learner.py: `python learner_job.py FOLDER RANK SIZE PORT`."""

import filecmp
import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import MuonClipConfig, ParallelConfig, Rank, ScheduleConfig
from model.formats import CheckpointError
from rl.batch import Batch, pack, shares_of
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.objective_config import Kind, ObjectiveConfig
from rl.sample import Sample, supervised_sample
from rollout.episode import Completion, StopReason

SEQUENCES = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [4, 3, 2, 1], [9, 9, 8, 8, 7]]


def neighbours(tokens: int, first: int) -> NDArray[np.uint8]:
    """Two experts of the tiny network's sixteen [tokens, MoE layers, 2], others for each token."""
    one = (first + np.arange(tokens)[:, None, None] + np.array([0, 5])[:, None]) % 16
    return np.concatenate([one, (one + 1) % 16], axis=2).astype(np.uint8)


def policy_batch(
    sequences: list[int], logprobs: list[list[float]], *, experts: bool = False
) -> Batch:
    """Sampled by version 0 or 1, with log-probs that are -0.1, 0 or 0.1 off the learner's.

    With `experts` the engine chose two neighbours for each token, which the router rarely would.
    """
    samples = []
    for index in sequences:
        ids, known = SEQUENCES[index], logprobs[index]
        completion = Completion(
            prompt_ids=ids[:1],
            token_ids=ids[1:],
            logprobs=[p + 0.1 * (i % 3 - 1) for i, p in enumerate(known)],
            versions=[index % 2] * len(known),
            stop_reason=StopReason.stop,
            temperature=1.0,
            routing=neighbours(len(ids) - 1, index) if experts else None,
        )
        advantage = (-1.0) ** index * 0.5
        samples.append(Sample(completion=completion, oldest=0, advantage=advantage))
    return pack(samples)


def refused(work: Callable[..., object], *args: object) -> str | None:
    """What a shard says that cannot do its part."""
    try:
        work(*args)
    except (OSError, CheckpointError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def full_memory(tensors: Iterator[Any], version: int) -> None:
    """A sender that comes as far as its second tensor."""
    next(tensors)
    raise OSError(28, "No space left on device")


def publish_with_full_memory(learner: Learner, rank: int, version: int) -> str | None:
    """What each shard says when the memory of the second one is full."""
    publish = learner._sender.publish
    if rank == 1:
        learner._sender.publish = full_memory  # type: ignore[method-assign, assignment]
    said = refused(learner.publish, version)
    learner._sender.publish = publish  # type: ignore[method-assign]
    return said


def saved(learner: Learner, folder: Path) -> str | None:
    """Save and wait; what this shard says if it cannot write."""
    learner.save(folder)
    while not (writing := learner.written()).done:
        time.sleep(0.01)
    return None if writing.error is None else f"{type(writing.error).__name__}: {writing.error}"


def save_on_full_disk(learner: Learner, rank: int, folder: Path) -> str | None:
    """What each shard says when the disk of the second one is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    said = saved(learner, folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return said


def save_without_memory(learner: Learner, rank: int, folder: Path) -> str | None:
    """What each shard says when the second one has no memory to copy to."""
    room = learner._snapshot._room

    def none(num_bytes: int) -> torch.Tensor:
        raise CheckpointError("no host memory")

    if rank == 1:
        learner._snapshot._room = none  # type: ignore[method-assign]
    said = refused(learner.save, folder)
    learner._snapshot._room = room  # type: ignore[method-assign]
    return said


def save_while_training(learner: Learner, folder: Path, train: Callable[[], object]) -> list[bool]:
    """Whether files are as if nothing had been trained while they wait; and after training."""
    gate, write = threading.Event(), learner._snapshot.write
    still, moving, after = (folder / name for name in ("still", "moving", "after"))
    for each in (still, moving, after):
        each.mkdir(exist_ok=True)
    assert saved(learner, still) is None

    def late(work: Callable[[], None]) -> None:
        write(lambda: (gate.wait(), work())[1])

    learner._snapshot.write = late  # type: ignore[method-assign]
    learner.save(moving)
    learner._snapshot.write = write  # type: ignore[method-assign]
    train()
    assert not learner.written().done
    gate.set()
    assert saved(learner, after) is None  # waits for the one before
    learner._shard.total([0.0])  # the others have written, too
    files = [str(each.relative_to(still)) for each in sorted(still.rglob("*.safetensors"))]
    assert len(files) > 1
    return [
        [not filecmp.cmp(still / file, other / file, shallow=False) for file in files]
        == [changed] * len(files)
        for other, changed in ((moving, False), (after, True))
    ]


def main() -> None:
    torch.set_num_threads(1)
    folder, rank, size, port = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    objective = ObjectiveConfig(kind=Kind.k2p5, minibatches=2, clip_low=0.2, clip_high=0.2)
    start = folder / f"tiny-{rank}-{size}"
    shutil.copytree(folder / "tiny", start)
    spec = LearnerSpec(
        checkpoint=start,
        optimizer=MuonClipConfig(learning_rate=2e-4),
        schedule=ScheduleConfig(warmup_steps=4),
        parallel=ParallelConfig(
            shards=size, zero_stage=3, expert_parallel=size, timeout_seconds=60
        ),
        objective=objective,
        iterations=2,
        micro_batch_tokens=64,
        bucket_bytes=1 << 20,
        compute_dtype=torch.float32,
        engine_dtype=torch.float32,
        int4_experts=False,
        router_bias_rate=0.001,
        seed=0,
    )
    place = Rank(rank=rank, size=size, address="127.0.0.1", port=port)
    learner = Learner(spec, SEQUENCES, place)
    shutil.rmtree(start)  # as a run removes the checkpoint that it went on from
    published = learner.publish(1)
    learner.release(1)
    logprobs = published.probe_logprobs

    def mine(batch: Batch) -> Batch | None:
        return shares_of(batch, size)[rank]

    # Of the second minibatch the second shard has nothing to train on.
    minibatches = [mine(policy_batch([0, 1, 2], logprobs)), mine(policy_batch([3], logprobs))]
    routed = mine(policy_batch([0, 1, 2], logprobs, experts=True))
    followed, own = (learner.compare(routed, replay) for replay in (True, False))
    k2p5 = learner.update(minibatches, [])
    objective.kind = Kind.gspo
    # One sequence: the second shard has nothing of it; the first minibatch has no PTX.
    supervised = mine(pack([supervised_sample([1, 2], [3, 4, 5])]))
    gspo = learner.update(minibatches, [None, supervised])
    trained = learner.publish(2).probe_logprobs
    learner.release(2)
    unpublished = publish_with_full_memory(learner, rank, 3) if size > 1 else None
    published_again = learner.publish(3).probe_logprobs
    losses = learner.supervise([supervised] * 2, [1e-3] * 2)
    told = {
        "losses": losses,
        "probe": logprobs,
        "followed": followed,
        "own": own,
        "k2p5": k2p5,
        "gspo": gspo,
        "tensors": sorted(published.update.digests),
        "trained": trained,
        "unpublished": unpublished,
        "published_again": published_again,
        "error": saved(learner, folder if rank == 0 else folder / "absent"),
        "full": save_on_full_disk(learner, rank, folder),
        "no_memory": save_without_memory(learner, rank, folder),
    }
    last = folder / f"saved-{size}"
    last.mkdir(exist_ok=True)
    told["as_copied"] = save_while_training(
        learner, last, lambda: learner.supervise([supervised], [1e-3])
    )
    told["saved"] = sorted(path.name for path in (last / "after" / "model").iterdir())
    (folder / f"told-{rank}-{size}.json").write_text(json.dumps(told))
    learner.close()
    sys.stdout.flush()
    os._exit(0)  # on a busy machine gloo's threads may end an orderly exit by an abort


if __name__ == "__main__":
    main()
