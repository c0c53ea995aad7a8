"""Shards, in which a Xet client lists the chunks of its files.

The format is that of the public Xet protocol: a header of 48 bytes, then records of 48 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from hubmerge.server.http_errors import BadRequest

MAX_SHARD_BYTES = 64 << 20

_MAX_SEGMENTS = 1 << 18
_RECORD_BYTES = 48
_SHARD_TAG = b"HFRepoMetaData\x00"
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30
_END_OF_FILES = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive chunks of a xorb, and how many bytes they have together."""

    xorb: str
    first: int
    end: int
    size: int


@dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its sha256, and the segments of which it consists."""

    oid: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


def parse_shard(shard: BinaryIO) -> Iterator[ShardFile]:
    """The files of a shard, as they are read; raises BadRequest if it is not one."""
    if not shard.read(_RECORD_BYTES).startswith(_SHARD_TAG):
        raise BadRequest("This is not a shard: its header is not that of one.")
    while True:
        record = read_exactly(shard, _RECORD_BYTES, "The shard")
        if record[:32] == _END_OF_FILES:
            return
        flags, count = struct.unpack_from("<II", record, 32)
        if count > _MAX_SEGMENTS:
            raise BadRequest(f"The shard has a file of more than {_MAX_SEGMENTS} segments.")
        segments = tuple(_parse_segment(shard) for _ in range(count))
        for _ in range(count if flags & _HAS_VERIFICATION else 0):
            read_exactly(shard, _RECORD_BYTES, "The shard")
        if not flags & _HAS_SHA256:
            raise BadRequest("The shard has a file without its sha256.")
        yield ShardFile(_to_hex(read_exactly(shard, _RECORD_BYTES, "The shard")), segments)


def _parse_segment(shard: BinaryIO) -> Segment:
    record = read_exactly(shard, _RECORD_BYTES, "The shard")
    size, first, end = struct.unpack_from("<III", record, 36)
    return Segment(_to_hex(record), first, end, size)


def read_exactly(file: BinaryIO, size: int, what: str) -> bytes:
    """So many bytes of a file; raises BadRequest if it ends before."""
    data = file.read(size)
    if len(data) < size:
        raise BadRequest(f"{what} is cut off.")
    return data


def _to_hex(hash: bytes) -> str:
    """A hash as clients print it: four little-endian numbers of 8 bytes."""
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", hash))
