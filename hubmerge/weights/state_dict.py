"""The state dict in a torch file: the tensors of a model by their names, written as safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.weights.dtypes import DTYPES
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.pickle_objects import StoredTensor
from hubmerge.weights.torch_file import TorchFile
from hubmerge.weights.writer import check_free_space, create_files, write_tensor

# Where training programs put the state dict, in the order in which they are tried.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "params_ema", "params")
# Tied tensors are stored once and written each; much more than that is an attack on the disk.
_MAX_GROWTH, _SPARE = 8, 1 << 26


@dataclass(frozen=True)
class StateDict:
    """The tensors of a file by name, and the keys of the other values in it, which are left out."""

    file: TorchFile
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(
            prod(tensor.shape) * DTYPES[tensor.storage.dtype].itemsize
            for tensor in self.tensors.values()
        )


def find_state_dict(file: TorchFile, key: str | None = None) -> StateDict:
    """The state dict of a file: its whole value, the one under `key`, or under a usual key.

    Raises UsageError if it is not clear which value is meant, and CheckpointError if no tensor is
    there.
    """
    value = file.value
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{file.path} holds {_describe(value)}, not a state dict.",
            "Save the model's state_dict() in a file of its own.",
        )
    if key is not None:
        return _state_dict(file, _inner(file, value, key), [])
    if any(isinstance(inner, StoredTensor) for inner in value.values()):
        return _state_dict(file, value, [])
    found = [name for name in value if isinstance(value[name], dict) and _has_tensor(value[name])]
    usual = [name for name in _KEYS if name in found]
    if not found:
        raise CheckpointError(f"{file.path} has no tensors with names.", "Is it a state dict?")
    if len(found) > 1 and not usual:
        listed = ", ".join(safe_name(str(name)) for name in found)
        raise UsageError(
            f"{file.path} has several dicts of tensors: {listed}.", "Choose one with --key."
        )
    chosen = usual[0] if usual else found[0]
    return _state_dict(file, value[chosen], [str(name) for name in value if name != chosen])


def write_state_dicts(dicts: Mapping[str, StateDict], folder: Path) -> None:
    """Write each state dict to a file of this name, and an index if there are several.

    The same input gives the same bytes. Raises CheckpointError for a name that two files have, for
    tensors that are much larger than their file, and for disk errors.
    """
    _check_sizes(list(dicts.values()))
    specs = {
        folder / name: [
            (key, tensor.storage.dtype, tensor.shape) for key, tensor in item.tensors.items()
        ]
        for name, item in dicts.items()
    }
    names = [key for item in dicts.values() for key in item.tensors]
    if len(set(names)) < len(names):
        twice = {name for name in names if names.count(name) > 1}
        raise CheckpointError(f"Two of the files have {summarize_names(twice)}.")
    check_free_space(folder, sum(item.nbytes for item in dicts.values()))
    index = folder / "model.safetensors.index.json" if len(dicts) > 1 else None
    targets = create_files(specs, index)
    for item in dicts.values():
        for key, tensor in item.tensors.items():
            write_tensor(targets[key], item.file.read(tensor))


def _check_sizes(dicts: Sequence[StateDict]) -> None:
    for item in dicts:
        size = item.file.path.stat().st_size
        if item.nbytes > _MAX_GROWTH * size + _SPARE:
            raise CheckpointError(
                f"{item.file.path} has {size:,} bytes, and its tensors {item.nbytes:,}: they would "
                "fill the disk."
            )


def _state_dict(file: TorchFile, value: Mapping[Any, Any], left_out: list[str]) -> StateDict:
    tensors = {str(key): item for key, item in value.items() if isinstance(item, StoredTensor)}
    left_out += [str(key) for key, item in value.items() if not isinstance(item, StoredTensor)]
    if not tensors:
        raise CheckpointError(f"{file.path} has no tensors with names.", "Is it a state dict?")
    return StateDict(file, tensors, tuple(left_out))


def _inner(file: TorchFile, value: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    inner: Any = value
    for part in (key,) if key in value else key.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        listed = ", ".join(safe_name(str(name)) for name in list(value)[:8])
        raise UsageError(
            f"{file.path} has no dict {safe_name(key)!r}.", f"It has the keys {listed}."
        )
    return inner


def _has_tensor(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, StoredTensor) for item in value.values())


def _describe(value: object) -> str:
    kinds = {list: "a list", tuple: "a tuple", StoredTensor: "one tensor without a name"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")
