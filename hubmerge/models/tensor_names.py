"""The names that tensors have in a folder, and those they have in the module made of it.

They differ more often than one would think: transformers adds a prefix to GPT-2's names, renames
half of a ViT, ties heads to embeddings, and passes over tensors of an older version. A merge wants
the names of the base and no others, so what is saved is named and chosen by the base's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import shown


@dataclass(frozen=True)
class TensorNames:
    """`inside` is name in the files -> name in the module's state; tied tensors have one there.

    `kept` holds the tensors that the module has no place for, as they came but for the width.
    """

    inside: Mapping[str, str]
    kept: Mapping[str, Tensor]

    def tensors(self, module: nn.Module, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """What a folder of this module holds: the files' names, the values of `state` or of now."""
        now = module.state_dict() if state is None else state
        told, written = dict(self.kept), set()
        for name, ours in self.inside.items():
            tensor = now[ours].detach().cpu().contiguous()
            # Tied tensors are one in memory; in a file each stands by itself.
            told[name] = tensor.clone() if ours in written else tensor
            written.add(ours)
        return told


def tensor_names(checkpoint: Checkpoint, module: nn.Module) -> TensorNames:
    """Find the place of every tensor of a folder in the module that was opened from it.

    Raises ValueError, naming a tensor, where the module has weights of which the folder says
    nothing (its library filled in random numbers), or where it was made of several.
    """
    state = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}  # tied names are one parameter, known by the first of them
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    written = _as_written(module, state)
    prefix = str(getattr(module, "base_model_prefix", ""))
    inside, beyond = {}, []
    for name in checkpoint.names():
        ours = next((way for way in _spellings(name, prefix) if way in written), None)
        if ours is None:
            beyond.append(name)
        elif id(written[ours]) in first:
            inside[name] = first[id(written[ours])]
        else:
            raise ValueError(f"tensor {shown(name)!r} is rebuilt when it is loaded")
    _check_whole(module, set(inside.values()))
    return TensorNames(inside, {name: _read(checkpoint, name) for name in beyond})


def _as_written(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state under the names that the library would write, which are those it reads."""
    if not isinstance(module, PreTrainedModel):
        return state
    return cast("Mapping[str, Tensor]", revert_weight_conversion(module, dict(state)))


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """A name as it is, and with or without the prefix that a head puts before its encoder."""
    yield name
    yield f"{prefix}.{name}"
    yield name.removeprefix(f"{prefix}.")


def _check_whole(module: nn.Module, found: set[str]) -> None:
    missing = [name for name, _ in module.named_parameters() if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"it lacks weights for {missing[0]!r}{more} of {type(module).__name__}; "
            "random numbers would stand in for them"
        )


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    with safe_open(checkpoint.tensor(name).file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
