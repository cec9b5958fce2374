"""One learner shard of the job in test_learner.py: `python learner_job.py FOLDER RANK PORT`."""

import json
import sys
from pathlib import Path

import torch

from model.config import MuonClipConfig, ParallelConfig, Rank, ScheduleConfig
from model.formats import CheckpointError
from rl.batch import pack
from rl.config import ObjectiveConfig
from rl.learner import Learner
from rl.learner_spec import LearnerSpec
from rl.sample import supervised_sample


def main() -> None:
    torch.set_num_threads(1)
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    spec = LearnerSpec(
        checkpoint=folder / "tiny",
        optimizer=MuonClipConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(),
        parallel=ParallelConfig(shards=2, zero_stage=3, expert_parallel=2, timeout_seconds=60),
        objective=ObjectiveConfig(),
        iterations=2,
        micro_batch_tokens=64,
        bucket_bytes=1 << 20,
        compute_dtype=torch.float32,
        engine_dtype=torch.float32,
        int4_experts=False,
        router_bias_rate=0.001,
        seed=0,
    )
    place = Rank(rank=rank, size=2, address="127.0.0.1", port=port)
    learner = Learner(spec, [[1, 2, 3], [4, 5]], place)
    # One sequence: the second shard has nothing to train on.
    losses = learner.supervise([pack([supervised_sample([1, 2], [3, 4, 5])])] * 2, [1e-3] * 2)
    published = learner.publish(1)
    told = {
        "losses": losses,
        "probe": published.probe_logprobs,
        "tensors": sorted(published.update.digests),
        "error": None,
    }
    learner.release(1)
    try:  # the second shard's disk refuses
        learner.save(folder if rank == 0 else folder / "absent")
    except (OSError, CheckpointError) as error:
        told["error"] = f"{type(error).__name__}: {error}"
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    learner.close()


if __name__ == "__main__":
    main()
