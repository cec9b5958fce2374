"""Memory for the modules of a network on the meta device, one at a time, marked for DeepSpeed."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class OwnParameters(nn.Module):
    """A module's own parameters, without those of its children."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for index, parameter in enumerate(module._parameters.values()):
            self.register_parameter(str(index), parameter)


def allocate(
    module: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    made: dict[nn.Parameter, nn.Parameter],
) -> dict[str, Tensor]:
    """Memory for a module's own parameters and buffers that have none; what must be read.

    `made` keeps what was made for whom: tied parameters stay one.
    """
    fresh: dict[str, Tensor] = {}
    for key, parameter in module._parameters.items():
        if parameter is not None and parameter.device.type == "meta":
            if parameter not in made:
                real = torch.empty_like(parameter, dtype=dtype, device=device)
                made[parameter] = nn.Parameter(real)
                fresh[key] = made[parameter].data
            module._parameters[key] = made[parameter]
    for key, buffer in module._buffers.items():
        if buffer is not None and buffer.device.type == "meta":
            module._buffers[key] = torch.empty_like(buffer, device=device)
            if key not in module._non_persistent_buffers_set:
                fresh[key] = module.get_buffer(key)
    return fresh


def mark_experts(module: nn.Module, name: str, group: dist.ProcessGroup | None) -> None:
    """DeepSpeed's words for parameters that only the shards of `group` have in common."""
    for parameter in module.parameters(recurse=False):
        for key, value in {
            "allreduce": False,
            "group_name": name,
            "ds_zero_placement_family": "autoep_expert",
            "ds_zero_partition_group_name": name,
            "ds_zero_partition_process_group": group,
        }.items():
            setattr(parameter, key, value)
