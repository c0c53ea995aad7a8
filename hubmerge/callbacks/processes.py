"""A model in several processes, with an Accelerator or by torch.distributed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

_SHARDED = ("FSDP", "DEEPSPEED")


def is_main_process(accelerator: Any) -> bool:
    """Whether this is the process that saves: the Accelerator's, or process 0; or the only one."""
    if accelerator is not None:
        return bool(accelerator.is_main_process)
    is_alone = not (distributed.is_available() and distributed.is_initialized())
    return is_alone or distributed.get_rank() == 0


def as_in_process_0(value: bool) -> bool:
    """The value that process 0 has; call it in all processes."""
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def plain_model(model: nn.Module, accelerator: Any) -> nn.Module:
    """The model without the wrappers of several processes and of the compiler."""
    if accelerator is not None:
        unwrapped: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
        return unwrapped
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    compiled: nn.Module = getattr(inner, "_orig_mod", inner)
    return compiled.module if isinstance(compiled, DistributedDataParallel) else compiled


def is_sharded(model: nn.Module, accelerator: Any) -> bool:
    """Whether the weights are spread over processes, which must gather them together."""
    kind = getattr(accelerator, "distributed_type", None)
    if str(getattr(kind, "value", kind)) in _SHARDED:
        return True
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather_weights(model: nn.Module, accelerator: Any) -> Mapping[str, Tensor]:
    """All weights of a sharded model in the main process; call it in all processes."""
    kind = getattr(accelerator, "distributed_type", None)
    if str(getattr(kind, "value", kind)) in _SHARDED:
        return accelerator.get_state_dict(model) or {}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(plain_model(model, None), options=options)
    return dict(state)
