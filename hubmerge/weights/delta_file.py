"""Store a fully fine-tuned checkpoint as a bfloat16 delta to its base, and restore it.

A tensor of more than two bytes per value is stored as expert - base in bfloat16, rounded to
nearest. A tensor that would not get smaller, or that bfloat16 cannot represent, is stored
unchanged; one that equals the base is not stored at all. Restoring adds in float32 (float64 for
F64) and rounds once: the same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.difference import same_bytes, subtract
from hubmerge.weights.dtypes import DTYPES, Array, cast, is_float
from hubmerge.weights.header import read_header, safe_name
from hubmerge.weights.layout import regular_file
from hubmerge.weights.writer import check_free_space, create_files, write_tensor

DELTA_WEIGHTS = "delta.safetensors"
_BF16, _F64 = DTYPES["BF16"], DTYPES["F64"]

Storage = Literal["base", "delta", "whole"]


@dataclass(frozen=True)
class Piece:
    """One tensor of the restored checkpoint: its file, its type, and how it is stored.

    `how` is `base` for the base's own bytes, `delta` for base + delta, `whole` if it is stored
    unchanged.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    how: Storage


@dataclass(frozen=True)
class Rounding:
    """How far restored values are from the original ones: `absolute` is the largest error.

    `relative` is the maximum over tensors of the tensor's largest error divided by the largest
    change that training made to it; rounding to bfloat16 keeps it at about 2^-9. `exact` means that
    every value is bit-equal.
    """

    absolute: float
    relative: float
    exact: bool


def open_delta(folder: Path) -> Checkpoint:
    """Open the delta file in a folder; only its header is read."""
    return Checkpoint(folder, "full", read_header(regular_file(folder, DELTA_WEIGHTS)))


def plan_delta(base: Checkpoint, expert: Checkpoint) -> tuple[Piece, ...]:
    """Choose how to store each tensor of an expert, in their order on disk.

    Raises CheckpointError for an adapter, which is already small.
    """
    if "lora" in (base.kind, expert.kind):
        raise CheckpointError(
            f"{expert.folder} or its base is an adapter, and a delta needs full weights."
        )
    return tuple(
        Piece(
            name, tensor.file.name, tensor.dtype, tensor.shape, _choose_storage(base, expert, name)
        )
        for name, tensor in expert.index.items()
    )


def stored_bytes(pieces: Sequence[Piece]) -> int:
    """The size of a delta's values in bytes."""
    return sum(prod(p.shape) * DTYPES[_stored_dtype(p)].itemsize for p in pieces if p.how != "base")


def full_bytes(pieces: Sequence[Piece]) -> int:
    """The size of the restored checkpoint's values in bytes."""
    return sum(prod(piece.shape) * DTYPES[piece.dtype].itemsize for piece in pieces)


def write_delta(
    base: Checkpoint, expert: Checkpoint, pieces: Sequence[Piece], folder: Path
) -> None:
    """Write the delta file into a folder, with one tensor in memory at a time."""
    stored = [piece for piece in pieces if piece.how != "base"]
    specs = [(piece.name, _stored_dtype(piece), piece.shape) for piece in stored]
    targets = create_files({folder / DELTA_WEIGHTS: specs})
    for piece in stored:
        values = expert.read(piece.name)
        delta = _bf16_delta(base, values, piece.name) if piece.how == "delta" else values
        write_tensor(targets[piece.name], delta)


def restore(
    base: Checkpoint, delta: Checkpoint, pieces: Sequence[Piece], folder: Path, index: str | None
) -> None:
    """Write the weight files of the full checkpoint into a folder.

    Raises CheckpointError, before anything is written, if pieces, delta and base do not match.
    """
    _check_pieces(base, delta, pieces)
    check_free_space(folder, full_bytes(pieces))
    files: dict[Path, list[tuple[str, str, tuple[int, ...]]]] = {}
    for piece in pieces:
        files.setdefault(folder / piece.file, []).append((piece.name, piece.dtype, piece.shape))
    targets = create_files(files, folder / index if index else None)
    for piece in pieces:
        write_tensor(targets[piece.name], _restore_tensor(base, delta, piece))


def measure_rounding(base: Checkpoint, original: Checkpoint, restored: Checkpoint) -> Rounding:
    """Compare restored values with the original ones, which have the same names and shapes."""
    absolute = relative = 0.0
    exact = original.index.keys() == restored.index.keys()
    for name in original.names():
        original_values, restored_values = original.read(name), restored.read(name)
        if same_bytes(original_values, restored_values):
            continue
        exact = False
        base_values, original_values, restored_values = (
            cast(v, _F64) for v in (base.read(name), original_values, restored_values)
        )
        error = float(np.abs(original_values - restored_values).max())
        if error > 0:  # otherwise only the sign of a zero differs
            absolute = max(absolute, error)
            relative = max(relative, error / float(np.abs(original_values - base_values).max()))
    return Rounding(absolute, relative, exact)


def _choose_storage(base: Checkpoint, expert: Checkpoint, name: str) -> Storage:
    tensor = expert.tensor(name)
    base_tensor = base.index.get(name)
    if base_tensor is None or base_tensor.shape != tensor.shape:
        return "whole"
    values = expert.read(name)
    if same_bytes(values, base.read(name)):
        return "base"
    both_float = is_float(tensor.dtype) and is_float(base_tensor.dtype)
    if not both_float or DTYPES[tensor.dtype].itemsize <= _BF16.itemsize:
        return "whole"
    restored = _add_delta(base.read(name), _bf16_delta(base, values, name), values.dtype)
    return "delta" if bool(np.isfinite(restored).all()) else "whole"


def _bf16_delta(base: Checkpoint, values: Array, name: str) -> Array:
    base_values = base.read(name)
    return cast(subtract(values, base_values, _compute_dtype(base_values, values)), _BF16)


def _add_delta(base: Array, delta: Array, dtype: np.dtype[Any]) -> Array:
    compute_dtype = _compute_dtype(base, np.empty(0, dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        return cast(cast(base, compute_dtype) + cast(delta, compute_dtype), dtype)


def _compute_dtype(first: Array, second: Array) -> np.dtype[Any]:
    """The dtype in which the two are subtracted and added."""
    return np.dtype(np.float64 if np.float64 in (first.dtype, second.dtype) else np.float32)


def _stored_dtype(piece: Piece) -> str:
    return "BF16" if piece.how == "delta" else piece.dtype


def _restore_tensor(base: Checkpoint, delta: Checkpoint, piece: Piece) -> Array:
    if piece.how == "base":
        return base.read(piece.name)
    if piece.how == "whole":
        return delta.read(piece.name)
    return _add_delta(base.read(piece.name), delta.read(piece.name), DTYPES[piece.dtype])


def _check_pieces(base: Checkpoint, delta: Checkpoint, pieces: Sequence[Piece]) -> None:
    stored = {piece.name for piece in pieces if piece.how != "base"}
    if len({piece.name for piece in pieces}) != len(pieces) or stored != delta.index.keys():
        raise CheckpointError(
            f"{delta.folder} does not hold exactly the tensors that its manifest lists."
        )
    for piece in pieces:
        if not all(
            _has_tensor(source, piece, dtype)
            for source, dtype in _required_sources(base, delta, piece)
        ):
            raise CheckpointError(
                f"{delta.folder}: tensor {safe_name(piece.name)!r} cannot be restored: its dtype "
                "or shape differs from its manifest."
            )


def _required_sources(
    base: Checkpoint, delta: Checkpoint, piece: Piece
) -> Iterator[tuple[Checkpoint, str | None]]:
    """The checkpoints that must have the tensor, and its dtype; None for any floating-point one."""
    if piece.how == "base":
        yield base, piece.dtype
    if piece.how == "delta":
        yield base, None
    if piece.how != "base":
        yield delta, _stored_dtype(piece)


def _has_tensor(source: Checkpoint, piece: Piece, dtype: str | None) -> bool:
    tensor = source.index.get(piece.name)
    if tensor is None or tensor.shape != piece.shape:
        return False
    return tensor.dtype == dtype if dtype else is_float(tensor.dtype) and is_float(piece.dtype)
