"""MuonClip's optimiser: Muon for matrices, AdamW for gains, embedding and head (spec 2.1, 2.2).

Works on parameters as they are, or on the flat tensors that a sharding engine made of them
(`model.pieces`): momentum, decay and AdamW run element by element where the elements lie; a matrix
that is cut in several parts travels to one shard, is orthogonalised there, and its update travels
back. Nothing else moves, and nothing touches the orthogonalised update but the learning rate.

Departure from K2's listing: the momentum is Nesterov's, as in Moonlight's code.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.newton_schulz import newton_schulz
from model.config import MuonClipConfig
from model.exchange import BATCH_ELEMENTS, Layout, exchange
from model.formats import CheckpointError
from model.pieces import Piece, is_matrix
from model.state import Run, SavedState

# Brings a flat tensor and its state into memory; writes them back if they are changed.
InMemory = Callable[[Tensor, bool], AbstractContextManager[None]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    muon: bool = True,
    embeddings: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Who is updated by Muon and who by AdamW; routed experts apart, since they are sharded apart.

    `names` are the parameters' own, in the order of `params`. `shapes`: of whole parameters, where
    an engine has already cut them. `muon`: False to leave all of them to AdamW. `embeddings`:
    names of those that are not called embed_tokens.
    """
    kinds: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        shape = parameter.shape if shapes is None else shapes[name]
        orthogonal = muon and name not in embeddings and is_matrix(name, shape)
        key = (orthogonal, ".experts." in name)
        kinds.setdefault(key, []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "muon": orthogonal,
            "experts": experts,
        }
        for (orthogonal, experts), members in kinds.items()
    ]


class MuonClip(torch.optim.Optimizer):
    """Takes `parameter_groups`; a sharding engine then says with `shard` what its tensors hold.

    State: one fp32 momentum per matrix element, two moments per AdamW element, as flat as the
    tensors are. ns_dtype is the precision of Newton-Schulz and of what travels between shards: bf16
    as published, also the fastest on CPUs that have it. Gradients are used up by a step.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        config: MuonClipConfig,
        ns_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | None = None,
    ) -> None:
        """`device`: where matrices are orthogonalised, if not where the state lies."""
        defaults = {
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "ns_steps": config.ns_steps,
            "betas": tuple(config.adam_betas),
            "eps": config.adam_eps,
        }
        super().__init__(groups, defaults)
        self.ns_dtype = ns_dtype
        self.orthogonalised = 0  # matrices of the last step, here
        self.update_elements = 0  # of these matrices
        self._norms: list[Tensor] = []
        self._device = device
        self._clip: dict[str, Tensor] = {}
        self._layouts: dict[Tensor, Layout] = {}
        self._in_memory: InMemory | None = None

    def shard(self, layouts: Mapping[Tensor, Layout], in_memory: InMemory | None = None) -> None:
        """Take the flat tensors that have replaced the parameters.

        `in_memory`: for engines that keep them and their state elsewhere between steps.
        """
        self._layouts, self._in_memory = dict(layouts), in_memory

    def flats(self) -> list[Tensor]:
        """The flat tensors of this shard, as many on every shard."""
        return list(self._laid_out())

    def in_memory(self, flat: Tensor, *, changed: bool = False) -> AbstractContextManager[None]:
        """Where elements of a flat tensor and its state may be read, or `changed`."""
        return self._in_memory(flat, changed) if self._in_memory is not None else nullcontext()

    def pieces(self, *flats: Tensor) -> Iterator[tuple[Tensor, Piece]]:
        """The pieces in these flat tensors, or in all of this shard."""
        layouts = self._laid_out()
        for tensor in flats or layouts:
            for piece in layouts[tensor].pieces:
                yield tensor, piece

    def saved_runs(self, *flats: Tensor) -> Iterator[Run]:
        """The state of these flat tensors, or all that lies here; `steps` is apart.

        By parameter; views, so they must be used `in_memory`.
        """
        layouts = self._laid_out()
        for tensor in flats or layouts:
            for kind, values in self.state[tensor].items():
                for piece in layouts[tensor].pieces if kind != "step" else ():
                    yield Run(
                        kind=kind,
                        parameter=piece.parameter,
                        begin=piece.begin,
                        values=values[piece.place],
                    )

    @property
    def steps(self) -> int:
        """AdamW steps since the last reset."""
        return max((int(s["step"]) for s in self.state.values() if "step" in s), default=0)

    def restore(self, saved: SavedState) -> None:
        """Take the state that `saved_runs` gave, however it was cut; none where none was saved.

        Weights too, where they were saved (as kind "weight"). Raises CheckpointError if a part is
        missing, or if another optimiser has saved it.
        """
        for layout in self._laid_out().values():
            _check_same(saved, layout)
        for tensor, layout in self._laid_out().items():
            with self.in_memory(tensor, changed=True):
                if any(saved.has(_kinds(layout)[0], piece.parameter) for piece in layout.pieces):
                    self._restore_state(saved, tensor, layout)
                for piece in layout.pieces:
                    if saved.has("weight", piece.parameter):
                        place = tensor.data.view(-1)[piece.place]
                        saved.read_into("weight", piece.parameter, piece.begin, place)

    def _restore_state(self, saved: SavedState, tensor: Tensor, layout: Layout) -> None:
        state = self.state[tensor]
        for kind in _kinds(layout):
            if kind not in state:  # an engine may hold on to the tensor that is there
                state[kind] = torch.zeros_like(tensor.data.view(-1), dtype=torch.float32)
            for piece in layout.pieces:
                place = state[kind][piece.place]
                saved.read_into(kind, piece.parameter, piece.begin, place)
        if not layout.muon:
            state["step"] = torch.tensor(float(saved.counters["adam_steps"]))

    def clip(self, rows: Mapping[str, Float[Tensor, " rows"]]) -> None:
        """After the next update, multiply the rows of these parameters (QK-Clip, spec 2.2)."""
        self._clip = dict(rows)

    def begin(self) -> None:
        """Forget the last step's statistics. Engines call `step` once for every flat tensor."""
        self.orthogonalised, self.update_elements = 0, 0
        self._norms = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        if closure is not None:
            raise ValueError("MuonClip takes no closure")
        layouts = self._laid_out()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                layout = layouts[parameter]
                weight, grad = parameter.data.view(-1), parameter.grad.view(-1)
                if group["muon"]:
                    self._muon(self.state[parameter], weight, grad, group, layout)
                else:
                    self._adamw(self.state[parameter], weight, grad, group)
                for piece in layout.pieces:
                    if piece.parameter in self._clip:
                        _scale_rows(weight[piece.place], piece, self._clip[piece.parameter])

    def update_squares(self) -> float:
        """Sum of the squared elements of this shard's Muon updates, before the learning rate."""
        return float(torch.stack(self._norms).square().sum()) if self._norms else 0.0

    def _laid_out(self) -> dict[Tensor, Layout]:
        """What lies where; parameters that no engine has cut are one piece each."""
        for group in self.param_groups if not self._layouts else ():
            for name, parameter in zip(group["names"], group["params"], strict=True):
                shape, size = tuple(parameter.shape), parameter.numel()
                whole = Piece(parameter=name, shape=shape, begin=0, end=size, offset=0)
                self._layouts[parameter] = Layout.of([whole], muon=group["muon"], group=None)
        return self._layouts

    def reset(self) -> None:
        """Forget momentum and moments, as at the start of an iteration (spec 3.1)."""
        for tensor, state in self.state.items():
            with self.in_memory(tensor, changed=True):
                for value in state.values():
                    value.zero_()

    def _muon(
        self,
        state: dict[str, Tensor],
        weight: Tensor,
        grad: Tensor,
        group: dict[str, Any],
        layout: Layout,
    ) -> None:
        """W <- (1 - eta lambda) W - eta 0.2 sqrt(max(n, m)) O."""
        if not state:
            state["momentum"] = torch.zeros_like(weight, dtype=torch.float32)
        momentum = state["momentum"].mul_(group["momentum"]).add_(grad)
        direction = grad.add_(momentum, alpha=group["momentum"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        for run in layout.runs:
            shape, size = (run.rows, run.columns), run.rows * run.columns
            most = max(1, BATCH_ELEMENTS // size)
            place = slice(run.offset, run.offset + run.count * size)
            pairs = zip(
                weight[place].view(-1, *shape).split(most),
                direction[place].view(-1, *shape).split(most),
                strict=True,
            )
            for target, part in pairs:
                update = self._orthogonalise(part.to(self._device or part.device), group)
                target.add_(update.to(target), alpha=-group["lr"] * _rms_scale(*shape))
        device = self._device or weight.device
        for members in layout.rounds:
            parts = exchange(
                members,
                direction,
                layout,
                orthogonalise=lambda stack: self._orthogonalise(stack, group),
                dtype=self.ns_dtype,
                device=device,
            )
            for matrix, share, update in parts:
                target = weight[share.place]
                scale = _rms_scale(matrix.rows, matrix.columns)
                target.add_(update.to(target), alpha=-group["lr"] * scale)

    def _orthogonalise(
        self, direction: Float[Tensor, "B n m"], group: dict[str, Any]
    ) -> Float[Tensor, "B n m"]:
        """Newton-Schulz of whole matrices, counted."""
        update = newton_schulz(direction, group["ns_steps"], self.ns_dtype)
        scale = _rms_scale(*direction.shape[-2:])
        self._norms.append(scale * torch.linalg.vector_norm(update, dtype=torch.float32))
        self.update_elements += update.numel()
        self.orthogonalised += len(update)
        return update

    def _adamw(
        self, state: dict[str, Tensor], weight: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        """AdamW with bias correction and decoupled decay."""
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        step = int(state["step"])
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        spread = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))


def _kinds(layout: Layout) -> tuple[str, ...]:
    """State of a flat tensor, as large as the tensor itself."""
    return ("momentum",) if layout.muon else ("exp_avg", "exp_avg_sq")


def _check_same(saved: SavedState, layout: Layout) -> None:
    """Raise CheckpointError if what Muon updates here was AdamW's when it was saved, or the other
    way round."""
    foreign = "exp_avg" if layout.muon else "momentum"
    for piece in layout.pieces:
        if saved.has(foreign, piece.parameter):
            raise CheckpointError(
                f"the optimiser state of {piece.parameter} was saved with optimizer.muon="
                f"{str(not layout.muon).lower()}: go on with that, or start a new run from the "
                "checkpoint's model (policy.path)"
            )


def _rms_scale(rows: int, columns: int) -> float:
    """Makes the RMS of a Muon update that of AdamW's (Moonlight sec. 2.2)."""
    return 0.2 * math.sqrt(max(rows, columns))


def _scale_rows(weight: Tensor, piece: Piece, rows: Float[Tensor, " rows"]) -> None:
    """Multiply a piece of a parameter, in place, by the factors of its rows."""
    columns = piece.shape[-1] if len(piece.shape) > 1 else 1
    first, last = piece.begin // columns, -(-piece.end // columns)
    factors = rows[first:last].to(weight).repeat_interleave(columns)
    skipped = piece.begin - first * columns
    weight.mul_(factors[skipped : skipped + len(weight)])
