"""Forward and backward passes of one learner shard: micro-batches in, one optimiser step out.

All shards must do the same passes: one that has fewer micro-batches than another runs idle ones.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.k2 import K2
from model.network import Network
from model.parallel import Shard, StepReport
from model.policy import PolicyOutput
from rl.batch import Batch, idle_batch, micro_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A micro-batch of this shard and what it adds to the step."""

    part: Batch | None  # None: idle
    loss: Callable[[Batch, PolicyOutput], tuple[Tensor, dict[str, float]]]
    """The loss, and the micro-batch's share of `totals`."""
    totals: tuple[str, ...]
    """Names of what micro-batches and shards add up."""
    weight: float = 1.0  # of the loss in the step


class Passes:
    """Runs micro-batches through one shard."""

    def __init__(
        self,
        shard: Shard,
        network: Network,
        *,
        micro_batch_tokens: int,
        router_bias_rate: float,
    ) -> None:
        """Take the shard, and the network that it trains."""
        self._shard = shard
        self._network = network
        self._micro_batch_tokens = micro_batch_tokens
        self._router_bias_rate = router_bias_rate
        self._choices = torch.zeros(2, dtype=torch.float64, device=shard.device)

    def cut(self, share: Batch | None) -> list[Batch | None]:
        """Micro-batches of this shard's share, as many as every shard has: None where it has no
        more."""
        cut = micro_batches(share, self._micro_batch_tokens) if share is not None else ()
        parts: list[Batch | None] = list(cut)
        most = int(self._shard.largest(torch.tensor(float(len(parts)))).item())
        return parts + [None] * (most - len(parts))

    @torch.no_grad()
    def logprobs(
        self, parts: Sequence[Batch | None], *, replay: bool = True
    ) -> list[Float[Tensor, " N"] | None]:
        """Log-probs of the loss tokens under the present weights; None for idle passes.

        Without `replay` every router takes its own choice; those recorded are only compared.
        """
        found: list[Float[Tensor, " N"] | None] = []
        with self._following(replay):
            for part in parts:
                output = self._shard.policy(*self._arguments(part or idle_batch()))
                self._count_choices(part)
                found.append(output.logprobs if part is not None else None)
        return found

    def take_choices(self) -> list[float]:
        """Of all passes since the last call: recorded choices of experts that the routers would not
        have made, and all that were recorded."""
        taken = self._choices.tolist()
        self._choices.zero_()
        return taken

    def step(
        self, passes: Sequence[Pass], learning_rate: float
    ) -> tuple[dict[str, float], StepReport]:
        """One optimiser step; totals are summed over all shards.

        Raises:
            FloatingPointError: too many steps in a row were passed over (`Shard.step`).
        """
        totals = {name: 0.0 for one in passes for name in one.totals} | {"unfinite": 0.0}
        logits: list[Tensor] = []
        self._network.load = None
        for index, one in enumerate(passes):
            load = self._network.load
            output = self._shard.forward(*self._arguments(one.part or idle_batch()))
            self._count_choices(one.part)
            if one.part is None:
                loss = 0.0 * output.logprobs.sum()
                self._network.load = load
            else:
                loss, found = one.loss(one.part, output)
                for name, value in found.items():
                    totals[name] += value
                totals["unfinite"] += float((~output.logprobs.detach().isfinite()).sum())
                logits.append(output.max_logits)
            self._shard.backward(one.weight * loss, last=index == len(passes) - 1)
        if not logits:
            logits.append(torch.full_like(output.max_logits, -torch.inf))
        sums = self._shard.total(list(totals.values()))
        totals = dict(zip(totals, sums, strict=True))
        finite = not totals.pop("unfinite")
        report = self._shard.step(torch.stack(logits).amax(0), learning_rate, finite=finite)
        if not report.skipped:
            self._balance_routers()
        return totals, report

    def _arguments(
        self, batch: Batch
    ) -> tuple[Tensor, Tensor, list[int], Tensor, Int[Tensor, "layers T K"] | None]:
        """Of `Policy.forward`."""
        device, routing = self._shard.device, batch.routing
        return (
            batch.ids.to(device, torch.long),
            batch.loss_mask.to(device),
            batch.lengths,
            batch.temperatures.to(device),
            None if routing is None else routing.to(device).movedim(1, 0),
        )

    @contextlib.contextmanager
    def _following(self, replay: bool) -> Iterator[None]:
        network = self._network
        if replay or not isinstance(network, K2):
            yield
            return
        network.follow_(False)
        try:
            yield
        finally:
            network.follow_(True)

    def _count_choices(self, part: Batch | None) -> None:
        """Add what the last pass saw of the routers."""
        network = self._network
        if part is None or part.routing is None or not isinstance(network, K2):
            return
        assert network.differing is not None
        self._choices[0] += network.differing
        self._choices[1] += (part.routing >= 0).sum().item()

    def _balance_routers(self) -> None:
        """Move the selection bias of every router against the load of the step, over all shards."""
        network = self._network
        if not isinstance(network, K2) or not self._router_bias_rate:
            return
        config, load = network.config, network.load
        layers = config.num_hidden_layers - config.first_k_dense_replace
        if load is None:  # no sequence came to this shard
            load = torch.zeros(layers, config.n_routed_experts, device=self._shard.device)
        total = self._shard.total(load.flatten().tolist())
        network.load = torch.tensor(total, device=self._shard.device).view_as(load)
        network.balance_(self._router_bias_rate)
