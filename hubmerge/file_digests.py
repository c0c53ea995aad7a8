"""SHA-256 of files, remembered as long as a file does not change.

To hash the inputs of a merge takes longer than to merge them. A file is the same if its device,
inode, size and times are: the time of the last change of its inode cannot be set by a program. A
file that was written in the last seconds is not remembered, as it may change within the resolution
of these times.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from hubmerge.durable import hash_file, write_atomic

FILE = "digests.jsonl"
_MIN_AGE_NS = 2_000_000_000
_MOST_ENTRIES = 50_000

_Key = tuple[int, ...]


class DigestCache:
    """The digests that were computed so far, in a file that any process may append to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[_Key, str] | None = None

    def hash(self, path: Path) -> str:
        """The SHA-256 of a file's bytes, as 64 hex digits; raises OSError if it cannot be read."""
        key = _key(path.stat())
        if self._known is None:
            self._known = self._read()
        if key not in self._known:
            digest = hash_file(path)
            if _key(path.stat()) != key or time.time_ns() - max(key[3:]) < _MIN_AGE_NS:
                return digest
            self._known[key] = digest
            self._append(key, digest)
        return self._known[key]

    def _read(self) -> dict[_Key, str]:
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        if len(lines) > _MOST_ENTRIES:
            lines = lines[-_MOST_ENTRIES // 2 :]
            write_atomic(self._file, "".join(f"{line}\n" for line in lines).encode())
        known = {}
        for line in lines:
            try:
                *key, digest = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                continue  # a line that a crash cut off
            is_key = len(key) == len(_FIELDS) and all(isinstance(part, int) for part in key)
            if is_key and isinstance(digest, str) and len(digest) == 64:
                known[tuple(key)] = digest
        return known

    def _append(self, key: _Key, digest: str) -> None:
        line = json.dumps([*key, digest]) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            return  # only a cache


_FIELDS = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
_cache: DigestCache | None = None


def _key(status: os.stat_result) -> _Key:
    return tuple(getattr(status, field) for field in _FIELDS)


def remember_in(folder: Path) -> None:
    """Remember digests in a file of this folder from now on; without this none is remembered."""
    global _cache
    _cache = DigestCache(folder / FILE)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits, computed once while it does not change."""
    return hash_file(path) if _cache is None else _cache.hash(path)
