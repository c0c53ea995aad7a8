"""Files that are either whole or not there: write beside, flush to disk, rename; locks, hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import IO


def write_whole(target: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step; unless `mode` says otherwise, only its owner may read it."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            settle(file)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def append_lines(target: Path, lines: str) -> None:
    """Add whole lines to a file that only grows; they are on disk before this returns.

    Others may write beside us, and a crash may have left half a line: it must not swallow ours.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"" if _ends_whole(target) else b"\n")
        file.write(lines.encode())
        settle(file)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def place(whole: Path, target: Path) -> None:
    """Rename a settled file or folder to its place, so that the name survives a power cut too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(whole, target)
    for folder in (target.parent, *target.parent.parents[:2]):
        fsync_folder(folder)


def settle(file: IO[bytes]) -> None:
    """Force what was written to disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO[bytes] | int, shared: bool = False) -> bool:
    """Lock a file for as long as it stays open, or say that somebody else holds it.

    A folder is locked by its descriptor.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
