"""The header of a safetensors file, read as if it were written by an enemy.

A file is: 8 bytes, the header's length N (little-endian); N bytes of JSON, name -> {dtype, shape,
data_offsets}; the data. Here every byte must be spoken for: no holes, no overlap, nothing after the
last tensor, no key twice. The safetensors library promises the same, but cannot hand bfloat16 to
numpy and does not tell where a tensor lies. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from hubmerge.errors import CheckpointError
from hubmerge.refs import printable
from hubmerge.weights.dtypes import DTYPES, is_float

HEADER_CAP = 100_000_000  # bytes, the format's own
# A value costs Python far more memory than its few characters of JSON, so their number is capped
# too; a tensor has about six, and no real file comes near 300,000 tensors.
_COMMA_CAP = 2_000_000
_DIMENSION_CAP = 32
_LISTED = 3  # names spelled out in one problem; the rest are counted
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes `start` to `end` of `file`, counted from its beginning.

    `dtype` is spelled as safetensors does (F32, BF16, I64); prod(shape) * width == end - start.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    def fits(self, base: Tensor) -> bool:
        """Same shape, and both floating-point (of any width) or both exactly the same kind."""
        alike = self.dtype == base.dtype or (is_float(self.dtype) and is_float(base.dtype))
        return self.shape == base.shape and alike


def read_header(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name, in the order they lie in it.

    Raises CheckpointError, naming the file and the tensor, for anything the format does not allow.
    """
    raw, size = _read_raw(file)
    entries = load_object(raw, str(file))
    _check_metadata(entries.pop("__metadata__", {}), file)
    begin = 8 + len(raw)
    tensors = {
        name: _tensor(file, name, entry, begin, size - begin) for name, entry in entries.items()
    }
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_contiguous(file, ordered, begin, size)
    return ordered


def load_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key appears twice and whose size in memory is bounded.

    `where` is the name that errors give it. Raises CheckpointError.
    """
    if raw.count(b",") > _COMMA_CAP:
        raise CheckpointError(f"{where}: its JSON has more than {_COMMA_CAP:,} values.")
    try:
        parsed = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise CheckpointError(f"{where}: its JSON is nested too deeply.") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{where}: its JSON cannot be read: {error}.") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: its JSON is not an object.")
    return parsed


def shown(name: str) -> str:
    """A tensor's or file's name, short and safe to print."""
    text = printable(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def listed(names: Iterable[str], noun: str = "tensor") -> str:
    """ "2 tensors (a, b)", with no more than a few spelled out."""
    ordered = [shown(name) for name in sorted(names)]
    rest = ", ..." if len(ordered) > _LISTED else ""
    plural = "" if len(ordered) == 1 else "s"
    return f"{len(ordered)} {noun}{plural} ({', '.join(ordered[:_LISTED])}{rest})"


def _read_raw(file: Path) -> tuple[bytes, int]:
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = _header_length(file, stream.read(8), size)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    if len(raw) < length:
        raise CheckpointError(f"{file} is cut short inside its header.")
    # Leading blanks would let one file be valid JSON in two ways; the format forbids them.
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{file} is not a safetensors file: its header is not JSON.")
    return raw, size


def _header_length(file: Path, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise CheckpointError(f"{file} is cut short: {size} bytes cannot hold a header.")
    length = int(struct.unpack("<Q", first)[0])
    if length > HEADER_CAP:
        raise CheckpointError(
            f"{file}: its header claims {length:,} bytes; {HEADER_CAP:,} is the most."
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{file} is cut short: its header claims {length:,} of {size:,} bytes."
        )
    return length


def _check_metadata(metadata: object, file: Path) -> None:
    sound = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if not sound:
        raise CheckpointError(f"{file}: its __metadata__ is not a map of text to text.")


def _tensor(file: Path, name: str, entry: object, begin: int, room: int) -> Tensor:
    def no(why: str) -> NoReturn:
        raise CheckpointError(f"{file}: tensor {shown(name)!r} {why}.")

    if any("\ud800" <= character <= "\udfff" for character in name):
        no("has a name that is not text")
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        no("is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        no(f"has the dtype {shown(str(dtype))!r}, which is not supported")
    if not _are_counts(shape) or len(shape) > _DIMENSION_CAP:
        no("has a shape that is not a short list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        no("has data_offsets that are not two whole numbers")
    start, end = offsets
    if not start <= end <= room:
        no(f"lies outside the file (bytes {start} to {end} of {room}): it is cut short or damaged")
    if prod(shape) * DTYPES[dtype].itemsize != end - start:
        no(f"has {end - start} bytes, which its dtype {dtype} and its shape do not give")
    return Tensor(file, dtype, tuple(shape), begin + start, begin + end)


def _are_counts(values: object) -> bool:
    # type() and not isinstance(): True is an int too. 2^63 is more than any file holds.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_contiguous(file: Path, ordered: dict[str, Tensor], begin: int, size: int) -> None:
    position = begin
    for name, tensor in ordered.items():
        if tensor.start != position:
            fault = "overlaps another" if tensor.start < position else "comes after a hole"
            raise CheckpointError(f"{file}: tensor {shown(name)!r} {fault}.")
        position = tensor.end
    if position != size:
        raise CheckpointError(
            f"{file}: {size - position} bytes after the last tensor are no tensor's."
        )


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)!r} appears twice")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
