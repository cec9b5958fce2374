"""The K2 network over packed sequences. Read it beside sections 1.2 and 1.3 of the specification.

Parameter names are those of the released checkpoint, except that the routed experts of a layer are
two fused tensors. Weights keep their own precision (fp32 masters); activations, and the weights
they meet, are in `compute_dtype`. Router, normalisation statistics, rotation and attention logits
are at least fp32 whatever the compute precision.

Shapes: T packed tokens, U of them computed (`model.shared_prefixes`), L layers, D hidden, N heads,
E experts, K experts per token.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.attention import causal_attention
from kernels.int4 import GROUP
from kernels.rms_norm import rms_norm
from model.feed_forward import Experts as Experts
from model.feed_forward import Linear, MixtureOfExperts, Router, SwiGLU
from model.k2_config import K2Config
from model.network import Network, NetworkOutput
from model.rope import rotate, rotations, softmax_scale
from model.shared_prefixes import Sharing, shared_prefixes


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Multi-head latent attention (spec 1.3)."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.latent, self.scale = config.kv_lora_rank, softmax_scale(config)
        queries = self.heads * (self.nope + self.rope)
        # Both latent norms take rms_norm_eps, as in the rollout engine; transformers leaves them at
        # 1e-6 whatever the config says (spec 1.1).
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, queries)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(config.q_lora_rank, queries)
        self.direct = config.q_lora_rank is None
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.latent + self.rope)
        self.kv_a_layernorm = RMSNorm(self.latent, config.rms_norm_eps)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = Linear(self.heads * self.value, config.hidden_size)

    def forward(
        self,
        x: Float[Tensor, "U D"],
        rotation: Tensor,
        lengths: Sequence[int],
        shared: Sharing | None = None,
    ) -> tuple[Float[Tensor, "U D"], Float[Tensor, " N"]]:
        """Output and each head's largest logit; `x` is of the kept places alone, if some are."""
        q = self.q_proj(x) if self.direct else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_c, q_r = q.unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], dim=-1)
        c_kv, k_r = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(c_kv)).unflatten(-1, (self.heads, -1))
        k_c, v = kv.split([self.nope, self.value], dim=-1)
        q_r = rotate(q_r, rotation)
        k_r = rotate(k_r[:, None], rotation).expand(-1, self.heads, -1)  # one key for all heads
        q, k = torch.cat([q_c, q_r], dim=-1), torch.cat([k_c, k_r], dim=-1)
        if shared is not None:
            q, k, v = (each.index_select(0, shared.of) for each in (q, k, v))
        out, max_logit = causal_attention(q, k, v, lengths, self.scale)
        if shared is not None:
            out = out.index_select(0, shared.kept)
        return self.o_proj(out.flatten(1)), max_logit


class LayerOutput(NamedTuple):
    """What one layer gives back."""

    x: Float[Tensor, "T D"]
    max_logit: Float[Tensor, " N"]  # largest attention logit of every head
    chosen: Int[Tensor, "T K"] | None  # experts; None in a dense layer
    differing: Int[Tensor, ""] | None  # choices of a replay that it would not make


class Layer(nn.Module):
    """h = x + MLA(norm(x)); y = h + FFN(norm(h)) (spec 1.2)."""

    def __init__(self, config: K2Config, index: int, int4: bool = False) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dense = index < config.first_k_dense_replace
        self.mlp: nn.Module = (
            SwiGLU(config.hidden_size, config.intermediate_size)
            if self.dense
            else MixtureOfExperts(config, int4)
        )

    def forward(
        self,
        x: Float[Tensor, "T D"],
        rotation: Tensor,
        lengths: Sequence[int],
        replay: Int[Tensor, "T K"] | None = None,
        shared: Sharing | None = None,
    ) -> LayerOutput:
        """The layer over packed sequences."""
        attended, max_logit = self.self_attn(self.input_layernorm(x), rotation, lengths, shared)
        x = x + attended
        normed = self.post_attention_layernorm(x)
        if self.dense:
            return LayerOutput(x + self.mlp(normed), max_logit, None, None)
        fed, routed = self.mlp(normed, replay)
        return LayerOutput(x + fed, max_logit, routed.chosen, routed.differing)


class Decoder(nn.Module):
    """Embedding, layers, final norm: what the released names call `model`."""

    def __init__(self, config: K2Config, int4: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, index, int4) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class K2(Network):
    """The network. Weights start as torch makes them: call `initialize_` or load a checkpoint."""

    def __init__(
        self,
        config: K2Config,
        compute_dtype: torch.dtype = torch.float32,
        *,
        checkpoint_layers: bool = False,
        int4_experts: bool = False,
        count_load: bool = False,
    ) -> None:
        """Make room for the weights.

        Args:
            config: sizes.
            compute_dtype: of activations and of the weights that they meet.
            checkpoint_layers: keep only every layer's input for the backward pass, which computes
                the layer again.
            int4_experts: routed experts compute with the weights that INT4 export will store.
            count_load: add up in `load` how many tokens every expert was given.

        Raises:
            ValueError: INT4 groups do not divide the experts' rows.
        """
        super().__init__()
        if int4_experts and (config.hidden_size % GROUP or config.moe_intermediate_size % GROUP):
            raise ValueError(
                f"int4_experts needs hidden_size and moe_intermediate_size divisible by {GROUP}, "
                f"got {config.hidden_size} and {config.moe_intermediate_size}"
            )
        self.config, self.compute_dtype = config, compute_dtype
        self.context = config.max_position_embeddings
        self.checkpoint_layers = checkpoint_layers
        self.count_load = count_load
        self.load: Int[Tensor, "moe_layers E"] | None = None
        self.differing: Int[Tensor, ""] | None = None
        """Choices of the last pass's replay that the routers would not have made; None: no replay.
        """
        self.model = Decoder(config, int4_experts)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        ids: Int[Tensor, " T"],
        lengths: Sequence[int],
        replay: Int[Tensor, "moe_layers T K"] | None = None,
    ) -> NetworkOutput:
        """See `model.network.Network`. Raises ValueError on what does not fit the config.

        A token without a record has -1 for all its experts: the routers choose for it.
        """
        self._check(ids, lengths, replay)
        precise = torch.promote_types(self.compute_dtype, torch.float32)
        rotation = rotations(self.config, lengths, precise).to(ids.device)
        # A replay has experts of its own for every place, also where the tokens are the same.
        shared = shared_prefixes(ids, lengths) if replay is None else None
        if shared is not None:
            ids, rotation = ids[shared.kept], rotation[shared.kept]
        x = self.model.embed_tokens(ids).to(self.compute_dtype)
        max_logits, choices, differing = [], [], []
        dense = self.config.first_k_dense_replace
        for index, layer in enumerate(self.model.layers):
            given = None if replay is None or index < dense else replay[index - dense].long()
            x, max_logit, chosen, differs = self._run(layer, x, rotation, lengths, given, shared)
            max_logits.append(max_logit)
            choices += [] if chosen is None else [chosen]
            differing += [] if differs is None else [differs]
        self.differing = torch.stack(differing).sum() if differing else None
        if self.count_load:
            self._count([each if shared is None else each[shared.of] for each in choices])
        hidden = self.model.norm(x)
        if shared is not None:
            hidden = hidden.index_select(0, shared.of)
        return NetworkOutput(hidden, torch.stack(max_logits))

    def _run(self, layer: nn.Module, *inputs: Any) -> LayerOutput:
        if not self.checkpoint_layers:
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _check(self, ids: Tensor, lengths: Sequence[int], replay: Tensor | None) -> None:
        """Refuse what does not fit, before anything is computed."""
        if sum(lengths) != len(ids) or min(lengths, default=0) < 1:
            raise ValueError(
                f"lengths must be positive and sum to {len(ids)} tokens, got {list(lengths)}"
            )
        if max(lengths) > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {max(lengths)} tokens is longer than max_position_embeddings "
                f"{self.config.max_position_embeddings}: cut it, or raise the config's limit"
            )
        if replay is None:
            return
        moe_layers = self.config.num_hidden_layers - self.config.first_k_dense_replace
        wanted = (moe_layers, len(ids), self.config.num_experts_per_tok)
        if tuple(replay.shape) != wanted or replay.dtype.is_floating_point:
            raise ValueError(
                f"replay must be integers of shape [MoE layers, tokens, experts per token] = "
                f"{list(wanted)}, got {replay.dtype} of shape {list(replay.shape)}"
            )
        none = (replay == -1).all(-1)
        named = ((replay >= 0) & (replay < self.config.n_routed_experts)).all(-1)
        if not bool((none | named).all()):
            raise ValueError(
                f"replay must name experts below {self.config.n_routed_experts}, or -1 for all of "
                f"a token, got {int(replay.min())} to {int(replay.max())}"
            )

    @torch.no_grad()
    def _count(self, choices: Sequence[Int[Tensor, "T K"]]) -> None:
        chosen = torch.stack([choice.flatten() for choice in choices])
        counts = chosen.new_zeros(len(choices), self.config.n_routed_experts)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen))
        self.load = counts if self.load is None else self.load + counts

    def follow_(self, replay: bool) -> None:
        """Take the experts of a replay from now on, or only count where the routers differ."""
        for router in self._routers():
            router.follows = replay

    def _routers(self) -> list[Router]:
        return [module for module in self.modules() if isinstance(module, Router)]

    def balance_(self, rate: float) -> None:
        """Move every router's bias against the `load` counted since the last call (spec 1.4).

        Shards that see other tokens must add up their `load` first.
        """
        if self.load is None:
            raise ValueError("no load was counted: build the network with count_load=True")
        for router, load in zip(self._routers(), self.load, strict=True):
            router.balance_(load, rate)
        self.load = None

    def clip_rows(
        self, gamma: Float[Tensor, "L N"]
    ) -> Iterator[tuple[str, Float[Tensor, " rows"]]]:
        """What multiplies the logits of every head by its gamma, exactly (spec 2.2).

        The part without positions is shared out between query and key. The rotary key belongs to
        all heads, so there the query takes the whole factor. Values stay.
        """
        config = self.config
        projection = "q_proj" if config.q_lora_rank is None else "q_b_proj"
        for index in (gamma < 1).any(1).nonzero()[:, 0].tolist():
            prefix, whole = f"model.layers.{index}.self_attn.", gamma[index, :, None]
            half, one = whole.sqrt().expand(-1, config.qk_nope_head_dim), torch.ones_like(whole)
            query = torch.cat([half, whole.expand(-1, config.qk_rope_head_dim)], dim=1)
            key = torch.cat([half, one.expand(-1, config.v_head_dim)], dim=1)
            yield f"{prefix}{projection}.weight", query.flatten()
            yield f"{prefix}kv_b_proj.weight", key.flatten()

    @torch.no_grad()
    def initialize_(self, seed: int) -> None:
        """Seeded start: matrices normal with initializer_range, gains one, router bias zero."""
        generator = torch.Generator(device=self.lm_head.weight.device).manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
