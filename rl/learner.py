"""The policy and its optimiser: one iteration from a batch, one publication of the weights.

Knows no rewards and no algorithm beyond `rl.objectives`; lives in one process, wherever the
cluster puts it. Several learners are shards of one policy: the same methods are called on all of
them at the same time with the same arguments, and each takes its share.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint_reader import WeightReader, empty_network, write_description
from model.config import Precision, Rank
from model.formats import CheckpointError, Quantised, release, store
from model.k2 import K2
from model.parallel import Shard, StepReport, join
from model.policy import PolicyOutput
from model.schedule import learning_rate_at
from model.send_weights import WeightSender
from model.shards import merge_index, write_shards
from rl.batch import Batch, idle_batch, micro_batches, share_of
from rl.learner_spec import LearnerSpec, Published
from rl.objectives import k2_loss, ptx_loss, sequence_sums

SHARD_BYTES = 5 * 1000**3  # of one file of a checkpoint


class Learner:
    """One shard of the policy and of MuonClip."""

    def __init__(self, spec: LearnerSpec, probe: Sequence[Sequence[int]], place: Rank) -> None:
        """Meet the other shards and load the checkpoint together.

        Args:
            spec: the same for all shards.
            probe: token sequences that engines are compared on.
            place: which of the shards this one is.
        """
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._probe = [list(sequence) for sequence in probe]
        join(place, spec.parallel.timeout_seconds)
        self._network = empty_network(
            spec.checkpoint,
            compute_dtype=spec.compute_dtype,
            checkpoint_layers=spec.parallel.checkpoint_layers,
            int4_experts=spec.int4_experts,
            count_load=spec.router_bias_rate > 0,
        )
        reader = WeightReader(spec.checkpoint, self._network)
        self._shard = Shard(self._network, reader.read, spec.optimizer, spec.parallel)
        self._sender = WeightSender(bucket_bytes=spec.bucket_bytes)
        self._iterations = 0

    @property
    def note(self) -> str | None:
        """What a person should know of how this network is trained, if anything."""
        return self._network.qk_clip_note

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def reset_optimizer(self) -> None:
        """Forget momentum: what follows is another objective."""
        self._shard.optimizer.reset()

    def supervise(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """One optimiser step on each batch, towards its loss tokens; returns the losses [steps]."""
        losses = []
        for batch, rate in zip(batches, learning_rates, strict=True):
            totals, _ = self._step([], self._parts(batch), ptx_weight=1.0, learning_rate=rate)
            losses.append(totals["objective/ptx"])
        return losses

    def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        """One RL iteration: an optimiser step on each minibatch, with its PTX batch mixed in.

        Args:
            minibatches: disjoint shares of the iteration's groups.
            ptx: supervised sequences for each minibatch; empty for none.

        Returns:
            Metrics by name, over all shards, averaged over the steps.

        Raises:
            FloatingPointError: a log-prob or an attention logit is not finite.
        """
        started = time.perf_counter()
        if self._spec.objective.reset_optimizer_each_iteration:
            self._shard.optimizer.reset()
        rate = learning_rate_at(
            self._spec.schedule,
            self._spec.optimizer.learning_rate,
            self._iterations,
            self._spec.iterations,
        )
        steps = []
        for index, batch in enumerate(minibatches):
            totals, report = self._step(
                self._parts(batch),
                self._parts(ptx[index]) if ptx else [],
                ptx_weight=self._spec.objective.ptx_weight,
                learning_rate=rate,
            )
            steps.append(totals | _metrics(report))
        self._iterations += 1
        result = {name: sum(m[name] for m in steps) / len(steps) for name in steps[0]}
        # Before the first step the learner holds the weights it last published: what is left
        # between its log-probs and the recorded ones is staleness and engine mismatch.
        result |= {name: value for name, value in steps[0].items() if name.startswith("mismatch/")}
        result["optim/learning_rate"] = rate
        result["time/learn"] = time.perf_counter() - started
        return result

    def publish(self, version: int) -> Published:
        """Write this shard's share of the weights as `version` where engines can map them."""
        tensors = self._released(self._spec.engine_dtype)
        try:
            update = self._sender.publish(tensors, version)
        finally:
            _exhaust(tensors)
        return Published(update=update, probe_logprobs=self._probe_logprobs())

    def release(self, version: int) -> None:
        """Every engine has taken `version`: free its buckets."""
        self._sender.release(version)

    def save(self, folder: Path) -> None:
        """Write model (tokenizer too), optimiser and random state below `folder`, which exists.

        Raises OSError or CheckpointError, on every shard, if one of them cannot write.
        """
        narrow = self._spec.parallel.weights is Precision.bfloat16
        dtype = torch.bfloat16 if narrow else torch.float32
        model = folder / "model"
        rank, size = self._shard.rank, self._shard.size

        def write() -> None:
            tensors = self._released(dtype, masters=True)
            try:
                model.mkdir(exist_ok=True)
                write_shards(tensors, model, SHARD_BYTES, part=rank)
            finally:
                _exhaust(tensors)
            self._shard.save(folder, {"iterations": self._iterations, "narrow": int(narrow)})

        def finish() -> None:
            if rank == 0:
                merge_index(model, size)
                write_description(self._spec.checkpoint, self._network, model, dtype)

        self._together(write)
        self._together(finish)

    def resume(self, folder: Path) -> None:
        """Take optimiser and random state of `save`; the model was loaded from `folder/model`.

        Raises CheckpointError if weights were kept in another precision.
        """
        counters = self._shard.restore(folder)
        narrow = self._spec.parallel.weights is Precision.bfloat16
        if counters["narrow"] != narrow:
            raise CheckpointError(
                f"{folder} was saved with parallel.weights="
                f"{'bfloat16' if counters['narrow'] else 'float32'}: resume with the same"
            )
        self._iterations = counters["iterations"]

    def close(self) -> None:
        """Remove what was published, and leave the other shards."""
        self._sender.close()
        self._shard.close()

    def _together(self, work: Callable[[], None]) -> None:
        """Do it on all shards; if one fails, all do."""
        error: OSError | CheckpointError | None = None
        try:
            work()
        except (OSError, CheckpointError) as failure:
            error = failure
        (failed,) = self._shard.total([float(error is not None)])
        if error is not None:
            raise error
        if failed:
            raise CheckpointError(f"{int(failed)} other learner shards could not write")

    def _parts(self, batch: Batch) -> list[Batch | None]:
        """This shard's micro-batches, as many as every shard has: None where it has no more."""
        mine = share_of(batch, self._shard.rank, self._shard.size)
        cut = micro_batches(mine, self._spec.micro_batch_tokens) if mine is not None else ()
        parts: list[Batch | None] = list(cut)
        most = int(self._shard.largest(torch.tensor(float(len(parts)))).item())
        return parts + [None] * (most - len(parts))

    def _step(
        self,
        policy: Sequence[Batch | None],
        ptx: Sequence[Batch | None],
        *,
        ptx_weight: float,
        learning_rate: float,
    ) -> tuple[dict[str, float], StepReport]:
        """One optimiser step from the micro-batches of both losses; sums over all shards."""
        names = POLICY_TOTALS * bool(policy) + PTX_TOTALS * bool(ptx) + ("unfinite",)
        totals = dict.fromkeys(names, 0.0)
        logits: list[Tensor] = []
        passes = [(part, self._policy_loss) for part in policy]
        passes += [(part, self._likelihood) for part in ptx]
        self._network.load = None
        for index, (part, loss_of) in enumerate(passes):
            load = self._network.load
            output = self._forward(part if part is not None else idle_batch())
            if part is None:
                loss = 0.0 * output.logprobs.sum()
                self._network.load = load
            else:
                loss, found = loss_of(part, output)
                for name, value in found.items():
                    totals[name] += value
                totals["unfinite"] += float((~output.logprobs.detach().isfinite()).sum())
                logits.append(output.max_logits)
            weight = ptx_weight if index >= len(policy) else 1.0
            self._shard.backward(weight * loss, last=index == len(passes) - 1)
        if not logits:
            logits.append(torch.full_like(output.max_logits, -torch.inf))
        sums = self._shard.total(list(totals.values()))
        totals = dict(zip(totals, sums, strict=True))
        if totals.pop("unfinite"):
            raise FloatingPointError("log-probs are not finite: lower optimizer.learning_rate")
        report = self._shard.step(torch.stack(logits).amax(0), learning_rate)
        self._balance_routers()
        return totals, report

    def _balance_routers(self) -> None:
        """Move the selection bias of every router against the load of the step, over all shards."""
        network = self._network
        if not isinstance(network, K2) or not self._spec.router_bias_rate:
            return
        config, load = network.config, network.load
        layers = config.num_hidden_layers - config.first_k_dense_replace
        if load is None:  # no sequence came to this shard
            load = torch.zeros(layers, config.n_routed_experts, device=self._shard.device)
        total = self._shard.total(load.flatten().tolist())
        network.load = torch.tensor(total, device=self._shard.device).view_as(load)
        network.balance_(self._spec.router_bias_rate)

    def _forward(self, batch: Batch) -> PolicyOutput:
        device = self._shard.device
        return self._shard.forward(
            batch.ids.to(device),
            batch.loss_mask.to(device),
            batch.lengths,
            batch.temperatures.to(device),
        )

    def _likelihood(self, part: Batch, output: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
        """The PTX loss of a micro-batch."""
        loss = ptx_loss(output.logprobs, total_tokens=part.total_loss_tokens)
        return loss, {"objective/ptx": loss.item()}

    def _policy_loss(self, part: Batch, output: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
        """The K2 objective of a micro-batch, and its share of the metrics."""
        device = self._shard.device
        old = part.behaviour_logprobs[part.loss_mask].to(device)
        owner = part.sequence_of_loss_tokens().to(device)
        sums = sequence_sums(output.logprobs, old, owner, len(part.lengths))
        loss = k2_loss(
            sums,
            part.advantages.to(device),
            tau=self._spec.objective.tau,
            total_sequences=part.total_sequences,
            length_normalised=self._spec.objective.length_normalised,
        )
        gap = output.logprobs.detach() - old
        tokens = part.total_loss_tokens
        return loss, {
            "objective/loss": loss.item(),
            "objective/rho": sums.log_ratio.detach().abs().sum().item() / part.total_sequences,
            "objective/entropy": output.entropy.sum().item() / tokens,
            "mismatch/abs_logprob": gap.abs().sum().item() / tokens,
            "mismatch/kl": -gap.sum().item() / tokens,
        }

    def _released(
        self, dtype: torch.dtype, *, masters: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """This shard's share of the weights under their released names.

        Engines get what the forward pass uses: INT4 experts with their rounding. `masters` are the
        weights themselves.
        """
        quantised = Quantised.int4 if self._spec.int4_experts and not masters else None
        for name, tensor, first_expert in self._shard.tensors():
            for released, part in release(name, tensor, first_expert):
                yield from store(released, part, dtype, quantised, unpacked=True)

    @torch.no_grad()
    def _probe_logprobs(self) -> list[list[float]]:
        """Temperature-1 log-probs of the probe sequences, all tokens but the first of each."""
        ids = torch.tensor([token for sequence in self._probe for token in sequence])
        lengths = [len(sequence) for sequence in self._probe]
        mask = torch.ones(len(ids), dtype=torch.bool)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        mask[starts] = False
        device = self._shard.device
        # In full precision if the weights are: only the engine's rounding is left between the two.
        if self._spec.parallel.weights is Precision.float32:
            self._network.compute_dtype = torch.float32
        output = self._shard.policy(
            ids.to(device), mask.to(device), lengths, torch.ones(len(lengths), device=device)
        )
        self._network.compute_dtype = self._spec.compute_dtype
        return [part.tolist() for part in output.logprobs.split([n - 1 for n in lengths])]


POLICY_TOTALS = (
    "objective/loss",
    "objective/rho",
    "objective/entropy",
    "mismatch/abs_logprob",
    "mismatch/kl",
)
PTX_TOTALS = ("objective/ptx",)


def _exhaust(tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Go through what is left after an error: the other shards are still gathering."""
    for _ in tensors:
        pass


def _metrics(report: StepReport) -> dict[str, float]:
    return {
        "optim/max_logit": report.max_logit,
        "optim/clipped_heads": float(report.clipped_heads),
        "optim/update_rms": report.update_rms,
        "optim/grad_norm": report.grad_norm,
    }
