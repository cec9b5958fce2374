"""The released networks of this architecture (spec 1.1), for plans and for tests without a file."""

from model.k2_config import K2Config, RopeScaling


def kimi_k2_instruct() -> K2Config:
    """Kimi K2-Base and K2-Instruct, July 2025: 1,026 B parameters."""
    return K2Config(eos_token_id=163585)


def kimi_k2_thinking() -> K2Config:
    """Kimi K2-Thinking: twice the context, another epsilon."""
    return K2Config(
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        rope_scaling=RopeScaling(factor=64.0),
    )


def kimi_k2p5() -> K2Config:
    """The text network of Kimi K2.5 and K2.6: YaRN with its usual beta_fast."""
    return K2Config(
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        rope_scaling=RopeScaling(factor=64.0, beta_fast=32.0),
    )


def moonlight_16b() -> K2Config:
    """Moonlight-16B-A3B: queries without a latent, no YaRN."""
    return K2Config(
        hidden_size=2048,
        intermediate_size=11264,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_shared_experts=2,
        n_routed_experts=64,
        num_experts_per_tok=6,
        routed_scaling_factor=2.446,
        q_lora_rank=None,
        rms_norm_eps=1e-5,
        rope_scaling=None,
        max_position_embeddings=8192,
        eos_token_id=163585,
    )


def deepseek_v3() -> K2Config:
    """DeepSeek-V3: experts chosen within groups, three dense layers, one stored MTP layer."""
    return K2Config(
        vocab_size=129280,
        num_attention_heads=128,
        num_key_value_heads=128,
        n_routed_experts=256,
        n_group=8,
        topk_group=4,
        first_k_dense_replace=3,
        routed_scaling_factor=2.5,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(factor=40.0, beta_fast=32.0),
        max_position_embeddings=163840,
        num_nextn_predict_layers=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
