"""One rank of the jobs in test_parallel.py: `python shards_job.py JOB.json RANK`.

Trains a small K2 on the shares of a fixed batch, once for every run of the job, and writes what
came out to RUN-RANK.pt beside the job.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import exchange
from model.config import K2Config, MuonClipConfig, Offload, ParallelConfig, Precision, Rank
from model.k2 import K2
from model.parallel import Shard, join

FOLDER = Path(sys.argv[1]).parent
JOB = json.loads(Path(sys.argv[1]).read_text())
LENGTHS = JOB["lengths"]


class Traffic(TorchDispatchMode):
    """Bytes that this rank sends to others in all-to-all operations."""

    sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "alltoall" in str(func):
            given, sizes = args[1], args[4]
            others = sum(n for rank, n in enumerate(sizes) if rank != dist.get_rank())
            self.sent += others * given.element_size()
        return func(*args, **(kwargs or {}))


def weights(config: K2Config) -> dict[str, Tensor]:
    model = K2(config)
    model.initialize_(0)
    for layer in model.model.layers[1:]:
        bias = layer.mlp.gate.e_score_correction_bias
        bias.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
        bias[5] = -100.0  # no token chooses this expert
    return model.state_dict()


def sequences(vocabulary: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocabulary, (n,), generator=generator) for n in LENGTHS]


def passes(shard: Shard, size: int, vocabulary: int) -> list[list[Tensor]]:
    """This rank's micro-batches: as many on every rank, the last of them empty on some."""
    mine = sequences(vocabulary)[shard.rank :: shard.size]
    parts = [mine[i : i + size] for i in range(0, len(mine), size)]
    most = int(shard.largest(torch.tensor(float(len(parts)))))
    return parts + [[]] * (most - len(parts))


def loss_of(shard: Shard, part: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Likelihood over the tokens of all ranks; the largest logits."""
    lengths = [len(s) for s in part] or [2]
    ids = torch.cat(part) if part else torch.zeros(2, dtype=torch.long)
    mask = torch.full((len(ids),), bool(part))
    mask[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = False
    out = shard.forward(ids, mask, lengths, torch.ones(len(lengths)))
    loss = -out.logprobs.sum() / (sum(LENGTHS) - len(LENGTHS))
    return loss, out.max_logits if part else torch.full_like(out.max_logits, -torch.inf)


def run(name: str, settings: dict[str, Any]) -> None:
    AcceleratorState._reset_state(True)
    exchange.BATCH_ELEMENTS = settings.get("batch_elements", 1 << 25)  # of one round
    config = K2Config(**JOB["model"])
    known = weights(config)
    if "start" in settings:  # the weights that another run ended with
        ended = [torch.load(file)["tensors"] for file in FOLDER.glob(f"{settings['start']}-?.pt")]
        parts = {key: tensor for rank in ended for key, tensor in rank.items()}
        known = {
            name: torch.cat([parts[k] for k in sorted(parts) if k[0] == name]) for name in known
        }

    @torch.no_grad()
    def fill(slots: dict[str, Tensor], first: int) -> None:
        for key, tensor in slots.items():
            whole = known[key]
            tensor.copy_(whole[first : first + len(tensor)] if ".experts." in key else whole)

    with torch.device("meta"):
        network = K2(
            config,
            checkpoint_layers=settings.get("checkpoint_layers", False),
            int4_experts=settings.get("int4", False),
        )
    parallel = ParallelConfig(
        shards=JOB["shards"],
        zero_stage=settings.get("stage", 1),
        expert_parallel=settings.get("experts", 1),
        weights=Precision(settings.get("weights", "float32")),
        offload=Offload(settings.get("offload", "none")),
        nvme_path=str(FOLDER / "nvme"),
    )
    optimizer = MuonClipConfig(
        learning_rate=0.02,
        weight_decay=0.1,
        qk_clip_tau=settings.get("tau", 100.0),
        muon=settings.get("muon", True),
    )
    shard = Shard(network, fill, optimizer, parallel)
    shard.optimizer.ns_dtype = getattr(torch, settings.get("ns_dtype", "float32"))
    if "restore" in settings:
        shard.restore(FOLDER / settings["restore"])
    if "reset" in settings:
        shard.optimizer.reset()
    reports, sent = [], []
    for _ in range(settings.get("steps", 2)):
        parts = passes(shard, settings.get("micro", 2), config.vocab_size)
        logits = []
        for index, part in enumerate(parts):
            loss, largest = loss_of(shard, part)
            shard.backward(loss, last=index == len(parts) - 1)
            logits.append(largest)
        with Traffic() as traffic:
            report = shard.step(torch.stack(logits).amax(0), 0.02)
        reports.append(
            [report.max_logit, report.clipped_heads, report.update_rms, report.grad_norm]
        )
        sent.append(traffic.sent)
    if "save" in settings:
        (FOLDER / settings["save"]).mkdir(exist_ok=True)
        for file in shard.state_files(FOLDER / settings["save"], {"iterations": 5}):
            file.write()
    result = {
        "tensors": {(key, first): t.clone() for key, t, first in shard.tensors()},
        "reports": reports,
        "sent": sent,
        "orthogonalised": shard.optimizer.orthogonalised,
        "in_memory": sum(v.numel() for s in shard.optimizer.state.values() for v in s.values()),
    }
    torch.save(result, FOLDER / f"{name}-{shard.rank}.pt")
    dist.barrier()  # a later run may start from what all ranks have written


def main() -> None:
    torch.set_num_threads(1)
    rank = int(sys.argv[2])
    place = Rank(rank=rank, size=JOB["shards"], address="127.0.0.1", port=JOB["port"])
    join(place, timeout_seconds=120)
    for name, settings in JOB["runs"].items():
        run(name, settings)
    dist.barrier()  # nobody leaves while another still sends
    sys.stdout.flush()
    os._exit(0)  # on a busy machine gloo's threads may end an orderly exit by an abort


if __name__ == "__main__":
    main()
