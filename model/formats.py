"""Formats of a Hugging Face checkpoint: released names; plain, block-FP8 (spec 1.6) or INT4 (7).

A quantised tensor `X.weight` is stored in parts. FP8: `X.weight` and `X.weight_scale_inv`. INT4
(compressed-tensors, pack-quantized): `X.weight_packed`, `X.weight_scale` and `X.weight_shape`.
Quantising is `kernels.fp8.quantise` and `kernels.int4.quantise`, whoever asks.
"""

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels import fp8, int4

ROUTED_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight$")
# Attention, dense MLP, shared and routed experts; not embedding, head, router, norms.
PROJECTION = re.compile(r"_proj(_with_mqa)?\.weight$")
KEEPS_FP32 = "e_score_correction_bias"
INT4_IGNORED = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    r"re:.*mlp\.gate$",
]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says what and where."""


class Quantised(Enum):
    """What is stored in few bits; the other tensors are plain, in bfloat16 as released."""

    fp8 = "fp8"
    """e4m3 in blocks of 128 x 128: attention, dense MLP, shared and routed experts."""
    int4 = "int4"
    """Groups of 32: routed experts only."""


def release(name: str, tensor: Tensor, first_expert: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The released names of one parameter or buffer of a network, with views of it.

    `gate_up_proj` [E, 2 I, D] and `down_proj` [E, D, I] hold the E experts from `first_expert` on.
    """
    if name.endswith(".experts.gate_up_proj"):
        base = name.removesuffix("gate_up_proj")
        for expert, matrix in enumerate(tensor, first_expert):
            gate, up = matrix.chunk(2)
            yield f"{base}{expert}.gate_proj.weight", gate
            yield f"{base}{expert}.up_proj.weight", up
    elif name.endswith(".experts.down_proj"):
        base = name.removesuffix("down_proj")
        for expert, matrix in enumerate(tensor, first_expert):
            yield f"{base}{expert}.down_proj.weight", matrix
    else:
        yield name, tensor


def released_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor of a network under its released name; experts are views."""
    for name, tensor in model.state_dict().items():
        yield from release(name, tensor)


def is_quantised(name: str, quantised: Quantised | None) -> bool:
    """Whether a tensor of that released name is quantised in that format."""
    if quantised is None:
        return False
    pattern = PROJECTION if quantised is Quantised.fp8 else ROUTED_EXPERT
    return pattern.search(name) is not None


def store(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    quantised: Quantised | None = None,
    *,
    unpacked: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds of one released tensor: in parts, or in `dtype` (router bias fp32).

    `unpacked` gives the values that the parts stand for, in `dtype`: for a plain engine that serves
    a network trained with INT4 experts. A tensor that already has `dtype` is passed on as it is.
    Quantise from the master weights: what was rounded to bfloat16 before rounds differently.
    ValueError for INT4 rows that are not a multiple of 32.
    """
    if not is_quantised(name, quantised):
        yield name, tensor.to(torch.float32 if name.endswith(KEEPS_FP32) else dtype)
    elif quantised is Quantised.fp8:
        stored = fp8.quantise(tensor)
        if unpacked:
            yield name, fp8.dequantise(stored, dtype)
        else:
            yield name, stored.weight
            yield f"{name}_scale_inv", stored.weight_scale_inv
    elif unpacked:
        yield name, int4.fake_quantise(tensor, dtype=dtype)
    else:
        packed, scale = int4.quantise(tensor)
        yield f"{name}_packed", packed
        yield f"{name}_scale", scale
        yield f"{name}_shape", torch.tensor(tensor.shape, dtype=torch.int32)


def check_format(shapes: dict[str, torch.Size], quantised: Quantised | None) -> None:
    """CheckpointError naming what `quantised` cannot store; `shapes` are of all tensors."""
    few = {name: shape for name, shape in shapes.items() if is_quantised(name, quantised)}
    if quantised is not None and not few:
        raise CheckpointError(f"no tensor of this network is stored in {quantised.value}")
    for name, shape in few.items():
        if quantised is Quantised.int4 and shape[-1] % int4.GROUP:
            raise CheckpointError(
                f"{name} has rows of {shape[-1]}, INT4 needs a multiple of {int4.GROUP}: "
                "store this network in fp8 or bfloat16"
            )


def quantisation_config(quantised: Quantised) -> dict[str, Any]:
    """`quantization_config` of config.json, as vLLM and transformers read it."""
    if quantised is Quantised.fp8:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [fp8.BLOCK, fp8.BLOCK],
        }
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": int4.GROUP,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": INT4_IGNORED,
    }


def stored_quantisation(folder: Path) -> Quantised | None:
    """How a checkpoint folder is quantised, by its config.json; None if it is not.

    Raises CheckpointError naming the key and value of a format that is not read.
    """
    file = folder / "config.json"
    try:
        return quantisation_of(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def quantisation_of(config: dict[str, Any]) -> Quantised | None:
    """The format that a config.json names, there or in its `text_config`; None if plain.

    Raises ValueError naming the key and value of a format that is not read.
    """
    settings = config.get("quantization_config")
    if settings is None:
        settings = (config.get("text_config") or {}).get("quantization_config")
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"quantization_config must be an object, got {settings!r}")
    return None if settings is None else _quantisation(settings)


def _quantisation(settings: dict[str, Any]) -> Quantised:
    """The format of a `quantization_config`; ValueError naming what is not read."""
    method = settings.get("quant_method")
    if method == "fp8":
        _require(settings, "", {"fmt": ("e4m3", None), "weight_block_size": ([128, 128],)})
        return Quantised.fp8
    if method != "compressed-tensors":
        _require(settings, "", {"quant_method": ("fp8", "compressed-tensors")})
    _require(settings, "", {"format": ("pack-quantized",), "kv_cache_scheme": (None, {})})
    if not settings.get("config_groups"):
        raise ValueError("quantization_config.config_groups must name a group of weights")
    for name, group in settings["config_groups"].items():
        where = f"config_groups.{name}."
        _require(group, where, {"input_activations": (None,), "output_activations": (None,)})
        weights = {
            "num_bits": (4,),
            "type": ("int",),
            "symmetric": (True,),
            "strategy": ("group",),
            "group_size": (int4.GROUP,),
            "actorder": (None, False),
        }
        _require(group.get("weights", {}), f"{where}weights.", weights)
    return Quantised.int4


def _require(settings: dict[str, Any], where: str, allowed: dict[str, tuple[Any, ...]]) -> None:
    """ValueError naming the first key that has none of its allowed values."""
    for key, values in allowed.items():
        if settings.get(key) not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise ValueError(
                f"quantization_config.{where}{key} must be {wanted}, got {settings.get(key)!r}: "
                "this format is not read"
            )
