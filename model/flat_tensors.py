"""What lies in the flat tensors that DeepSpeed's ZeRO makes of parameters and their gradients.

Read from the ZeRO optimiser itself, so that nothing here can differ from what it did.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTensor:
    """The part of one flat tensor that lies on this shard."""

    tensor: Tensor
    runs: list[tuple[nn.Parameter, int, int, int]]  # local [begin, end) of a parameter, offset
    group: dist.ProcessGroup
    muon: bool


def flats_of_stage_1_and_2(zero: Any) -> Iterator[FlatTensor]:
    """ZeRO-1 and 2: a group's parameters end to end, cut in equal parts."""
    for index, tensor in enumerate(zero.single_partition_of_fp32_groups):
        group, size = zero.real_dp_process_group[index], zero.partition_size[index]
        start = dist.get_rank(group) * size
        runs = []
        for parameter, offset in zip(
            zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True
        ):
            begin = max(offset, start)
            end = min(offset + parameter.numel(), start + size)
            if begin < end:
                runs.append((parameter, begin - offset, end - offset, begin - start))
        muon = zero.optimizer.param_groups[index]["muon"]
        yield FlatTensor(tensor=tensor, runs=runs, group=group, muon=muon)


def flats_of_stage_3(zero: Any) -> Iterator[FlatTensor]:
    """ZeRO-3: every parameter cut in equal parts, the parts of a sub-group end to end."""
    for index, tensor in enumerate(zero.fp32_partitioned_groups_flat):
        offset, runs = 0, []
        group = zero._get_sub_group_process_group(index)
        for parameter in zero.fp16_groups[index]:
            size = parameter.partition_numel()
            begin = dist.get_rank(group) * size
            end = min(begin + size, parameter.ds_numel)
            if begin < end:
                runs.append((parameter, begin, end, offset))
            offset += size
        muon = zero.optimizer.param_groups[zero.sub_group_to_group_id[index]]["muon"]
        yield FlatTensor(tensor=tensor, runs=runs, group=group, muon=muon)


def kept_tensors(zero: Any) -> Iterator[Tensor]:
    """Every tensor that ZeRO keeps between steps: weights, gradients, buckets, parts of ZeRO-3.

    Found by looking through all that it holds: what is forgotten here would stay on the device.
    """
    yield from _tensors_in([*vars(zero).values(), [vars(b) for b in zero.ipg_buckets.values()]])


def _tensors_in(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
        if (part := getattr(held, "ds_tensor", None)) is not None:
            yield part
    elif isinstance(held, dict):
        yield from _tensors_in(list(held.values()))
    elif isinstance(held, list | tuple | set):
        for each in held:
            yield from _tensors_in(each)


def reserve_disk(zero: Any) -> None:
    """Take the room that ZeRO-3's state needs on the disk: DeepSpeed does not see writes that fail.

    Raises OSError if there is not enough.
    """
    swapper = zero.optimizer_swapper
    for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
        if not zero._swappable_optimizer_subgroup(index):
            continue
        muon = zero.optimizer.param_groups[zero.sub_group_to_group_id[index]]["muon"]
        size = 4 * swapper._io_aligned_numel(int(zero.fp16_partitioned_groups_flat_numel[index]))
        for kind in ("", "momentum-") if muon else ("", "exp_avg-", "exp_avg_sq-"):
            path = Path(swapper.swap_folder) / f"{kind}{flat.ds_id}.tensor.swp"
            try:
                with path.open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, f"parallel.nvme_path: {error.strerror}", path) from error


def keep_gradients(zero: Any) -> None:
    """Let a step of ZeRO-3 take gradients from the host's memory, where they were summed.

    DeepSpeed would copy them to the disk and read large ones back to addresses that are no
    multiple of 512: such a read fails without an error, and the update takes what is there.
    """
    swapper = zero.optimizer_swapper
    sizes = [int(size) for size in zero.fp16_partitioned_groups_flat_numel]
    gradients = {
        flat.ds_id: gradient
        for flat, gradient in zip(
            zero.fp32_partitioned_groups_flat,
            zero.grad_partitions_flat_buffer.split(sizes),
            strict=True,
        )
    }

    def keep(*, parameter: Any, **_: Any) -> None:
        info = swapper.swap_params_info[parameter.ds_id]
        info.unswapped_gradients = {0: gradients[parameter.ds_id]}

    swapper.swap_out_gradients = keep


@contextmanager
def swapped_in(zero: Any, tensor: Tensor, changed: bool) -> Iterator[None]:
    """Have a flat tensor of ZeRO-3 and its state in memory, whose place between steps is the disk.

    `changed` writes them back afterwards. What is too small for the disk is in memory always.
    """
    flats = zero.fp32_partitioned_groups_flat
    index = next(i for i, flat in enumerate(flats) if flat is tensor)
    if not zero._swappable_optimizer_subgroup(index):
        yield
        return
    zero._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
        if changed:
            zero._writeback_swap_state(index, write_opt_state=True, write_gradients=False)
    finally:
        zero._release_swap_buffers(index)
