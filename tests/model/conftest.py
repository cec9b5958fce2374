"""A small network with nothing at its neutral value."""

from collections.abc import Callable

import pytest
import torch

from model.config import K2Config
from model.k2 import K2


@pytest.fixture
def make_small() -> Callable[..., K2]:
    """Makes it, with any key of the config changed."""

    def make(compute_dtype: torch.dtype = torch.float32, **changes: int | float | None) -> K2:
        sizes = {
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 40,
            "moe_intermediate_size": 12,
        }
        sizes |= {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_shared_experts": 2,
        }
        sizes |= {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "q_lora_rank": 20,
            "kv_lora_rank": 24,
        }
        sizes |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "v_head_dim": 10}
        sizes |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        model = K2(K2Config(**(sizes | changes)), compute_dtype)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                shift = 1.0 if parameter.dim() == 1 else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + shift)
            for buffer in model.buffers():
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
        return model

    return make
