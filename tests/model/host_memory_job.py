"""One rank of the job in test_host_memory.py: `python host_memory_job.py FOLDER RANK PORT`.

Trains one small K2 twice for every way to cut it: as it is, and with its state away from where it
lies between the steps. Here that is host memory, too, so that every device will do.
"""

import gc
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
from model.host_memory import HostMemory
from model.k2 import K2
from model.parallel import Shard, join

CUTS: dict[str, dict[str, Any]] = {
    "1": {"zero_stage": 1},
    "2-bf16": {"zero_stage": 2, "weights": Precision.bfloat16},
    "2-offload": {"zero_stage": 2, "offload": Offload.cpu},
    "3": {"zero_stage": 3, "weights": Precision.bfloat16},
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
CPU = torch.device("cpu")


def shard_of(cut: dict[str, Any]) -> Shard:
    AcceleratorState._reset_state(True)
    whole = K2(CONFIG)
    whole.initialize_(0)
    weights = whole.state_dict()

    @torch.no_grad()
    def fill(slots: dict[str, Tensor], first: int) -> None:
        for key, tensor in slots.items():
            known = weights[key]
            tensor.copy_(known[first : first + len(tensor)] if ".experts." in key else known)

    with torch.device("meta"):
        network = K2(CONFIG)
    return Shard(network, fill, MuonClipConfig(), ParallelConfig(shards=2, **cut))


def step(shard: Shard) -> None:
    ids = torch.arange(3, 9) + shard.rank
    mask = torch.ones(6, dtype=torch.bool)
    mask[0] = False
    out = shard.forward(ids, mask, [6], torch.ones(1))
    shard.backward(-out.logprobs.sum() / 10, last=True)
    shard.step(out.max_logits, 0.02)


def state(shard: Shard) -> dict[str, Tensor]:
    """Weights, and all that the optimiser remembers, of this rank."""
    kept = {f"{name} {first}": t.clone() for name, t, first in shard.tensors()}
    for number, flat in enumerate(shard.optimizer.flats()):
        kept[f"flat {number}"] = flat.detach().clone()
        for kind, value in shard.optimizer.state[flat].items():
            kept[f"{kind} {number}"] = value.clone()
    return kept


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def memories() -> dict[int, int]:
    """Bytes of everything that any tensor of this process still holds, by address."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    storages = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def away(shard: Shard, others: set[int]) -> dict[str, Any]:
    """Send the state away and back; what was seen meanwhile."""
    before, host = state(shard), HostMemory()
    if shard.parallel.zero_stage == 3:
        shard._engine.optimizer.empty_partition_cache()
    mine = {a: n for a, n in memories().items() if a not in others}
    mine = {a: n for a, n in mine.items() if a not in {t.data_ptr() for t in before.values()}}
    moved = host.take(shard.kept(), CPU)
    copies = {block.data_ptr() for _, blocks in host._away for block in blocks}
    known = others | copies | {t.data_ptr() for t in before.values()}
    left = sum(n for a, n in memories().items() if a not in known)
    here = [t for t in shard.kept() if t.device.type == "cpu"]
    emptied = sum(t.untyped_storage().nbytes() for t in here)
    host.give_back()
    return {
        "moved": moved,
        "had": sum(mine.values()),
        "left": left,
        "in_kept": emptied,
        "same": same(before, state(shard)),
    }


def run(cut: dict[str, Any]) -> dict[str, Any]:
    plain = shard_of(cut)
    step(plain)
    step(plain)
    expected = state(plain)
    others = set(memories())
    shard = shard_of(cut)
    told = [away(shard, others)]
    step(shard)
    told.append(away(shard, others))
    step(shard)
    return {"turns": told, "same_steps": same(expected, state(shard))}


def main() -> None:
    torch.set_num_threads(1)
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    join(Rank(rank=rank, size=2, address="127.0.0.1", port=port), timeout_seconds=120)
    told = {name: run(cut) for name, cut in CUTS.items()}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    dist.barrier()  # nobody leaves while another still sends
    sys.stdout.flush()
    os._exit(0)  # on a busy machine gloo's threads may end an orderly exit by an abort


if __name__ == "__main__":
    main()
