"""Large files, each stored once under the sha256 of its content."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hubmerge.durable import flush_to_disk, hash_file, rename_into
from hubmerge.server.http_errors import BadRequest

_OID = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of files named by their sha256: a file that exists is complete and correct."""

    def __init__(self, folder: Path, spool: Path) -> None:
        self.folder = folder
        self.spool = spool

    def path(self, oid: str) -> Path:
        """The path of a content, which need not exist yet."""
        if not _OID.fullmatch(oid):
            raise BadRequest(f"{oid[:80]!r} is not a sha256 in lower-case hex.")
        return self.folder / oid[:2] / oid[2:4] / oid

    def has(self, oid: str) -> bool:
        return self.path(oid).is_file()

    def size(self, oid: str) -> int:
        return self.path(oid).stat().st_size

    def open(self, oid: str) -> BinaryIO:
        return self.path(oid).open("rb")

    def touch(self, oid: str) -> bool:
        """Whether a content exists; if so, it is as young as one that was just uploaded."""
        try:
            os.utime(self.path(oid))
        except FileNotFoundError:
            return False
        return True

    def release(self, oid: str, age_s: float) -> None:
        """Let a content count as uploaded so long ago, because what had it is deleted."""
        with suppress(FileNotFoundError):
            past = time.time() - age_s
            os.utime(self.path(oid), (past, past))

    def files(self) -> Iterator[Path]:
        """The file of each content."""
        return self.folder.glob("*/*/*")

    def remove(self, oid: str) -> None:
        """Delete a content for good; no error if it does not exist."""
        self.path(oid).unlink(missing_ok=True)

    @contextmanager
    def receive(self) -> Iterator[IncomingBlob]:
        """Receive a content in chunks; unless it is stored, nothing of it stays."""
        with tempfile.NamedTemporaryFile(dir=self.spool, delete=False) as file:
            incoming = IncomingBlob(self, file)
            try:
                yield incoming
            finally:
                Path(file.name).unlink(missing_ok=True)

    def add(self, source: Path, oid: str, size: int) -> None:
        """Copy a file into the store; raises BadRequest if its sha256 or size differ."""
        with source.open("rb") as content, self.receive() as incoming:
            while chunk := content.read(1 << 20):
                incoming.write(chunk)
            incoming.store(oid, size)

    def move_in(self, file: Path, oid: str, size: int) -> None:
        """Move a complete file into the store; raises BadRequest, and removes the file, if its
        sha256 or size differ.
        """
        with file.open("rb+") as content:
            received = hash_file(file), file.stat().st_size
            if received != (oid, size):
                file.unlink()
                raise _differs(received, (oid, size))
            flush_to_disk(content)
        rename_into(file, self.path(oid))


class IncomingBlob:
    """A content that is being received, hashed while it is written."""

    def __init__(self, blobs: BlobStore, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._blobs = blobs
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes | bytearray) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def store(self, oid: str, size: int) -> None:
        """Move the content into the store, if its size and sha256 are as announced."""
        received = self._digest.hexdigest(), self.size
        if received != (oid, size):
            raise _differs(received, (oid, size))
        flush_to_disk(self._file)
        rename_into(Path(self._file.name), self._blobs.path(oid))


def _differs(received: tuple[str, int], announced: tuple[str, int]) -> BadRequest:
    return BadRequest(
        f"Received {received[1]} bytes with sha256 {received[0]}, expected {announced[1]} bytes "
        f"with sha256 {announced[0]}."
    )
