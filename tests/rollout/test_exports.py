"""An engine serves what INT4 training computes, and reads our quantised checkpoints' settings.

vLLM has no kernel on CPU for K2's routed experts in INT4 (its own choose experts by softmax only),
and wants AMX for block FP8. So the engine here gets the values that the INT4 parts stand for, in
plain tensors; that the parts stand for these values is tested in `tests/model/test_load.py`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer
from vllm.model_executor.layers.quantization.fp8 import Fp8Config

from model.formats import Quantised, quantisation_config
from model.k2 import K2
from model.load import export_tensors, load_k2
from model.policy import Policy
from model.send_weights import WeightSender
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine

# Mean of |difference| in nats, as in test_engine.py.
TOLERANCE = {Dtype.float32: 1e-4, Dtype.bfloat16: 2e-2}
# What rounding the experts to INT4 does to the same log-probs, at least.
EFFECT = 0.05


@pytest.fixture(scope="module", params=[Dtype.float32, Dtype.bfloat16], ids=lambda d: d.value)
def dtype(request: pytest.FixtureRequest) -> Dtype:
    return request.param


@pytest.fixture(scope="module")
def engine(dtype: Dtype, checkpoints, runner: asyncio.Runner) -> Iterator[Engine]:
    config = EngineConfig(dtype=dtype, max_model_len=256, max_num_seqs=32, kv_cache_bytes=1 << 26)
    engine = runner.run(Engine.start(config, checkpoints[0], version=0))
    yield engine
    runner.run(engine.shutdown())


def logprobs(model: K2, sequences: list[list[int]]) -> torch.Tensor:
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    in_loss = torch.ones(len(ids), dtype=torch.bool)
    in_loss[torch.tensor([0, *lengths]).cumsum(0)[:-1]] = False
    with torch.no_grad():
        return Policy(model)(ids, in_loss, lengths, torch.ones(len(lengths))).logprobs


def test_a_plain_engine_serves_what_int4_training_computes(
    engine: Engine, dtype: Dtype, checkpoints, runner: asyncio.Runner, sequences, tmp_path: Path
) -> None:
    learner = load_k2(checkpoints[0], int4_experts=True)
    for name, parameter in learner.named_parameters():
        if ".experts." not in name:  # rounded when it is sent
            parameter.data.copy_(parameter.data.to(getattr(torch, dtype.value)))
    expected = logprobs(learner, sequences)
    sender = WeightSender(root=tmp_path)
    found = []
    for version, quantised in enumerate((None, Quantised.int4), 1):
        tensors = export_tensors(learner, getattr(torch, dtype.value), quantised, unpacked=True)
        runner.run(engine.receive(sender.publish(tensors, version)))
        rows = runner.run(engine.score_tokens(sequences))
        found.append(torch.tensor([each for row in rows for each in row]))
    sender.close()
    masters, served = ((each - expected).abs().mean() for each in found)
    assert masters > EFFECT
    assert served < TOLERANCE[dtype]


def test_vllm_finds_int4_in_the_routed_experts_only() -> None:
    config = CompressedTensorsConfig.from_config(quantisation_config(Quantised.int4))
    weights = config.target_scheme_map["Linear"]["weights"]
    assert config.quant_format == "pack-quantized"
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (4, 32, True)
    layer = "model.layers.1."
    assert not should_ignore_layer(f"{layer}mlp.experts.3.down_proj", config.ignore)
    for plain in (
        "self_attn.q_a_proj",
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.o_proj",
        "mlp.shared_experts.up_proj",
        "mlp.gate_proj",
        "mlp.down_proj",
    ):
        assert should_ignore_layer(layer + plain, config.ignore), plain
    assert should_ignore_layer("lm_head", config.ignore)


def test_vllm_finds_fp8_blocks() -> None:
    config = Fp8Config.from_config(quantisation_config(Quantised.fp8))
    assert config.is_checkpoint_fp8_serialized
    assert config.weight_block_size == [128, 128]
    assert config.activation_scheme == "dynamic"
