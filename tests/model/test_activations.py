"""The arithmetic against the bytes that networks really keep: within 10 % at the height of a pass.

Exact equality is not asked for: small tensors (indices, one number a row) are left out on purpose,
and in the backward pass of an expert layer a part is freed before the next is made.
"""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3MoeConfig

from model.activations import Pass, activations
from model.causal_lm import CausalLM
from model.config import ParallelConfig
from model.gqa import GqaConfig
from model.inventory import Architecture, inventory
from model.k2 import K2
from model.live_bytes import LiveBytes
from model.network import Network
from model.policy import Policy
from model.tiny import tiny_config

TOKENS, LENGTH = 2048, 256
CASES = [
    (torch.float32, torch.float32, False),
    (torch.bfloat16, torch.float32, False),
    (torch.float32, torch.float32, True),
]


def _measured(network: Network) -> int:
    """Bytes at the height of a second forward and backward pass, beside weights and gradients."""
    policy = Policy(network)
    lengths = [LENGTH] * (TOKENS // LENGTH)
    ids = torch.randint(0, 500, (TOKENS,), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(TOKENS, dtype=torch.bool)
    mask[::LENGTH] = False
    height = 0
    for _ in range(2):
        with LiveBytes() as live:
            for parameter in policy.parameters():
                live.watch(parameter)
                if parameter.grad is not None:
                    live.watch(parameter.grad)
            before = live.now
            out = policy(ids, mask, lengths, torch.ones(len(lengths)))
            (-out.logprobs.mean()).backward()
            del out
            height = live.peak - before
    return height


def _predicted(
    config: Architecture, compute: torch.dtype, weights: torch.dtype, again: bool
) -> int:
    run = Pass(
        tokens=TOKENS,
        compute_bytes=compute.itemsize,
        weight_bytes=weights.itemsize,
        parallel=ParallelConfig(checkpoint_layers=again),
        cpu=True,
    )
    return activations(config, inventory(config), run).total


@pytest.mark.parametrize(
    ("compute", "weights", "again"),
    [*CASES, (torch.bfloat16, torch.bfloat16, False), (torch.bfloat16, torch.bfloat16, True)],
)
def test_k2_keeps_what_was_predicted(
    compute: torch.dtype, weights: torch.dtype, again: bool
) -> None:
    config = tiny_config(512)
    network = K2(config, compute, checkpoint_layers=again).to(weights)
    network.initialize_(0)
    assert _predicted(config, compute, weights, again) == pytest.approx(_measured(network), rel=0.1)


@pytest.mark.parametrize("experts", [0, 8])
@pytest.mark.parametrize(("compute", "weights", "again"), CASES)
def test_qwen3_keeps_what_was_predicted(
    compute: torch.dtype, weights: torch.dtype, again: bool, experts: int, tmp_path: Path
) -> None:
    sizes = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    }  # fmt: skip
    chosen = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
    written = Qwen3MoeConfig(**sizes, **chosen) if experts else Qwen3Config(**sizes)
    written.save_pretrained(tmp_path)
    network = CausalLM.from_config(tmp_path, weights, compute, again)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.02)
        for buffer in network.buffers():
            buffer.fill_(0.5)
    config = GqaConfig.from_json(tmp_path / "config.json")
    assert _predicted(config, compute, weights, again) == pytest.approx(_measured(network), rel=0.1)
