"""How vLLM is started: its settings and its environment, from those of a recipe."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vllm.config import AttentionConfig, VllmConfig, WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from rollout.config import Dtype, EngineConfig
from rollout.receive_weights import BACKEND
from rollout.routing import ASKER, RECORDER

MLA_HEADS = {(128, 64, 128), (192, 64, 256), (64, 64, 128), (256, 0, 256)}
"""Sizes of heads (without a position, rotated, of values) that vLLM's MLA takes on NVIDIA GPUs."""


def vllm_config(config: EngineConfig, checkpoint: str | Path, sleeps: bool) -> VllmConfig:
    """What vLLM makes of its settings. Raises ValueError if they do not go together."""
    args = engine_args(config, checkpoint)
    args.enable_sleep_mode = sleeps and not current_platform.is_cpu()  # CPU has none: `sleep`
    if config.routing_replay and current_platform.is_cpu():
        # There vLLM refuses `enable_return_routed_experts`, for want of its Model Runner V2.
        args.worker_extension_cls, args.scheduler_cls = RECORDER, ASKER
    return args.create_engine_config(UsageContext.ENGINE_CONTEXT)


def engine_args(config: EngineConfig, checkpoint: str | Path) -> AsyncEngineArgs:
    """All of vLLM's settings: those that a recipe chooses, and those that it does not."""
    # vLLM chooses AMX attention by the processor alone, but it takes bfloat16 only.
    plain = current_platform.is_cpu() and config.dtype is Dtype.float32
    # With GPUs, `rl.gpus` has reserved one for each worker of an engine that has several.
    several = "ray" if os.environ.get("VLLM_RAY_BUNDLE_INDICES") else "mp"
    default_share = AsyncEngineArgs.gpu_memory_utilization
    return AsyncEngineArgs(
        model=str(checkpoint),
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype=config.dtype.value,
        seed=config.seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        kv_cache_memory_bytes=config.kv_cache_bytes,
        # On CPU that is a share of the host's memory. On GPU vLLM would refuse to start unless 92 %
        # of the device were free, though it takes `kv_cache_bytes` and no share of anything.
        gpu_memory_utilization=0.01 if current_platform.is_cuda() else default_share,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if config.tensor_parallel_size == 1 else several,
        enforce_eager=config.eager,
        enable_return_routed_experts=config.routing_replay and not current_platform.is_cpu(),
        # Judgements of one group share prefixes. vLLM overrules it for MLA on CPUs without AMX.
        enable_prefix_caching=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        attention_config=AttentionConfig(backend=AttentionBackendEnum.CPU_MLA if plain else None),
    )


@contextlib.contextmanager
def core_environment(config: EngineConfig, checkpoint: str | Path) -> Iterator[None]:
    """Environment that vLLM's core process inherits; ours is put back afterwards."""
    before = dict(os.environ)
    if current_platform.is_cuda() and not has_gpu_mla(config.dtype, checkpoint):
        # Attention is computed head by head then, on keys and values that are kept of each head.
        os.environ["VLLM_MLA_DISABLE"] = "1"
    os.environ.update(
        # One process for scheduler and model: on CPU vLLM otherwise adds a worker process.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        OMP_NUM_THREADS=str(config.threads),
        OMP_WAIT_POLICY="passive",  # spinning threads starve the learner beside the engine
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        TORCH_CPP_LOG_LEVEL="ERROR",
        PYTHONWARNINGS="ignore",
    )
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def has_gpu_mla(dtype: Dtype, checkpoint: str | Path) -> bool:
    """Whether vLLM has MLA for a checkpoint's heads on NVIDIA GPUs; in float32 it has none."""
    settings = json.loads((Path(checkpoint) / "config.json").read_text())
    settings = settings.get("text_config", settings)
    names = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return dtype is Dtype.bfloat16 and tuple(map(settings.get, names)) in MLA_HEADS


def stop_token_ids(config: VllmConfig, end_of_turn: int | None = None) -> list[int]:
    """The checkpoint's end-of-turn tokens: its generation config's, else its config's; and that of
    its chat template, which in a base model's files may be another (K2's name [EOS]).

    Raises ValueError if the checkpoint names none.
    """
    model = config.model_config
    eos = model.try_get_generation_config().get("eos_token_id", model.hf_config.eos_token_id)
    if eos is None:
        raise ValueError(f"{model.model}: no eos_token_id in config.json or generation_config.json")
    named = [eos] if isinstance(eos, int) else list(eos)
    if end_of_turn is None or end_of_turn in named:
        return named
    return [*named, end_of_turn]
