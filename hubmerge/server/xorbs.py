"""The chunks that Xet clients upload, and the files that are assembled from them.

A Xet client cuts files into chunks and sends them in blocks, called xorbs. Then it sends shards,
which list the chunks of each file. A file becomes a large file like any other: it is stored under
its sha256, and downloads never read a xorb.

The format is that of the public Xet protocol: a sequence of chunks, each with a header of 8 bytes:
version, stored size (3 bytes), compression scheme, size (3 bytes).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import struct
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from hubmerge.durable import flush_to_disk, rename_into
from hubmerge.server.blobs import BlobStore
from hubmerge.server.disk import check_space
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.shards import Segment, ShardFile, read_exactly
from hubmerge.server.uploads import Uploads

# A client makes chunks of up to 128 KiB and xorbs of up to 64 MiB; these are limits for any client.
MAX_XORB_BYTES = 80 << 20
_MAX_CHUNK_BYTES = 1 << 20
_MAX_CHUNKS = 1 << 16

_CHUNK_HEADER_BYTES = 8
_STORED, _LZ4, _GROUPED_LZ4 = range(3)
# Some clients end a xorb with an index of its chunks.
_FOOTER = b"XETBLOB"
_HASH = re.compile(r"[0-9a-f]{64}")
_COPIED_AT_ONCE = 1 << 20


class Xorbs:
    """A folder of decoded xorbs. The name of its only subfolder is the epoch.

    A client remembers which chunks it has sent to the address of an epoch. When xorbs are deleted,
    a new epoch begins, so no client refers to what no longer exists. Each user has a folder: what
    one user claims about a xorb cannot spoil the files of another.
    """

    def __init__(self, folder: Path, blobs: BlobStore, uploads: Uploads) -> None:
        self._folder = folder
        self._blobs = blobs
        self._uploads = uploads

    @property
    def epoch(self) -> str:
        """The current epoch; the first call begins one."""
        if epochs := sorted(path.name for path in self._folder.glob("*")):
            return epochs[0]
        (self._folder / secrets.token_hex(8)).mkdir(parents=True, mode=0o700)
        return self.epoch

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._folder.glob("*/*/*/*"))

    def clear(self) -> None:
        """Delete all xorbs and so end the epoch; not while a client uploads."""
        for path in self._folder.glob("*"):
            shutil.rmtree(path, ignore_errors=True)

    def age_s(self) -> float:
        """Seconds since the last xorb arrived; 0 if there are none."""
        times = [path.stat().st_mtime for path in self._folder.glob("*/*/*/*")]
        return time.time() - max(times) if times else 0.0

    def add(self, user: str, xorb: str, stored: BinaryIO) -> bool:
        """Decode a xorb and keep it; False if it exists already. Raises BadRequest."""
        path = self._path(user, xorb)
        if path.is_file():
            return False
        with tempfile.NamedTemporaryFile(dir=self._blobs.spool, delete=False) as file:
            try:
                ends = array("I", _decode_chunks(stored, file))
                ends.tofile(file)
                file.write(struct.pack("<I", len(ends)))
                flush_to_disk(file)
                rename_into(Path(file.name), path)
            finally:
                Path(file.name).unlink(missing_ok=True)
        return True

    def assemble(self, user: str, files: Iterator[ShardFile]) -> None:
        """Store the files of a shard as large files; raises BadRequest, or DiskFull before it
        writes a file that does not fit.

        A file that another user has uploaded is assembled again: its sha256 alone proves nothing.
        """
        for file in files:
            if self._uploads.has(user, file.oid) and self._blobs.touch(file.oid):
                continue
            check_space(self._blobs.spool, file.size)
            with self._blobs.receive() as incoming:
                for segment in file.segments:
                    for chunk in self._read(user, segment):
                        incoming.write(chunk)
                incoming.store(file.oid, file.size)
            self._uploads.record(user, file.oid)

    def _read(self, user: str, segment: Segment) -> Iterator[bytes]:
        path = self._path(user, segment.xorb)
        if not path.is_file():
            raise BadRequest(f"The xorb {segment.xorb} was never uploaded to this Hub.")
        with path.open("rb") as file:
            start, end = _byte_range(file, segment)
            file.seek(start)
            while start < end:
                chunk = file.read(min(end - start, _COPIED_AT_ONCE))
                if not chunk:
                    raise BadRequest(f"The xorb {segment.xorb} is damaged.")
                start += len(chunk)
                yield chunk

    def _path(self, user: str, xorb: str) -> Path:
        if not _HASH.fullmatch(xorb):
            raise BadRequest(f"{xorb[:80]!r} is not the hash of a xorb.")
        return self._folder / self.epoch / user / xorb[:2] / xorb


def _decode_chunks(stored: BinaryIO, target: IO[bytes]) -> Iterator[int]:
    """Write the chunks of a xorb; yields where each of them ends."""
    end = count = 0
    while header := stored.read(_CHUNK_HEADER_BYTES):
        if header.startswith(_FOOTER):
            return
        if len(header) < _CHUNK_HEADER_BYTES or header[0] != 0:
            raise BadRequest("The xorb has an invalid chunk header.")
        stored_size, size = (int.from_bytes(header[i : i + 3], "little") for i in (1, 5))
        # Checked before anything is read or unpacked.
        count += 1
        if not 0 < size <= _MAX_CHUNK_BYTES or stored_size > _MAX_CHUNK_BYTES:
            raise BadRequest(f"The xorb has a chunk of 0 or of more than {_MAX_CHUNK_BYTES} bytes.")
        if end + size > MAX_XORB_BYTES or count > _MAX_CHUNKS:
            raise BadRequest(f"The xorb unpacks to more than {MAX_XORB_BYTES} bytes.")
        target.write(_decode(read_exactly(stored, stored_size, "The xorb"), header[4], size))
        end += size
        yield end


def _decode(data: bytes, scheme: int, size: int) -> bytes | bytearray:
    if scheme not in (_STORED, _LZ4, _GROUPED_LZ4):
        raise BadRequest(f"The xorb uses the unknown compression scheme {scheme}.")
    plain = data if scheme == _STORED else _unpack_lz4(data, size)
    if len(plain) != size:
        raise BadRequest("The xorb has a chunk of another size than its header says.")
    return _ungroup(plain) if scheme == _GROUPED_LZ4 else plain


def _unpack_lz4(data: bytes, size: int) -> bytes:
    # Imported with the first such chunk: it takes a quarter of a second and 45 MB.
    from pyarrow import Codec

    try:
        # It writes into `size` bytes, or fails if they do not suffice: no frame can grow. A frame
        # that holds fewer leaves the rest undefined; the sha256 of the file then differs.
        return bytes(Codec("lz4").decompress(data, size).to_pybytes())
    except OSError as error:
        raise BadRequest(f"The xorb has a chunk that is not lz4: {error}.") from error


def _ungroup(grouped: bytes) -> bytearray:
    """Undo the order in which all first bytes of groups of four come first, then all second."""
    plain, start = bytearray(len(grouped)), 0
    for offset in range(4):
        count = (len(grouped) - offset + 3) // 4
        plain[offset::4] = grouped[start : start + count]
        start += count
    return plain


def _byte_range(file: BinaryIO, segment: Segment) -> tuple[int, int]:
    file.seek(-4, os.SEEK_END)
    index_end = file.tell()
    (count,) = struct.unpack("<I", file.read(4))
    if not 0 <= segment.first < segment.end <= count:
        raise BadRequest(f"The xorb {segment.xorb} has {count} chunks, not {segment.end}.")
    file.seek(index_end - 4 * count)
    ends = array("I", file.read(4 * count))
    start = ends[segment.first - 1] if segment.first else 0
    if ends[segment.end - 1] - start != segment.size:
        raise BadRequest(
            f"A segment of the xorb {segment.xorb} does not have {segment.size} bytes."
        )
    return start, ends[segment.end - 1]
