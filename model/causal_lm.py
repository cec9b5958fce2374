"""Causal language models of transformers as networks of ours (model/network.py).

The modules are transformers' own, under their own names. Ours are attention over packed sequences
with every head's largest logit, and the routed experts. Weights keep their precision; with a
narrower `compute_dtype`, autocast narrows them where they meet activations. Norm statistics,
routers and rotary angles stay in at least fp32. The final hidden states are not multiplied by the
head: `model.policy` does that for every network.

Shapes: T packed tokens, D hidden, L layers, N query heads, K experts per token.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as VERSION
from transformers.activations import SiLUActivation
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from model.formats import CheckpointError
from model.head_rows import Heads, clip_note, clip_rows
from model.hf_backend import (
    NARROW,
    Packing,
    fused_experts,
    is_rotary,
    packed_attention,
    set_precisions_,
)
from model.hf_config import HFConfig, refusals
from model.network import Network, NetworkOutput

BACKEND = "temper"  # under this name transformers finds our attention and experts
SILU = (nn.SiLU, SiLUActivation)
# How transformers fuses the experts that formats.released_tensors splits.
EXPERT_FUSION = [
    (
        ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
        ["mlp.experts.gate_up_proj"],
    ),
    (["mlp.experts.*.down_proj.weight"], ["mlp.experts.down_proj"]),
]

AttentionInterface.register(BACKEND, packed_attention)
ALL_EXPERTS_FUNCTIONS.register(BACKEND, fused_experts)


def _settings(config: HFConfig) -> PreTrainedConfig:
    """transformers' form of a config.json; CheckpointError says why a network is refused."""
    kind = config.model_type
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"model_type {kind} is not a causal language model of transformers {VERSION}"
        )
    declared = CONFIG_MAPPING[kind]
    try:
        settings = declared.from_dict(config.values)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"config.json of {kind}: {error}") from error
    reasons = list(refusals(config, settings.to_dict(), _known_keys(declared)))
    if reasons:
        raise CheckpointError(f"config.json of {kind}: " + "; ".join(reasons))
    return settings


def _known_keys(declared: type[PreTrainedConfig]) -> frozenset[str]:
    """What a config.json of this kind may say.

    Some keys are declared nowhere and read by name all the same (head_dim of qwen3_moe): a key is
    known if the network's source has the word.
    """
    known = {field.name for field in dataclasses.fields(declared)}
    known |= vars(GenerationConfig()).keys()
    for part in (declared, MODEL_FOR_CAUSAL_LM_MAPPING[declared]):
        known |= set(re.findall(r"\w+", inspect.getsource(sys.modules[part.__module__])))
    return frozenset(known)


def _check_structure(model: PreTrainedModel) -> None:
    """CheckpointError unless names are those of the files and the head is a plain matrix."""
    name = type(model).__name__
    parts = sorted(part for part, _ in model.named_children())
    if parts != sorted([model.base_model_prefix, "lm_head"]):
        raise CheckpointError(f"{name} must consist of a decoder and lm_head, not {parts}")
    head = model.lm_head
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise CheckpointError(f"lm_head of {name} is not a linear map without bias")
    if not model.all_tied_weights_keys.keys() <= {"lm_head.weight"}:
        raise CheckpointError(f"{name} ties {', '.join(model.all_tied_weights_keys)}")
    fusion = [
        (change.source_patterns, change.target_patterns)
        for change in get_model_conversion_mapping(model, add_legacy=False)
    ]
    fused = any(key.endswith("experts.gate_up_proj") for key, _ in model.named_parameters())
    if fusion != (EXPERT_FUSION if fused else []) and fusion != EXPERT_FUSION:
        raise CheckpointError(f"tensors of {name} have other names in its files: not implemented")
    for path, module in model.named_modules():
        derived = module._non_persistent_buffers_set
        if derived and not is_rotary(module):
            raise CheckpointError(f"{name} computes {path}.{min(derived)}: not implemented")
        activation = getattr(module, "act_fn", None)
        if hasattr(module, "gate_up_proj") and fused and not isinstance(activation, SILU):
            raise CheckpointError(f"experts of {name} do not use silu")


class CausalLM(Network):
    """A transformers model as a Network. Make it with `from_config`."""

    def __init__(
        self,
        config: HFConfig,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        checkpoint_layers: bool = False,
    ) -> None:
        super().__init__()
        if compute_dtype != dtype and compute_dtype not in NARROW:
            raise ValueError(f"cannot compute in {compute_dtype} with weights in {dtype}")
        self.config, self.compute_dtype = config, compute_dtype
        settings = _settings(config)
        self.context = int(settings.max_position_embeddings)
        model = AutoModelForCausalLM.from_config(
            settings, attn_implementation=BACKEND, experts_implementation=BACKEND, dtype=dtype
        )
        _check_structure(model)
        if checkpoint_layers:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._decoder, self.tied = model.base_model_prefix, bool(model.all_tied_weights_keys)
        for name, child in model.named_children():
            self.add_module(name, child)
        set_precisions_(self)
        attentions = {
            module.layer_idx: name
            for name, module in self.named_modules()
            if "Attention" in type(module).__name__
        }
        heads = int(settings.num_attention_heads)
        keys = int(getattr(settings, "num_key_value_heads", None) or heads)
        self.heads = Heads(tuple(attentions[layer] for layer in sorted(attentions)), heads, keys)
        # Why QK-Clip leaves this network alone; None where it applies.
        self.qk_clip_note = clip_note(self, self.heads)

    @classmethod
    def from_config(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype = torch.float32,
        checkpoint_layers: bool = False,
    ) -> "CausalLM":
        """The network of a folder's config.json with transformers' random weights.

        Under `torch.device("meta")` nothing is allocated: see `model.checkpoint_reader`.
        Raises CheckpointError for a network that would be trained wrongly.
        """
        try:
            config = HFConfig.from_json(Path(path) / "config.json")
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        try:
            with torch.device("meta"):
                network = cls(config, dtype, compute_dtype, checkpoint_layers)
            network._rehearse()
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{config.model_type} cannot be trained: {error!r}") from error
        if torch.get_default_device().type != "meta":
            network = cls(config, dtype, compute_dtype, checkpoint_layers)
        return network

    def derive_(self, module: nn.Module) -> None:
        """Rotary frequencies."""
        if is_rotary(module):
            for name, buffer in type(module)(module.config).named_buffers(recurse=False):
                setattr(module, name, buffer.to(getattr(module, name).device))

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding."""
        return self.get_submodule(self._decoder).get_input_embeddings()  # type: ignore[operator]

    def forward(
        self,
        ids: Int[Tensor, " T"],
        lengths: Sequence[int],
        replay: Int[Tensor, "layers T K"] | None = None,
    ) -> NetworkOutput:
        """Hidden states of sequences laid end to end; `lengths` are theirs and sum to T."""
        if replay is not None:
            raise ValueError(f"routing replay is not implemented for {self.config.model_type}")
        if sum(lengths) != len(ids) or min(lengths, default=0) < 1:
            raise ValueError(
                f"lengths must be positive and sum to {len(ids)} tokens, got {list(lengths)}"
            )
        if max(lengths) > self.context:
            raise ValueError(
                f"a sequence of {max(lengths)} tokens is longer than the context of the network, "
                f"max_position_embeddings = {self.context}"
            )
        positions = torch.cat([torch.arange(length) for length in lengths]).to(ids.device)
        packing = Packing(tuple(lengths), {})
        # A meta tensor knows no autocast: shapes are the same without.
        dtype = self.lm_head.weight.dtype if ids.is_meta else self.compute_dtype
        device = "cpu" if ids.is_meta else ids.device.type
        # Without the cache: it would hold a narrow copy of every weight until the end.
        with torch.autocast(
            device,
            dtype=dtype,
            enabled=dtype in NARROW and not ids.is_meta,
            cache_enabled=False,
        ):
            output = self.get_submodule(self._decoder)(
                inputs_embeds=self.embedding(ids)[None].to(dtype),
                position_ids=positions[None],
                use_cache=False,
                temper_packing=packing,
            )
        maxima = [packing.max_logits[layer] for layer in sorted(packing.max_logits)]
        return NetworkOutput(output.last_hidden_state[0].to(dtype), torch.stack(maxima))

    def clip_rows(
        self, gamma: Float[Tensor, "L N"]
    ) -> Iterator[tuple[str, Float[Tensor, " rows"]]]:
        """What QK-Clip multiplies: see model.head_rows. Nothing under a `qk_clip_note`."""
        if self.qk_clip_note is None:
            yield from clip_rows(self, self.heads, gamma)

    def _rehearse(self) -> None:
        """One sequence as long as the context, on the meta device: do all layers come to us?"""
        ids = torch.zeros(self.context, dtype=torch.int64, device="meta")
        with torch.no_grad():
            layers, heads = self(ids, [self.context]).max_logits.shape
        if (layers, heads) != (len(self.heads.modules), self.heads.queries):
            raise CheckpointError(
                f"{self.config.model_type} has {len(self.heads.modules)} attention layers of "
                f"{self.heads.queries} heads, but {layers} of {heads} use our attention"
            )
