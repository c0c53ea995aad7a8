"""Read the header of a safetensors file, which is not trusted.

A file is: 8 bytes, the header's length N (little-endian); N bytes of JSON, name -> {dtype, shape,
data_offsets}; the data. Every byte must belong to a tensor: no gaps, no overlap, nothing after the
last tensor, no duplicate keys. The safetensors library promises the same, but cannot pass bfloat16
to numpy and does not return the offsets of a tensor. Source: https://github.com/huggingface/safetensors#format
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

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
# A value takes far more memory in Python than in JSON, so their number is limited too. A tensor has
# about six values, and no real file comes near 300,000 tensors.
_MAX_COMMAS = 2_000_000
_MAX_DIMENSIONS = 32
_MAX_LISTED = 3  # names listed in one problem; the rest are counted
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """The location of one tensor: bytes `start` to `end` of `file`, counted from its beginning.

    `dtype` is a safetensors name (F32, BF16, I64); prod(shape) * bytes per value == end - start.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    def fits(self, base: TensorInfo) -> bool:
        """Same shape, and both floating-point (of any width) or both of the same dtype."""
        same_kind = self.dtype == base.dtype or (is_float(self.dtype) and is_float(base.dtype))
        return self.shape == base.shape and same_kind


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file by name, in their order in the file.

    Raises CheckpointError, naming the file and the tensor, for anything the format does not allow.
    """
    raw, size = _read_header_bytes(file)
    entries = parse_json_object(raw, str(file))
    _check_metadata(entries.pop("__metadata__", {}), file)
    data_start = 8 + len(raw)
    tensors = {
        name: _parse_tensor(file, name, entry, data_start, size - data_start)
        for name, entry in entries.items()
    }
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_contiguous(file, ordered, data_start, size)
    return ordered


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key appears twice and whose size in memory is bounded.

    `where` names it in errors. Raises CheckpointError.
    """
    if raw.count(b",") > _MAX_COMMAS:
        raise CheckpointError(f"{where}: its JSON has more than {_MAX_COMMAS:,} values.")
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_reject_constant,
        )
    except RecursionError:
        raise CheckpointError(f"{where}: its JSON is nested too deeply.") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{where}: its JSON cannot be read: {error}.") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: its JSON is not an object.")
    return parsed


def safe_name(name: str) -> str:
    """A tensor's or file's name, short and safe to print."""
    text = printable(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def summarize_names(names: Iterable[str], noun: str = "tensor") -> str:
    """Count names and list the first few: "2 tensors (a, b)"."""
    ordered = [safe_name(name) for name in sorted(names)]
    rest = ", ..." if len(ordered) > _MAX_LISTED else ""
    plural = "" if len(ordered) == 1 else "s"
    return f"{len(ordered)} {noun}{plural} ({', '.join(ordered[:_MAX_LISTED])}{rest})"


def _read_header_bytes(file: Path) -> tuple[bytes, int]:
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
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: its header claims {length:,} bytes; {MAX_HEADER_BYTES:,} is the maximum."
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{file} is cut short: its header claims {length:,} of {size:,} bytes."
        )
    return length


def _check_metadata(metadata: object, file: Path) -> None:
    is_text_map = isinstance(metadata, dict) and all(
        isinstance(text, str) for text in metadata.values()
    )
    if not is_text_map:
        raise CheckpointError(f"{file}: its __metadata__ is not a map of text to text.")


def _parse_tensor(
    file: Path, name: str, entry: object, data_start: int, data_size: int
) -> TensorInfo:
    def fail(reason: str) -> NoReturn:
        raise CheckpointError(f"{file}: tensor {safe_name(name)!r} {reason}.")

    if not _is_text(name):
        fail("has a name that is not text")
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        fail("is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(f"has the dtype {safe_name(str(dtype))!r}, which is not supported")
    if not _are_whole_numbers(shape) or len(shape) > _MAX_DIMENSIONS:
        fail("has a shape that is not a short list of whole numbers")
    if not _are_whole_numbers(offsets) or len(offsets) != 2:
        fail("has data_offsets that are not two whole numbers")
    start, end = offsets
    if not start <= end <= data_size:
        where = f"bytes {start} to {end} of {data_size}"
        fail(f"is outside the file ({where}), which is cut short or damaged")
    if prod(shape) * DTYPES[dtype].itemsize != end - start:
        fail(f"has {end - start} bytes, which its dtype {dtype} and its shape do not give")
    return TensorInfo(file, dtype, tuple(shape), data_start + start, data_start + end)


def _is_text(name: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON can escape."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_whole_numbers(values: object) -> bool:
    # type() and not isinstance(): True is an int too. 2^63 is more than any file holds.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_contiguous(
    file: Path, ordered: dict[str, TensorInfo], data_start: int, size: int
) -> None:
    position = data_start
    for name, tensor in ordered.items():
        if tensor.start != position:
            fault = "overlaps another" if tensor.start < position else "comes after a gap"
            raise CheckpointError(f"{file}: tensor {safe_name(name)!r} {fault}.")
        position = tensor.end
    if position != size:
        raise CheckpointError(
            f"{file}: {size - position} bytes after the last tensor belong to no tensor."
        )


def _reject_duplicate_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for key, value in pairs:
        if key in parsed:
            raise ValueError(f"the key {safe_name(key)!r} appears twice")
        parsed[key] = value
    return parsed


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
