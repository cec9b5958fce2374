"""DeepSpeed's settings for a way of cutting the learner."""

from typing import Any

import torch

from model.config import Offload, ParallelConfig, Precision

REDUCE_BUCKET_ELEMENTS = 50_000_000


def engine_settings(parallel: ParallelConfig) -> dict[str, Any]:
    """DeepSpeed's settings."""
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "reduce_scatter": True,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        "allgather_bucket_size": REDUCE_BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": 0,
        # Its own linear layer wants weights and activations of one precision.
        "memory_efficient_linear": False,
    }
    if parallel.offload is not Offload.none:
        zero["offload_optimizer"] = {
            "device": parallel.offload.value,
            "pin_memory": torch.cuda.is_available(),
            "nvme_path": parallel.nvme_path,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # boundaries are set by hand
        # After orthogonalisation a clip would scale the update itself, before it has no effect.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": parallel.weights is Precision.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
    }
