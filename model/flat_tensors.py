"""What lies in the flat tensors that DeepSpeed's ZeRO makes of parameters and their gradients.

Read from the ZeRO optimiser itself, so that nothing here can differ from what it did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
