"""One shard of the learner: a rank of torch.distributed under DeepSpeed's ZeRO, by Accelerate.

DeepSpeed cuts weights, gradients and optimiser state into flat tensors and moves gradients and
weights; MuonClip is told what lies in these tensors (`model.pieces`) and does the rest. Routed
experts are spread over shards by `model.expert_parallel`; DeepSpeed then reduces their gradients
only among the shards that hold the same ones.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.utils import groups
from jaxtyping import Float
from torch import Tensor, nn

from model.allocate import OwnParameters, allocate, mark_experts
from model.config import MuonClipConfig, Offload, ParallelConfig, Precision, Rank
from model.engine_settings import engine_settings
from model.exchange import Layout
from model.expert_parallel import ExpertParallel
from model.feed_forward import Experts
from model.flat_tensors import (
    flats_of_stage_1_and_2,
    flats_of_stage_3,
    keep_gradients,
    kept_tensors,
    reserve_disk,
    swapped_in,
)
from model.host_memory import HostMemory
from model.muonclip import MuonClip, parameter_groups
from model.network import Network
from model.pieces import Piece
from model.policy import Policy, PolicyOutput
from model.qk_clip import qk_clip_gamma
from model.state import Run, SavedState, StateFile, state_file

ROOT = "network."  # what Policy puts before the network's names
MOST_SKIPPED = 5  # optimiser steps in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimiser step did, over all shards."""

    max_logit: float  # the largest attention logit of its forward passes
    clipped_heads: int
    update_rms: float  # of Muon's updates before the learning rate: about 0.14-0.19; 0 without
    grad_norm: float
    skipped: bool = False  # a gradient or a logit was not finite: nothing has changed


class _Optimizer(MuonClip):
    """MuonClip that can pass over a step in which the engine lets go of its gradients."""

    skip = False

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, or none: weights and momenta stay as they are."""
        if not self.skip:
            super().step(closure)


class _ExpertMarker(AutoEPMoELayer):
    """Tells DeepSpeed that the network has routed experts; the experts themselves are ours."""

    def __init__(self, experts: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = experts

    def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
        """The groups are made already."""


def join(place: Rank, timeout_seconds: int) -> None:
    """Become one rank of the job: NCCL on GPUs, gloo on CPUs."""
    cuda = torch.cuda.is_available()
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "ACCELERATE_USE_DEEPSPEED": "true",
    }
    if cuda:
        torch.cuda.set_device(place.local_rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # DeepSpeed would compile an all-reduce for inference when it starts: half a minute, and a
        # compiler that nothing else needs.
        deepspeed.ops.__compatible_ops__ = {"async_io": True}
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=timeout_seconds),
    )


class Shard:
    """This process's part of the policy and of its optimiser."""

    def __init__(
        self,
        network: Network,
        fill: Callable[[dict[str, Tensor], int], None],
        optimizer: MuonClipConfig,
        parallel: ParallelConfig,
    ) -> None:
        """Cut the network and bring in its weights. All shards must call this together.

        Args:
            network: a `model.network.Network` on the meta device: no weights yet.
            fill: reads parameters and buffers of the network, by name. Routed experts may be
                this shard's own: from which one on. Everything is read by one shard only.
            optimizer: MuonClip's settings.
            parallel: how the job is cut.

        Raises:
            ValueError: expert_parallel does not divide the experts, or the network has none;
                offload=nvme cannot work on this machine.
        """
        if parallel.offload is Offload.nvme:
            _check_nvme(Path(parallel.nvme_path or ""))
        self.parallel = parallel
        self._tau = optimizer.qk_clip_tau
        deepspeed.init_distributed(auto_mpi_discovery=False)
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        self._experts = _spread_experts(network, parallel.expert_parallel)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = engine_settings(parallel)
        self._bring_in(network, fill, config)
        self.policy = Policy(network)
        if self._experts:
            self.policy.expert_marker = _ExpertMarker(next(iter(self._experts.values())).experts)
        named = [(name.removeprefix(ROOT), p) for name, p in self.policy.named_parameters()]
        param_groups = parameter_groups(
            named, shapes, muon=optimizer.muon, embeddings=network.embeddings()
        )
        for group in param_groups if self._experts else ():
            # DeepSpeed's words for parameters that only some shards have in common.
            group["moe"], group["name"] = group["experts"], _group_name(parallel)
        self.optimizer = _Optimizer(param_groups, optimizer, device=self.device)
        self._skipped = 0  # steps in a row
        self._host = HostMemory()
        accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
        self._engine, _ = accelerator.prepare(self.policy, self.optimizer)
        self._shard_optimizer({id(parameter): name for name, parameter in named}, shapes)

    @property
    def rank(self) -> int:
        """This shard among all."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """All shards."""
        return dist.get_world_size()

    def forward(self, *args: Any) -> PolicyOutput:
        """Log-probs of this shard's tokens: the arguments are those of `Policy.forward`."""
        return self._engine(*args)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`; gradients are summed over shards.

        Every shard must run the same number of backward passes before a step; `last` says that
        the step comes next.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.size)  # DeepSpeed averages
        if not last:
            self._engine.step()  # only counts the pass

    def step(
        self,
        max_logits: Float[Tensor, "layers heads"],
        learning_rate: float,
        *,
        finite: bool = True,
    ) -> StepReport:
        """One update of the weights, QK-Clip included; on all shards, or passed over on all.

        Args:
            max_logits: the largest of this shard's forward passes since the last step.
            learning_rate: of this step.
            finite: whether the log-probs of all shards are; if not, the step is passed over, as it
                is when a logit or a gradient of any shard is not finite.

        Raises:
            FloatingPointError: `MOST_SKIPPED` steps in a row were passed over.
        """
        largest = self.largest(max_logits)
        finite = finite and bool(torch.isfinite(largest).all())
        gamma = qk_clip_gamma(largest, self._tau) if finite else torch.ones_like(largest)
        clipped = int((gamma < 1).sum())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.begin()
        self.optimizer.clip(dict(self.policy.network.clip_rows(gamma)) if clipped else {})
        self.optimizer.skip = not finite
        self._engine.step()  # lets go of the gradients; passes over what is not finite by itself
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        finite = finite and math.isfinite(grad_norm)
        if not finite and self.parallel.zero_stage == 2:
            self._forget_gradients()
        squares, elements, stepped = self.total(
            [
                self.optimizer.update_squares(),
                self.optimizer.update_elements,
                float(finite),
            ]
        )
        assert stepped == finite * self.size, "shards disagree whether a step was finite"
        self._count(finite)
        return StepReport(
            max_logit=largest.max().item() if finite else 0.0,
            clipped_heads=clipped if finite else 0,
            update_rms=(squares / elements) ** 0.5 if elements else 0.0,
            grad_norm=grad_norm if finite else 0.0,
            skipped=not finite,
        )

    def _forget_gradients(self) -> None:
        """With offload and bf16 weights the engine keeps what it passed over, and adds to it."""
        zero = self._engine.optimizer
        for gradients in (zero.averaged_gradients, zero.all_grad_tensors):
            gradients.update(dict.fromkeys(gradients))

    def _count(self, finite: bool) -> None:
        """Stop a run that has nothing left to learn from."""
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{self._skipped} optimiser steps in a row had log-probs, attention logits or "
                "gradients that are not finite, and were passed over: lower "
                "optimizer.learning_rate, or go back to an earlier checkpoint"
            )

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all shards."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(mine)
        return mine.tolist()

    def largest(self, values: Tensor) -> Tensor:
        """Maxima over all shards, here; a NaN of any shard comes out as infinity."""
        values = values.to(self.device, copy=True).nan_to_num_(torch.inf, torch.inf, -torch.inf)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """Parameters and buffers that this shard is to publish: name, whole tensor, first expert.

        Together the shards yield everything once. All of them must go through it together:
        parameters that are cut are put together on the way, one at a time.
        """
        dense, seen = 0, set()
        for name, tensor in self.policy.network.state_dict(keep_vars=True).items():
            if tensor in seen:
                continue  # a head that is the embedding
            seen.add(tensor)
            expert = self._experts.get(name.rpartition(".")[0])
            if expert is not None:
                mine = dist.get_rank(_expert_data_group(self.parallel)) == 0
            else:
                mine = dense % self.size == self.rank
                dense += 1
            with _whole(tensor):
                if mine:
                    yield name, tensor.detach(), expert.first if expert is not None else 0

    def state_files(self, folder: Path, counters: dict[str, int]) -> Iterator[StateFile]:
        """This shard's part of the optimiser's state, and its random state, to write in `folder`.

        Weights of less than float32 are saved here too, as the optimiser has them. `counters` are
        numbers of the caller, given back by `restore`. Every flat tensor gets a file, so that what
        lies on a disk comes into memory one at a time: a file is to be written, or copied, before
        the next is asked for.
        """

        def runs(flat: Tensor) -> Iterator[Run]:
            yield from self.optimizer.saved_runs(flat)
            if self.parallel.weights is not Precision.float32:
                for tensor, piece in self.optimizer.pieces(flat):
                    values = tensor.detach()[piece.place]
                    yield Run(
                        kind="weight", parameter=piece.parameter, begin=piece.begin, values=values
                    )

        counters = counters | {"adam_steps": self.optimizer.steps}
        flats = self.optimizer.flats()
        for index, flat in enumerate(flats):
            # The first files are those of every shard's first part: one random state for each.
            rank, size = index * self.size + self.rank, len(flats) * self.size
            with self.optimizer.in_memory(flat):
                yield state_file(folder, runs(flat), rank=rank, size=size, counters=counters)

    @torch.no_grad()
    def restore(self, folder: Path) -> dict[str, int]:
        """Take what `state_files` were, on any number of shards, cut in any way.

        Weights came with `fill`; those that were saved are taken too. Raises CheckpointError if
        something is missing.
        """
        saved = SavedState(folder)
        self.optimizer.restore(saved)
        torch.set_rng_state(saved.random(self.rank))
        return saved.counters

    def kept(self) -> Iterator[Tensor]:
        """All tensors that this shard keeps between calls, some of them several times."""
        yield from self.policy.parameters()
        yield from self.policy.buffers()
        for state in self.optimizer.state.values():
            yield from state.values()
        yield from kept_tensors(self._engine.optimizer)

    def offload(self) -> None:
        """Leave the device to others: what is kept lies in host memory until `reload`.

        On CPU it does already. What ZeRO-3 has gathered is let go of. Raises RuntimeError if the
        host has not as much memory.
        """
        if self.parallel.zero_stage == 3:
            self._engine.optimizer.empty_partition_cache()
        if self.device.type != "cpu":
            self._host.take(self.kept(), self.device)
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Come back to the device, bit by bit as it was."""
        self._host.give_back()

    def close(self) -> None:
        """Leave the job."""
        self._engine.destroy()
        dist.destroy_process_group()

    def _bring_in(
        self, network: Network, fill: Callable[[dict[str, Tensor], int], None], config: Any
    ) -> None:
        """Give every module memory and weights; for ZeRO-3 cut it before the next one comes."""
        dtype = getattr(torch, self.parallel.weights.value)
        made: dict[nn.Parameter, nn.Parameter] = {}
        for name, module in network.named_modules():
            if not module._parameters and not module._buffers:
                continue
            expert = self._experts.get(name)
            group = _expert_data_group(self.parallel) if expert is not None else None
            fresh = allocate(module, dtype, self.device, made)
            network.derive_(module)
            if expert is not None:
                mark_experts(module, _group_name(self.parallel), group)
            if dist.get_rank(group) == 0:
                slots = {f"{name}.{key}": tensor for key, tensor in fresh.items()}
                fill(slots, expert.first if expert is not None else 0)
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, 0)
            if self.parallel.zero_stage == 3:  # broadcasts the parameters, as the engine does else
                deepspeed.zero.Init(
                    module=OwnParameters(module),
                    config_dict_or_path=config,
                    dtype=dtype,
                    mem_efficient_linear=False,
                )

    def _shard_optimizer(self, names: dict[int, str], shapes: dict[str, tuple[int, ...]]) -> None:
        """Tell MuonClip what DeepSpeed's flat tensors hold."""
        zero = self._engine.optimizer
        stage_3 = self.parallel.zero_stage == 3
        flats = flats_of_stage_3(zero) if stage_3 else flats_of_stage_1_and_2(zero)
        layouts = {}
        for flat in flats:
            pieces = []
            for parameter, begin, end, offset in flat.runs:
                name = names[id(parameter)]
                expert = self._experts.get(name.rpartition(".")[0])
                shape = shapes[name]
                first = 0 if expert is None else expert.first * math.prod(shape[1:])
                pieces.append(
                    Piece(
                        parameter=name,
                        shape=shape,
                        begin=first + begin,
                        end=first + end,
                        offset=offset,
                    )
                )
            layouts[flat.tensor] = Layout.of(pieces, muon=flat.muon, group=flat.group)
        if self.parallel.offload is Offload.nvme:
            reserve_disk(zero)
            keep_gradients(zero)
            self.optimizer.shard(layouts, partial(swapped_in, zero))
        else:
            self.optimizer.shard(layouts)


def _spread_experts(network: nn.Module, ranks: int) -> dict[str, ExpertParallel]:
    """Put this shard's experts in the place of all experts; by name, empty if not spread."""
    if ranks == 1:
        return {}
    groups._create_expert_and_data_parallel(ranks)
    group = groups._get_expert_parallel_group(f"ep_size_{ranks}")
    found = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, Experts):
            with torch.device("meta"):
                found[name] = ExpertParallel(module, group)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, found[name])
    if not found:
        raise ValueError(f"parallel.expert_parallel={ranks}: the network has no K2 experts")
    return found


def _group_name(parallel: ParallelConfig) -> str:
    return f"ep_size_{parallel.expert_parallel}"


def _expert_data_group(parallel: ParallelConfig) -> dist.ProcessGroup:
    """The shards that hold the same experts as this one."""
    return groups._get_expert_data_parallel_group(_group_name(parallel))


def _whole(parameter: Tensor) -> AbstractContextManager[Any]:
    """Put a parameter together that ZeRO-3 has cut."""
    if hasattr(parameter, "ds_id"):
        return deepspeed.zero.GatheredParameters([parameter])
    return nullcontext()


def _check_nvme(folder: Path) -> None:
    """Compile what reads and writes the disk, two minutes once for all, before anything is loaded.

    Raises ValueError if that fails, or if `folder` is not one to write in.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"parallel.nvme_path={folder} is not a folder that can be written to")
    try:
        AsyncIOBuilder().load()
    except (RuntimeError, OSError, SubprocessError) as error:
        raise ValueError(
            "parallel.offload=nvme needs libaio and a C++ compiler: apt install libaio-dev g++"
        ) from error
