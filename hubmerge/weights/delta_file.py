"""A full fine-tuned checkpoint as what it changed: a bfloat16 delta to its base, and back again.

A tensor of more than two bytes a value is stored as expert - base in bfloat16, rounded to nearest;
whatever that does not halve, or cannot hold, is stored as it is, and what equals the base is not
stored at all. Restoring adds in float32 (float64 for F64) and rounds once: same files, same bytes.
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
from hubmerge.weights.header import read_header, shown
from hubmerge.weights.layout import plain_file
from hubmerge.weights.writer import check_free, lay_out, write_tensor

NAME = "delta.safetensors"
_BF16, _F64 = DTYPES["BF16"], DTYPES["F64"]

How = Literal["base", "delta", "whole"]


@dataclass(frozen=True)
class Piece:
    """One tensor of the restored checkpoint: the file it goes to, what it is, and whence it comes.

    `how` is `base` for the base's own bytes, `delta` for base + delta, `whole` for stored as it is.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    how: How


@dataclass(frozen=True)
class Rounding:
    """How far restored values are from the original: at most `absolute` for any of them.

    `relative` is the largest, over tensors, of the largest error over the largest change that the
    tensor's training made; rounding to bfloat16 keeps it to about 2^-9. `exact` says that every
    value is bit-equal.
    """

    absolute: float
    relative: float
    exact: bool


def open_delta(folder: Path) -> Checkpoint:
    """The file of a delta, of which only the header is read."""
    return Checkpoint(folder, "full", read_header(plain_file(folder, NAME)))


def survey(base: Checkpoint, expert: Checkpoint) -> tuple[Piece, ...]:
    """How each tensor of an expert is best stored, in the order they lie on disk.

    Raises CheckpointError for an adapter, which is small already.
    """
    if "lora" in (base.kind, expert.kind):
        raise CheckpointError(
            f"{expert.folder} is an adapter, or its base is: no delta of weights."
        )
    return tuple(
        Piece(name, tensor.file.name, tensor.dtype, tensor.shape, _how(base, expert, name))
        for name, tensor in expert.index.items()
    )


def stored_bytes(pieces: Sequence[Piece]) -> int:
    """The bytes that the values of a delta take."""
    return sum(prod(p.shape) * DTYPES[_stored_dtype(p)].itemsize for p in pieces if p.how != "base")


def full_bytes(pieces: Sequence[Piece]) -> int:
    """The bytes that the values of the restored checkpoint take."""
    return sum(prod(piece.shape) * DTYPES[piece.dtype].itemsize for piece in pieces)


def write_delta(
    base: Checkpoint, expert: Checkpoint, pieces: Sequence[Piece], folder: Path
) -> None:
    """Write the delta's file into a folder, one tensor in memory at a time."""
    stored = [piece for piece in pieces if piece.how != "base"]
    specs = [(piece.name, _stored_dtype(piece), piece.shape) for piece in stored]
    places = lay_out({folder / NAME: specs})
    for piece in stored:
        values = expert.read(piece.name)
        delta = _delta(base, values, piece.name) if piece.how == "delta" else values
        write_tensor(places[piece.name], delta)


def restore(
    base: Checkpoint, delta: Checkpoint, pieces: Sequence[Piece], folder: Path, index: str | None
) -> None:
    """Write the weight files of the full checkpoint into a folder.

    Raises CheckpointError where pieces, delta and base do not fit together, before a byte is
    written.
    """
    _check(base, delta, pieces)
    check_free(folder, full_bytes(pieces))
    files: dict[Path, list[tuple[str, str, tuple[int, ...]]]] = {}
    for piece in pieces:
        files.setdefault(folder / piece.file, []).append((piece.name, piece.dtype, piece.shape))
    places = lay_out(files, folder / index if index else None)
    for piece in pieces:
        write_tensor(places[piece.name], _restored(base, delta, piece))


def rounding(base: Checkpoint, original: Checkpoint, restored: Checkpoint) -> Rounding:
    """Measure restored values against the original ones, which have the same names and shapes."""
    absolute = relative = 0.0
    exact = original.index.keys() == restored.index.keys()
    for name in original.names():
        ours, theirs = original.read(name), restored.read(name)
        if same_bytes(ours, theirs):
            continue
        exact = False
        before, ours, theirs = (cast(v, _F64) for v in (base.read(name), ours, theirs))
        error = float(np.abs(ours - theirs).max())
        if error > 0:  # else it was the sign of a zero
            absolute = max(absolute, error)
            relative = max(relative, error / float(np.abs(ours - before).max()))
    return Rounding(absolute, relative, exact)


def _how(base: Checkpoint, expert: Checkpoint, name: str) -> How:
    theirs = expert.tensor(name)
    ours = base.index.get(name)
    if ours is None or ours.shape != theirs.shape:
        return "whole"
    values = expert.read(name)
    if same_bytes(values, base.read(name)):
        return "base"
    floats = is_float(theirs.dtype) and is_float(ours.dtype)
    if not floats or DTYPES[theirs.dtype].itemsize <= _BF16.itemsize:
        return "whole"
    back = _sum(base.read(name), _delta(base, values, name), values.dtype)
    return "delta" if bool(np.isfinite(back).all()) else "whole"


def _delta(base: Checkpoint, values: Array, name: str) -> Array:
    ours = base.read(name)
    return cast(subtract(values, ours, _wide(ours, values)), _BF16)


def _sum(base: Array, delta: Array, dtype: np.dtype[Any]) -> Array:
    wide = _wide(base, np.empty(0, dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        return cast(cast(base, wide) + cast(delta, wide), dtype)


def _wide(one: Array, other: Array) -> np.dtype[Any]:
    """What the two are subtracted and added in."""
    return np.dtype(np.float64 if np.float64 in (one.dtype, other.dtype) else np.float32)


def _stored_dtype(piece: Piece) -> str:
    return "BF16" if piece.how == "delta" else piece.dtype


def _restored(base: Checkpoint, delta: Checkpoint, piece: Piece) -> Array:
    if piece.how == "base":
        return base.read(piece.name)
    if piece.how == "whole":
        return delta.read(piece.name)
    return _sum(base.read(piece.name), delta.read(piece.name), DTYPES[piece.dtype])


def _check(base: Checkpoint, delta: Checkpoint, pieces: Sequence[Piece]) -> None:
    stored = {piece.name for piece in pieces if piece.how != "base"}
    if len({piece.name for piece in pieces}) != len(pieces) or stored != delta.index.keys():
        raise CheckpointError(f"{delta.folder} does not hold the tensors that it is said to hold.")
    for piece in pieces:
        if not all(_has(source, piece, dtype) for source, dtype in _needs(base, delta, piece)):
            raise CheckpointError(
                f"{delta.folder}: tensor {shown(piece.name)!r} cannot be restored as it is said: "
                "dtype or shape is another."
            )


def _needs(
    base: Checkpoint, delta: Checkpoint, piece: Piece
) -> Iterator[tuple[Checkpoint, str | None]]:
    """Where the tensor must be, and in which dtype; None for any floating-point one."""
    if piece.how == "base":
        yield base, piece.dtype
    if piece.how == "delta":
        yield base, None
    if piece.how != "base":
        yield delta, _stored_dtype(piece)


def _has(source: Checkpoint, piece: Piece, dtype: str | None) -> bool:
    there = source.index.get(piece.name)
    if there is None or there.shape != piece.shape:
        return False
    return there.dtype == dtype if dtype else is_float(there.dtype) and is_float(piece.dtype)
