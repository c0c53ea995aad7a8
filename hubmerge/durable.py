"""Write files atomically: a temporary file, flushed to disk, then renamed. Locks and hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

# Fits in the cache of a core.
_HASHED_AT_ONCE = 256 << 10


def write_atomic(target: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically; by default only its owner may read it."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"
        ) as file:
            file.write(content)
            flush_to_disk(file)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def append_lines(target: Path, lines: str) -> None:
    """Append complete lines to a file; they are on disk before this returns.

    Other processes may append at the same time. A crash may have left an incomplete last line: it
    is ended first, so that it does not merge with the new lines.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"" if _ends_with_newline(target) else b"\n")
        file.write(lines.encode())
        flush_to_disk(file)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def rename_into(source: Path, target: Path) -> None:
    """Rename a file or folder that is flushed already, so that its name survives a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    for folder in (target.parent, *target.parent.parents[:2]):
        fsync_folder(folder)


def flush_to_disk(file: IO[bytes]) -> None:
    """Force everything that was written to a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Force the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO[bytes] | int, shared: bool = False) -> bool:
    """Lock a file for as long as it stays open; returns False if another process holds the lock.

    Pass the descriptor of an open folder to lock a folder.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits; `on_read` gets the number of bytes read."""
    digest, buffer = hashlib.sha256(), bytearray(_HASHED_AT_ONCE)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if on_read is not None:
                on_read(count)
    return digest.hexdigest()
