"""A model in several processes, with an Accelerator or by torch.distributed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, distributed, nn

_SHARDED = ("FSDP", "DEEPSPEED")
_FSDP_1 = "FullyShardedDataParallel"
# By name, as torch may be built without these: where each wrapper has what it wraps.
_INSIDE = {
    "DistributedDataParallel": "module", _FSDP_1: "module", "OptimizedModule": "_orig_mod",
}  # fmt: skip


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
    plain = model
    while inside := _INSIDE.get(type(plain).__name__):
        plain = getattr(plain, inside)
    return plain


def is_sharded(model: nn.Module, accelerator: Any) -> bool:
    """Whether the weights are spread over processes, which must gather them together."""
    kind = getattr(accelerator, "distributed_type", None)
    if str(getattr(kind, "value", kind)) in _SHARDED:
        return True
    if any(type(module).__name__ == _FSDP_1 for module in model.modules()):
        return True
    return any(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters())


def gather_weights(model: nn.Module, accelerator: Any) -> Mapping[str, Tensor]:
    """All weights of a sharded model in the main process; call it in all processes."""
    kind = getattr(accelerator, "distributed_type", None)
    if str(getattr(kind, "value", kind)) in _SHARDED:
        return accelerator.get_state_dict(model) or {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(model, options=options)
    return dict(state)
