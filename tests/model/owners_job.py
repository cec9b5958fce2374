"""One rank of the jobs in test_owners.py: `python owners_job.py JOB.json RANK`.

Cuts the tiny K2 as the learner does and writes which range of which parameter ended up here.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from model.config import MuonClipConfig, ParallelConfig, Rank
from model.engine_settings import REDUCE_BUCKET_ELEMENTS
from model.k2 import K2
from model.parallel import Shard, join
from model.tiny import tiny_config


@torch.no_grad()
def fill(slots: dict[str, Tensor], first: int) -> None:
    for tensor in slots.values():
        tensor.zero_()


def main() -> None:
    path, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = json.loads(path.read_text())
    torch.set_num_threads(1)
    join(Rank(rank=rank, size=2, address="127.0.0.1", port=job["port"]), timeout_seconds=120)
    with torch.device("meta"):
        network = K2(tiny_config(512))
    parallel = ParallelConfig(shards=2, zero_stage=job["stage"], expert_parallel=job["ways"])
    shard = Shard(network, fill, MuonClipConfig(), parallel)
    pieces = [[p.parameter, p.begin, p.end] for _, p in shard.optimizer.pieces()]
    found = {"pieces": pieces, "bucket_elements": REDUCE_BUCKET_ELEMENTS}
    (path.parent / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)


main()
