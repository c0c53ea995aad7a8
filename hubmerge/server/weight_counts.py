"""How many parameters a model has, from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from hubmerge.server.snapshot import File, Snapshot

_MAX_HEADER_BYTES = 25 << 20
_MAX_INDEX_BYTES = 16 << 20
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def count_parameters(snapshot: Snapshot, files: list[File]) -> dict[str, Any] | None:
    """Parameters by type and in total; None without safetensors weights, or for invalid ones."""
    by_path = {file.path: file for file in files}
    names = {_WEIGHTS} if _WEIGHTS in by_path else _shards(snapshot)
    counts = Counter[str]()
    for name in names:
        header = _read_header(snapshot, by_path[name]) if name in by_path else None
        if header is None:
            return None
        counts.update(header)
    return {"parameters": dict(counts), "total": counts.total()} if names else None


def _shards(snapshot: Snapshot) -> set[str]:
    try:
        index = json.loads(snapshot.read(_INDEX, limit=_MAX_INDEX_BYTES) or b"{}")
        return {str(name) for name in index["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _read_header(snapshot: Snapshot, file: File) -> dict[str, int] | None:
    if file.lfs:
        return _read_large(snapshot.blobs.path(file.lfs.oid))
    with snapshot.open(file) as content:
        return _parse(content)


@lru_cache(maxsize=4096)  # a large file never changes: its name is its sha256
def _read_large(path: Path) -> dict[str, int] | None:
    try:
        with path.open("rb") as content:
            return _parse(content)
    except FileNotFoundError:
        return None


def _parse(content: BinaryIO) -> dict[str, int] | None:
    """Type -> number of parameters."""
    size = int.from_bytes(content.read(8), "little")
    if not 0 < size <= _MAX_HEADER_BYTES:
        return None
    counts = Counter[str]()
    try:
        for name, tensor in json.loads(content.read(size)).items():
            if name != "__metadata__":
                counts[str(tensor["dtype"])] += math.prod(map(int, tensor["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(counts)
