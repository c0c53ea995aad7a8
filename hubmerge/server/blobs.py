"""Large files, each kept once under the sha256 of its content."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hubmerge.durable import place, settle
from hubmerge.server.http_errors import BadRequest

_OID = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A folder of files named by their sha256: a name that exists is whole and true."""

    def __init__(self, folder: Path, spool: Path) -> None:
        self.folder = folder
        self.spool = spool

    def path(self, oid: str) -> Path:
        """Where the content lies, or would lie."""
        if not _OID.fullmatch(oid):
            raise BadRequest(f"{oid[:80]!r} is not a sha256 in lower-case hex.")
        return self.folder / oid[:2] / oid[2:4] / oid

    def has(self, oid: str) -> bool:
        return self.path(oid).is_file()

    def size(self, oid: str) -> int:
        return self.path(oid).stat().st_size

    def open(self, oid: str) -> BinaryIO:
        return self.path(oid).open("rb")

    def remove(self, oid: str) -> None:
        """Let go of a content for good; what is not there is gone already."""
        self.path(oid).unlink(missing_ok=True)

    @contextmanager
    def receive(self) -> Iterator[Incoming]:
        """Take in a content piece by piece; unless it is kept, nothing of it stays."""
        with tempfile.NamedTemporaryFile(dir=self.spool, delete=False) as file:
            incoming = Incoming(self, file)
            try:
                yield incoming
            finally:
                Path(file.name).unlink(missing_ok=True)

    def add(self, source: Path, oid: str, size: int) -> None:
        """Copy a whole file in, under a name that its bytes must bear out."""
        with source.open("rb") as content, self.receive() as incoming:
            while piece := content.read(1 << 20):
                incoming.write(piece)
            incoming.keep(oid, size)


class Incoming:
    """A content on its way in, hashed while it is written."""

    def __init__(self, blobs: Blobs, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._blobs = blobs
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes | bytearray) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def keep(self, oid: str, size: int) -> None:
        """Give the content its name, if size and sha256 are what was promised."""
        found = self._digest.hexdigest()
        if (found, self.size) != (oid, size):
            raise BadRequest(
                f"Received {self.size} bytes with sha256 {found}, expected {size} bytes "
                f"with sha256 {oid}."
            )
        settle(self._file)
        place(Path(self._file.name), self._blobs.path(oid))
