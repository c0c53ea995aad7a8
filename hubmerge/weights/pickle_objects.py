"""What a pickle of tensors may name and call, and what that would give, without calling it.

Source: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubmerge.weights.header import safe_name

_OUTSIDE = "it refers to something outside of the file"
# torch's classes of storages: their dtype as safetensors calls it.
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_DTYPES = {
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
}  # fmt: skip
_REBUILD = {
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
}  # fmt: skip
_CONTAINERS = {"collections.OrderedDict", "torch.Size", "torch.device"}


class RefusedError(Exception):
    """Why a pickle is not imported: the end of a sentence."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; it is not imported."""

    path: str


@dataclass(frozen=True)
class Storage:
    """The bytes that a tensor is a view of: a key in the file, a safetensors dtype, a count."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a view of a storage: offset and strides are counted in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def named(path: str) -> Name:
    """A class or function by its module and name; raises RefusedError if it is not on the list."""
    module, _, name = path.rpartition(".")
    is_torch = module == "torch" and (name in _STORAGES or name in _DTYPES)
    if is_torch or path in _REBUILD or path in _CONTAINERS:
        return Name(path)
    if ".nn." in f"{path}." or name.endswith(("Model", "Module", "Net", "Network")):
        raise RefusedError(f"it is a whole pickled module ({safe_name(path)[:80]})")
    raise RefusedError(f"its pickle needs {safe_name(path)[:80]}, which would run code")


def result_of_call(called: object, arguments: object) -> Any:
    """What a function of the list would return; raises RefusedError for anything else."""
    if not isinstance(called, Name) or not isinstance(arguments, tuple):
        raise RefusedError("it is damaged")
    path = called.path
    if path.startswith("torch._utils._rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage):
            raise RefusedError("it has a tensor without a storage")
        return StoredTensor(storage, *_checked_view(offset, shape, strides))
    if path == "torch._utils._rebuild_parameter" and isinstance(arguments[0], StoredTensor):
        return arguments[0]
    if path == "collections.OrderedDict":
        pairs = arguments[0] if arguments else ()
        return make_dict([item for key, value in pairs for item in (key, value)])
    if path == "torch.Size":
        return tuple(arguments[0])
    if path == "torch.device":
        return ":".join(map(str, arguments))
    raise RefusedError(f"its pickle calls {safe_name(path)}")


def _checked_view(
    offset: Any, shape: Any, strides: Any
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    numbers = [offset, *shape, *strides]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(numbers) > 65:
        raise RefusedError("it has a tensor of an impossible shape")
    if len(shape) != len(strides):
        raise RefusedError("it has a tensor of an impossible shape")
    return offset, tuple(shape), tuple(strides)


def find_storage(value: object) -> Storage:
    """The storage that a persistent id stands for; raises RefusedError for another id."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise RefusedError(_OUTSIDE)
    _, kind, key, _, count = value[:5]
    name = kind.path.rpartition(".")[2] if isinstance(kind, Name) else ""
    is_valid = isinstance(key, str) and key.isdigit() and type(count) is int and count >= 0
    if name not in _STORAGES or not is_valid or any(value[5:]):
        raise RefusedError(_OUTSIDE)
    return Storage(key, _STORAGES[name], count)


def make_dict(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn; raises RefusedError for other keys than those of data."""
    if len(items) % 2 or not all(isinstance(key, str | int | float) for key in items[::2]):
        raise RefusedError("it has a dict whose keys are neither strings nor numbers")
    return dict(zip(items[::2], items[1::2], strict=True))
