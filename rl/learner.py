"""The policy and its optimiser: one iteration from a batch, one publication of the weights.

Knows no rewards and no algorithm beyond `rl.objectives`; lives in one process, wherever the
cluster puts it. Several learners are shards of one policy: the same methods are called on all of
them at the same time with the same arguments, and each takes its share.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from model.checkpoint_reader import (
    WeightReader,
    empty_network,
    read_tokenizer,
    write_description,
)
from model.config import Offload, Precision, Rank
from model.formats import CheckpointError, Quantised, release, store
from model.parallel import Shard, StepReport, join
from model.policy import PolicyOutput
from model.schedule import learning_rate_at
from model.send_weights import WeightSender, WeightUpdate
from model.shards import write_shards
from model.snapshot import Snapshot, Writing
from model.state import StateFile
from rl.batch import Batch
from rl.learner_passes import Pass, Passes
from rl.learner_spec import LearnerSpec, OtherShardFailed, Published
from rl.mismatch import experts_metrics, mismatch_metrics
from rl.objective_config import OldLogprobs
from rl.objectives import ptx_loss
from rl.policy_loss import POLICY_TOTALS, PolicyLoss, policy_metrics

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
        # Kept: a checkpoint that a run went on from is removed when newer ones are there.
        self._tokenizer = read_tokenizer(spec.checkpoint) if place.rank == 0 else {}
        self._shard = Shard(self._network, reader.read, spec.optimizer, spec.parallel)
        self._passes = Passes(
            self._shard,
            self._network,
            micro_batch_tokens=spec.micro_batch_tokens,
            router_bias_rate=spec.router_bias_rate,
        )
        self._sender = WeightSender(
            bucket_bytes=spec.bucket_bytes, delta=spec.delta, by_layer=spec.by_layer
        )
        self._snapshot = Snapshot()
        self._version = 0  # last published; of RL, the iterations so far

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

    def supervise(
        self, batches: Sequence[Batch | None], learning_rates: Sequence[float]
    ) -> list[float]:
        """One optimiser step on each batch, towards its loss tokens; returns the losses [steps].

        Of every batch, here and below, a shard is given its share (`rl.batch.shares_of`).
        """
        losses = []
        for batch, rate in zip(batches, learning_rates, strict=True):
            totals, _ = self._passes.step(self._supervised(batch), rate)
            losses.append(totals["objective/ptx"])
        return losses

    def update(
        self, minibatches: Sequence[Batch | None], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        """One RL iteration: an optimiser step on each minibatch, with its PTX batch mixed in.

        The weights that it starts with are those last published: a token's lag is the number of
        versions from the weights that sampled it to them. The learning rate is that of their
        version: an iteration that had nothing to train on counts in the schedule, too.

        Args:
            minibatches: disjoint shares of the iteration's groups.
            ptx: supervised sequences for each minibatch, None for one without; empty for none.

        Returns:
            Metrics by name, over all shards, averaged over the steps that have them; `mismatch/`
            is of the weights that the iteration starts with (`rl.mismatch`).

        Raises:
            FloatingPointError: too many steps in a row were passed over (`Shard.step`).
        """
        started = time.perf_counter()
        config = self._spec.objective
        if config.reset_optimizer_each_iteration:
            self._shard.optimizer.reset()
        rate = learning_rate_at(
            self._spec.schedule,
            self._spec.optimizer.learning_rate,
            self._version,
            self._spec.iterations,
        )
        objective = PolicyLoss(config, self._version, self._shard.device)
        plan = self._plan(objective, [self._passes.cut(batch) for batch in minibatches])
        planned = time.perf_counter()
        steps, skipped = [], 0
        for index, passes in enumerate(plan):
            if ptx:
                passes += self._supervised(ptx[index], weight=config.ptx_weight)
            totals, report = self._passes.step(passes, rate)
            if report.skipped:
                skipped += 1
            else:
                steps.append(policy_metrics(totals) | _metrics(report))
        result = {name: fmean(values) for name, values in _by_name(steps).items()}
        result["faults/skipped_steps"] = float(skipped)
        result |= self._mismatch(objective)
        result["optim/learning_rate"] = rate
        result["time/old_logprobs"] = planned - started
        result["time/learn"] = time.perf_counter() - started
        return result

    def compare(self, batch: Batch | None, replay: bool) -> dict[str, float]:
        """`mismatch/` of a batch under the present weights, without a step.

        Without `replay` the routers take their own choices and not the engine's, if there are any.
        """
        objective = PolicyLoss(self._spec.objective, self._version, self._shard.device)
        parts = self._passes.cut(batch)
        starts = self._passes.logprobs(parts, replay=replay)
        for part, start in zip(parts, starts, strict=True):
            if part is not None and start is not None:
                objective.observe(part, start)
        return self._mismatch(objective)

    def publish(self, version: int) -> Published:
        """Write this shard's share of the weights as `version` where engines can map them.

        Raises OSError or CheckpointError, on every shard, if one of them cannot: none has published
        it then, and the version before is whole.
        """
        updates: list[WeightUpdate] = []

        def send() -> None:
            tensors = self._released(self._spec.engine_dtype)
            try:
                updates.append(self._sender.publish(tensors, version))
            finally:
                _exhaust(tensors)

        try:
            self._together(send)
        except (OSError, CheckpointError):
            if updates:
                self._sender.withdraw(version)
            raise
        self._version = version
        return Published(update=updates[0], probe_logprobs=self._probe_logprobs())

    def release(self, version: int) -> None:
        """Every engine has taken `version`: free its buckets."""
        self._sender.release(version)

    def save(self, folder: Path) -> None:
        """Copy model (tokenizer too), optimiser and random state; a thread writes them.

        `written` tells how that goes; `rl.save_checkpoint.shards_written` makes one checkpoint of
        what all shards have written below `folder`, which exists. What lies on a disk
        (offload=nvme) does not fit into memory, and is written before this returns.

        Raises OSError or CheckpointError, on every shard, if one of them cannot copy.
        """
        narrow = self._spec.parallel.weights is Precision.bfloat16
        dtype = torch.bfloat16 if narrow else torch.float32
        model, rank = folder / "model", self._shard.rank
        counters = {"narrow": int(narrow)}
        weights: list[tuple[str, Tensor]] = []
        files: list[StateFile] = []

        def copy() -> None:
            self._snapshot.begin()
            tensors = self._released(dtype, masters=True)
            try:
                weights.extend((name, self._snapshot.copy(tensor)) for name, tensor in tensors)
            finally:
                _exhaust(tensors)
            for file in self._shard.state_files(folder, counters):
                if self._spec.parallel.offload is Offload.nvme:
                    file.write()
                else:
                    files.append(file.copied(self._snapshot.copy))

        def write() -> None:
            model.mkdir(exist_ok=True)
            write_shards(weights, model, SHARD_BYTES, part=rank)
            for file in files:
                file.write()
            if rank == 0:
                write_description(self._tokenizer, self._network, model, dtype)

        self._together(copy)
        self._snapshot.write(write)

    def written(self) -> Writing:
        """How far this shard is with the files of the last `save`."""
        return self._snapshot.writing

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

    def offload(self) -> None:
        """Leave the device to the engines, until `reload` (`Shard.offload`)."""
        self._shard.offload()

    def reload(self) -> None:
        """Come back to the device."""
        self._shard.reload()

    def close(self) -> None:
        """Remove what was published, end what is being written, and leave the other shards."""
        self._snapshot.close()
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
            raise OtherShardFailed(f"{int(failed)} other learner shards could not write")

    def _plan(
        self, objective: PolicyLoss, parts: Sequence[Sequence[Batch | None]]
    ) -> list[list[Pass]]:
        """The policy's passes of each minibatch, log-probs of pi_old found where they are needed.

        The first minibatch meets the iteration's first weights in its own step.
        """
        recomputes = self._spec.objective.old_logprobs is OldLogprobs.learner
        first, *rest = parts
        plan = [[Pass(part=part, loss=objective.first, totals=POLICY_TOTALS) for part in first]]
        for minibatch in rest:
            known: Sequence[Tensor | None] = [None] * len(minibatch)
            if recomputes:
                known = self._passes.logprobs(minibatch)
            passes = []
            for part, start in zip(minibatch, known, strict=True):
                if part is not None and start is not None:
                    objective.observe(part, start)
                loss = partial(objective.later, start=start)
                passes.append(Pass(part=part, loss=loss, totals=POLICY_TOTALS))
            plan.append(passes)
        return plan

    def _supervised(self, batch: Batch | None, weight: float = 1.0) -> list[Pass]:
        """The passes of a step towards the batch's loss tokens."""
        return [
            Pass(part=part, loss=_likelihood, totals=PTX_TOTALS, weight=weight)
            for part in self._passes.cut(batch)
        ]

    def _mismatch(self, objective: PolicyLoss) -> dict[str, float]:
        """What all shards saw under the weights that the iteration started with."""
        sums = objective.mismatch.sums
        total = torch.tensor(self._shard.total(sums.flatten().tolist()), dtype=sums.dtype)
        largest = self._shard.largest(objective.mismatch.largest)
        experts = experts_metrics(*self._shard.total(self._passes.take_choices()))
        return mismatch_metrics(total.view_as(sums), largest) | experts

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


PTX_TOTALS = ("objective/ptx",)


def _likelihood(part: Batch, output: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
    """The PTX loss of a micro-batch."""
    loss = ptx_loss(output.logprobs, total_tokens=part.total_loss_tokens)
    return loss, {"objective/ptx": loss.item()}


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


def _by_name(steps: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The values of each metric; not every step has a PTX loss."""
    names = dict.fromkeys(name for metrics in steps for name in metrics)
    return {name: [metrics[name] for metrics in steps if name in metrics] for name in names}
