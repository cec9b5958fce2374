"""The policy and its optimiser: one iteration from a batch, one publication of the weights.

Knows no rewards and no algorithm beyond `rl.objectives`; lives in one process, wherever the
cluster puts it.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import MuonClipConfig
from model.load import export_tensors, load_k2, save_k2
from model.muonclip import MuonClip, parameter_groups
from model.policy import PolicyOutput, loss_token_logprobs
from model.qk_clip import qk_clip_
from model.send_weights import WeightSender, WeightUpdate
from rl.batch import Batch, micro_batches
from rl.config import ObjectiveConfig
from rl.objectives import k2_loss, ptx_loss, sequence_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What a learner is built from."""

    checkpoint: Path
    optimizer: MuonClipConfig
    objective: ObjectiveConfig
    micro_batch_tokens: int
    bucket_bytes: int
    compute_dtype: torch.dtype
    engine_dtype: torch.dtype
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One version of the weights on its way to the engines."""

    update: WeightUpdate
    probe_logprobs: list[list[float]]  # of the probe sequences, under exactly the weights sent


class Learner:
    """Owns the network and MuonClip."""

    def __init__(self, spec: LearnerSpec, probe: Sequence[Sequence[int]]) -> None:
        """Load the checkpoint. `probe`: token sequences that engines are compared on."""
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._probe = [list(sequence) for sequence in probe]
        self.model = load_k2(spec.checkpoint, compute_dtype=spec.compute_dtype)
        self._optimizer = MuonClip(parameter_groups(self.model), spec.optimizer)
        self._sender = WeightSender(bucket_bytes=spec.bucket_bytes)

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def reset_optimizer(self) -> None:
        """Forget momentum: what follows is another objective."""
        self._optimizer.reset()

    def supervise(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """One optimiser step on each batch, towards its loss tokens; returns the losses [steps]."""
        losses = []
        for batch, rate in zip(batches, learning_rates, strict=True):
            self._optimizer.zero_grad()
            loss, max_logits = self._likelihood(batch, weight=1.0)
            self._apply(max_logits, rate)
            losses.append(loss)
        return losses

    def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        """One RL iteration: an optimiser step on each minibatch, with its PTX batch mixed in.

        Args:
            minibatches: disjoint shares of the iteration's groups.
            ptx: supervised sequences for each minibatch; empty for none.

        Returns:
            Metrics by name, averaged over the steps.

        Raises:
            FloatingPointError: a loss or an attention logit is not finite.
        """
        started = time.perf_counter()
        if self._spec.objective.reset_optimizer_each_iteration:
            self._optimizer.reset()
        steps = []
        for index, batch in enumerate(minibatches):
            self._optimizer.zero_grad()
            metrics, max_logits = self._policy_loss(batch)
            if ptx:
                metrics["objective/ptx"], ptx_logits = self._likelihood(
                    ptx[index], weight=self._spec.objective.ptx_weight
                )
                max_logits = torch.maximum(max_logits, ptx_logits)
            metrics |= self._apply(max_logits, self._spec.optimizer.learning_rate)
            steps.append(metrics)
        result = {name: sum(m[name] for m in steps) / len(steps) for name in steps[0]}
        # Before the first step the learner holds the weights it last published: what is left
        # between its log-probs and the recorded ones is staleness and engine mismatch.
        result |= {name: value for name, value in steps[0].items() if name.startswith("mismatch/")}
        result["time/learn"] = time.perf_counter() - started
        return result

    def publish(self, version: int) -> Published:
        """Write the weights as `version` where engines of this host can map them."""
        dtype = self._spec.engine_dtype
        update = self._sender.publish(export_tensors(self.model, dtype), version)
        return Published(update=update, probe_logprobs=self._probe_logprobs())

    def release(self, version: int) -> None:
        """Every engine has taken `version`: free its buckets."""
        self._sender.release(version)

    def save(self, folder: Path) -> None:
        """Write model (tokenizer too), optimiser and random state below `folder`, which exists."""
        save_k2(
            self.model,
            folder / "model",
            dtype=torch.float32,
            tokenizer_from=self._spec.checkpoint,
        )
        state = {"optimizer": self._optimizer.state_dict(), "torch_rng": torch.get_rng_state()}
        # Through memory: torch's own writer reports a full disk as a RuntimeError without a reason.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        (folder / "learner.pt").write_bytes(buffer.getbuffer())

    def resume(self, folder: Path) -> None:
        """Take optimiser and random state of `save`; the model was loaded from `folder/model`."""
        state = torch.load(folder / "learner.pt", weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])

    def close(self) -> None:
        """Remove what was published."""
        self._sender.close()

    def _forward(self, batch: Batch) -> PolicyOutput:
        output = loss_token_logprobs(
            self.model, batch.ids, batch.loss_mask, batch.lengths, batch.temperatures
        )
        if not bool(torch.isfinite(output.logprobs.detach()).all()):
            raise FloatingPointError("log-probs are not finite: lower optimizer.learning_rate")
        return output

    def _likelihood(self, batch: Batch, weight: float) -> tuple[float, Tensor]:
        """Accumulate the gradient of the weighted PTX loss; the loss, and the maximum logits."""
        total, logits = 0.0, []
        for part in micro_batches(batch, self._spec.micro_batch_tokens):
            output = self._forward(part)
            loss = ptx_loss(output.logprobs, total_tokens=part.total_loss_tokens)
            (weight * loss).backward()
            total += loss.item()
            logits.append(output.max_logits)
        return total, torch.stack(logits).amax(0)

    def _policy_loss(self, batch: Batch) -> tuple[dict[str, float], Tensor]:
        """Accumulate the gradient of the K2 objective; metrics, and the maximum logits."""
        totals: dict[str, float] = {}
        logits = []
        for part in micro_batches(batch, self._spec.micro_batch_tokens):
            output = self._forward(part)
            logits.append(output.max_logits)
            old = part.behaviour_logprobs[part.loss_mask]
            sums = sequence_sums(
                output.logprobs, old, part.sequence_of_loss_tokens(), len(part.lengths)
            )
            loss = k2_loss(
                sums,
                part.advantages,
                tau=self._spec.objective.tau,
                total_sequences=part.total_sequences,
                length_normalised=self._spec.objective.length_normalised,
            )
            loss.backward()
            gap = output.logprobs.detach() - old
            tokens = part.total_loss_tokens
            parts = {
                "objective/loss": loss.item(),
                "objective/rho": sums.log_ratio.detach().abs().sum().item() / part.total_sequences,
                "objective/entropy": output.entropy.sum().item() / tokens,
                "mismatch/abs_logprob": gap.abs().sum().item() / tokens,
                "mismatch/kl": -gap.sum().item() / tokens,
            }
            totals = {name: totals.get(name, 0.0) + value for name, value in parts.items()}
        return totals, torch.stack(logits).amax(0)

    def _apply(self, max_logits: Tensor, learning_rate: float) -> dict[str, float]:
        """One optimiser step, then QK-Clip with the maximum logits of its forward passes."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        clipped = qk_clip_(self.model, max_logits, self._spec.optimizer.qk_clip_tau)
        return {
            "optim/max_logit": max_logits.max().item(),
            "optim/clipped_heads": float(clipped),
            "optim/update_rms": self._optimizer.update_rms(),
        }

    @torch.no_grad()
    def _probe_logprobs(self) -> list[list[float]]:
        """Temperature-1 log-probs of the probe sequences, all tokens but the first of each."""
        ids = torch.tensor([token for sequence in self._probe for token in sequence])
        lengths = [len(sequence) for sequence in self._probe]
        mask = torch.ones(len(ids), dtype=torch.bool)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        mask[starts] = False
        # In full precision: only the engine's rounding is left between the two.
        self.model.compute_dtype = torch.float32
        output = loss_token_logprobs(self.model, ids, mask, lengths, torch.ones(len(lengths)))
        self.model.compute_dtype = self._spec.compute_dtype
        return [part.tolist() for part in output.logprobs.split([n - 1 for n in lengths])]
