"""What vLLM is told on a GPU, without one: vLLM's own rules say whether it would start."""

import asyncio
import importlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CacheConfig
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.mla.prefill.base import MLADimensions
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.attention.selector import AttentionSelectorConfig
from vllm.v1.worker.utils import request_memory

from model.load import export_tensors, load_k2
from model.send_weights import WeightSender
from model.tiny import tiny_config
from rollout import vllm_settings
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine
from rollout.probe import compare_probe
from rollout.vllm_settings import MLA_HEADS, core_environment, engine_args

SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
TINY = tuple(getattr(tiny_config(512), size) for size in SIZES)
K2 = (128, 64, 128)
OFF = "VLLM_MLA_DISABLE"
PREFILL = "vllm.v1.attention.backends.mla.prefill.flash_attn"


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, for our settings."""
    platform = SimpleNamespace(is_cpu=lambda: False, is_cuda=lambda: True)
    monkeypatch.setattr(vllm_settings, "current_platform", platform)
    monkeypatch.delenv(OFF, raising=False)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without."""
    platform = SimpleNamespace(is_cpu=lambda: True, is_cuda=lambda: False)
    monkeypatch.setattr(vllm_settings, "current_platform", platform)
    monkeypatch.delenv(OFF, raising=False)


@pytest.fixture
def prefill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The prefill backend that every NVIDIA GPU has. On CPU builds it lacks a kernel to import."""
    there = PREFILL in sys.modules
    name = "compile_flash_attn_varlen_func_from_specs"
    monkeypatch.setattr(fa_utils, name, getattr(fa_utils, name, None), raising=False)
    yield importlib.import_module(PREFILL).FlashAttnPrefillBackend
    if not there:
        del sys.modules[PREFILL]


def _checkpoint(folder: Path, heads: tuple[int, ...], *, nested: bool = False) -> Path:
    sizes: dict[str, Any] = dict(zip(SIZES, heads, strict=True))
    (folder / "config.json").write_text(json.dumps({"text_config": sizes} if nested else sizes))
    return folder


def _mla_off(config: EngineConfig, checkpoint: Path) -> str | None:
    with core_environment(config, checkpoint):
        inside = os.environ.get(OFF)
    assert OFF not in os.environ
    return inside


@pytest.mark.usefixtures("nvidia")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("heads", "dtype", "off"),
    [
        (TINY, Dtype.float32, "1"),
        (TINY, Dtype.bfloat16, "1"),
        (K2, Dtype.float32, "1"),
        (K2, Dtype.bfloat16, None),
    ],
)
def test_mla_is_left_where_no_kernel_serves(
    tmp_path: Path, heads: tuple[int, ...], dtype: Dtype, off: str | None, nested: bool
) -> None:
    checkpoint = _checkpoint(tmp_path, heads, nested=nested)
    assert _mla_off(EngineConfig(dtype=dtype), checkpoint) == off


@pytest.mark.usefixtures("processor")
def test_processors_keep_mla(tmp_path: Path) -> None:
    assert _mla_off(EngineConfig(dtype=Dtype.float32), _checkpoint(tmp_path, TINY)) is None


def test_heads_are_those_of_vllm(prefill: Any) -> None:
    sizes = (0, 64, 128, 192, 256, 512)
    taken = {
        heads
        for heads in itertools.product(sizes, repeat=3)
        if prefill.supports_mla_dimensions(MLADimensions(**dict(zip(SIZES, heads, strict=True))))
    }
    assert taken == MLA_HEADS
    assert prefill.supports_dtype(torch.bfloat16) and not prefill.supports_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_without_mla_the_tiny_k2_has_a_kernel(
    capability: tuple[int, int], dtype: torch.dtype
) -> None:
    asked = AttentionSelectorConfig(
        head_size=TINY[0] + TINY[1], dtype=dtype, kv_cache_dtype="auto", block_size=None
    )
    reasons = TritonAttentionBackend.validate_configuration(
        device_capability=DeviceCapability(*capability), **asked._asdict()
    )
    assert reasons == []


@pytest.mark.usefixtures("nvidia")
def test_an_engine_starts_beside_others_on_its_gpu(tmp_path: Path) -> None:
    """It takes `kv_cache_bytes`; a share of the device is checked, and not taken."""
    args = engine_args(EngineConfig(), tmp_path)
    device: Any = SimpleNamespace(total_memory=80 << 30, free_memory=4 << 30, device_="cuda:0")
    cache = CacheConfig(
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        gpu_memory_utilization=args.gpu_memory_utilization,
    )
    assert request_memory(device, cache) < 1 << 30


@pytest.mark.usefixtures("processor")
def test_processors_keep_their_share(tmp_path: Path) -> None:
    share = engine_args(EngineConfig(), tmp_path).gpu_memory_utilization
    assert share == CacheConfig().gpu_memory_utilization


def drop_plan(worker: Any) -> None:
    """In the core process: load as on a GPU, by vLLM's own reload."""
    worker.worker.weight_transfer_engine._plan = None


def test_weights_arrive_without_mla(
    checkpoints: tuple[Path, Path],
    sequences: Sequence[Sequence[int]],
    runner: asyncio.Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both ways of loading leave what vLLM makes of a checkpoint at its start."""
    monkeypatch.setenv(OFF, "1")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    config = EngineConfig(max_model_len=256, max_num_seqs=32, kv_cache_bytes=1 << 26)
    sender = WeightSender(bucket_bytes=1 << 22, root=tmp_path)

    async def differences() -> list[float]:
        engine = await Engine.start(config, checkpoints[0])
        try:
            old = await engine.score_tokens(sequences)
            found = []
            for version, folder in enumerate((*checkpoints[::-1], *checkpoints[::-1]), start=1):
                if version == 3:
                    await engine._llm.collective_rpc(drop_plan)
                tensors = export_tensors(load_k2(folder), torch.bfloat16)
                await engine.receive(sender.publish(tensors, version))
                new = await engine.score_tokens(sequences)
                report = compare_probe(new, old, tolerance=99, version=version, engine="")
                found.append(report.largest)
            return found
        finally:
            await engine.shutdown()

    planned, planned_back, reloaded, reloaded_back = runner.run(differences())
    sender.close()
    assert min(planned, reloaded) > 1
    assert max(planned_back, reloaded_back) < 1e-5
