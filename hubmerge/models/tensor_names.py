"""The names of tensors in a folder, and their names in the module that was loaded from it.

They often differ: transformers adds a prefix to GPT-2's names, renames half of a ViT, ties heads to
embeddings, and ignores tensors of older versions. Merging needs exactly the names of the base
model, so saving writes the same tensors with the same names as the folder had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import safe_name


@dataclass(frozen=True)
class TensorNames:
    """`module_names`: name in the files -> name in the module's state; tied tensors share one.

    `extra_tensors` are those of the files that the module does not use; 16-bit floats as float32.
    """

    module_names: Mapping[str, str]
    extra_tensors: Mapping[str, Tensor]

    def file_tensors(
        self, module: nn.Module, state: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """The tensors to write, by file name; values come from `state`, by default the module's."""
        state = module.state_dict() if state is None else state
        tensors, written = dict(self.extra_tensors), set()
        for name, module_name in self.module_names.items():
            tensor = state[module_name].detach().cpu().contiguous()
            # Tied tensors share memory; safetensors needs separate copies.
            tensors[name] = tensor.clone() if module_name in written else tensor
            written.add(module_name)
        return tensors


def tensor_names(checkpoint: Checkpoint, module: nn.Module) -> TensorNames:
    """Match every tensor of a folder with the module that was loaded from it.

    Raises ValueError with the name of a tensor if the folder lacks weights of the module (which
    the library then initialises at random), or if the module combines several tensors into one.
    """
    module_names = find_module_names(checkpoint.names(), module)
    _check_complete(module, set(module_names.values()))
    unused = [name for name in checkpoint.names() if name not in module_names]
    return TensorNames(module_names, {name: _read_tensor(checkpoint, name) for name in unused})


def find_module_names(names: Iterable[str], module: nn.Module) -> dict[str, str]:
    """Name in the files -> name in the module's state, without the tensors that it does not use.

    Raises ValueError with the name of a tensor that the module combines with others.
    """
    module_names = {}
    for name, module_name in _match_names(names, module):
        if module_name is None:
            raise ValueError(f"tensor {safe_name(name)!r} is rebuilt when it is loaded")
        module_names[name] = module_name
    return module_names


def find_unchanged_names(names: Iterable[str], module: nn.Module) -> dict[str, str]:
    """Same as `find_module_names`, without the tensors that the module combines with others."""
    return {name: found for name, found in _match_names(names, module) if found is not None}


def _match_names(names: Iterable[str], module: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Each tensor that the module uses, with its name in the state; None if it is rebuilt."""
    state = module.state_dict(keep_vars=True)
    first_names: dict[int, str] = {}  # tied names are one parameter; use the first name
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    library_state = _library_names(module, state)
    prefix = str(getattr(module, "base_model_prefix", ""))
    for name in names:
        variants = _name_variants(name, prefix)
        library_name = next((variant for variant in variants if variant in library_state), None)
        if library_name is not None:
            yield name, first_names.get(id(library_state[library_name]))


def _library_names(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state with the names that the library uses in files."""
    if not isinstance(module, PreTrainedModel):
        return state
    return cast("Mapping[str, Tensor]", revert_weight_conversion(module, dict(state)))


def _name_variants(name: str, prefix: str) -> Iterator[str]:
    """The name, and the name with and without the prefix that models with a head add."""
    yield name
    yield f"{prefix}.{name}"
    yield name.removeprefix(f"{prefix}.")
    if "/" in name:  # a module of an embedding model, which is attached to its transformer
        yield name.replace("/", ".")


def _check_complete(module: nn.Module, names: set[str]) -> None:
    missing = [name for name, _ in module.named_parameters() if name not in names]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"it lacks weights for {missing[0]!r}{more} of {type(module).__name__}; "
            "they would be initialised at random"
        )


def _read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    with safe_open(checkpoint.tensor(name).file, framework="pt") as file:
        own_name = name if name in file.keys() else name.rpartition("/")[2]  # noqa: SIM118
        tensor: Tensor = file.get_tensor(own_name)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
