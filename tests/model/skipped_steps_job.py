"""One rank of the job in test_skipped_steps.py: `python skipped_steps_job.py FOLDER RANK PORT`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor

from model.config import K2Config, MuonClipConfig, Offload, ParallelConfig, Precision, Rank
from model.k2 import K2
from model.parallel import Shard, join

CUTS: dict[str, dict[str, Any]] = {
    "1": {"zero_stage": 1},
    "1-experts": {"zero_stage": 1, "expert_parallel": 2},
    "2-bf16": {"zero_stage": 2, "weights": Precision.bfloat16},
    "2-offload": {"zero_stage": 2, "offload": Offload.cpu},
    "2-bf16-offload": {
        "zero_stage": 2,
        "weights": Precision.bfloat16,
        "offload": Offload.cpu,
    },
    "3-experts": {"zero_stage": 3, "expert_parallel": 2},
}
CONFIG = K2Config(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=16,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def state(shard: Shard) -> dict[str, Tensor]:
    """Weights, and all that the optimiser remembers, of this rank."""
    kept = {f"{name} {first}": t.clone() for name, t, first in shard.tensors()}
    for number, flat in enumerate(shard.optimizer.flats()):
        for kind, value in shard.optimizer.state[flat].items():
            kept[f"{kind} {number}"] = value.clone()
    return kept


def step(shard: Shard, bad: str | None) -> Any:
    """One optimiser step; `bad` is what is wrong with it, on the second rank only."""
    mine = bad if shard.rank == 1 else None
    ids = torch.arange(3, 9) + shard.rank
    mask = torch.ones(6, dtype=torch.bool)
    mask[0] = False
    out = shard.forward(ids, mask, [6], torch.ones(1))
    loss = -out.logprobs.sum() / 10
    if mine == "gradient":
        loss.register_hook(lambda gradient: gradient * torch.nan)
    shard.backward(loss, last=True)
    logits = torch.full_like(out.max_logits, torch.nan) if mine == "logit" else out.max_logits
    return shard.step(logits, 0.01, finite=bad != "log-prob")


def run(cut: str) -> dict[str, Any]:
    AcceleratorState._reset_state(True)
    whole = K2(CONFIG)
    whole.initialize_(0)
    known = whole.state_dict()

    @torch.no_grad()
    def fill(slots: dict[str, Tensor], first: int) -> None:
        for key, tensor in slots.items():
            part = known[key][first : first + len(tensor)] if ".experts." in key else known[key]
            tensor.copy_(part)

    with torch.device("meta"):
        network = K2(CONFIG)
    parallel = ParallelConfig(shards=2, **CUTS[cut])
    shard = Shard(network, fill, MuonClipConfig(learning_rate=0.01), parallel)
    step(shard, None)
    before, told = state(shard), {}
    for bad in ("gradient", "logit", "log-prob"):
        report = step(shard, bad)
        after = state(shard)
        told[bad] = {
            "skipped": report.skipped,
            "same": after.keys() == before.keys()
            and all(torch.equal(after[key], before[key]) for key in before),
        }
    moved = step(shard, None)
    told["next"] = {
        "skipped": moved.skipped,
        "norm": moved.grad_norm,
        "finite": all(bool(t.isfinite().all()) for t in state(shard).values()),
        "same": all(torch.equal(t, before[key]) for key, t in state(shard).items()),
    }
    try:
        for _ in range(9):
            step(shard, "gradient")
    except FloatingPointError as error:
        told["stopped"] = {"why": str(error)}
    return told


def main() -> None:
    torch.set_num_threads(1)
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    join(Rank(rank=rank, size=2, address="127.0.0.1", port=port), timeout_seconds=60)
    told = {cut: run(cut) for cut in CUTS}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    dist.barrier()  # nobody leaves while another still sends
    sys.stdout.flush()
    os._exit(0)  # on a busy machine gloo's threads may end an orderly exit by an abort


if __name__ == "__main__":
    main()
