"""The tensors of a safetensors file, read from its header alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

_MAX_HEADER_BYTES = 4 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor by its name, dtype and shape."""

    name: str
    dtype: str
    shape: str
    count: int


def read_tensors(content: BinaryIO) -> list[Tensor]:
    """The tensors by name; empty if the header is broken or larger than 4 MiB."""
    size = int.from_bytes(content.read(8), "little")
    if size > _MAX_HEADER_BYTES:
        return []
    try:
        header = json.loads(content.read(size))
    except (ValueError, RecursionError):
        return []
    items = header.items() if isinstance(header, dict) else ()
    tensors = (_tensor(name, value) for name, value in items if name != "__metadata__")
    return sorted((tensor for tensor in tensors if tensor), key=lambda tensor: tensor.name)


def _tensor(name: str, value: Any) -> Tensor | None:
    shape = value.get("shape") if isinstance(value, dict) else None
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape) or len(shape) > 16:
        return None
    text = ", ".join(map(str, shape)) or "scalar"
    return Tensor(name[:300], str(value.get("dtype"))[:20], text[:200], prod(shape))
