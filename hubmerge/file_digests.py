"""SHA-256 of files, several at a time, remembered as long as a file does not change.

To hash the inputs of a merge takes as long as to merge them. A file is the same if its device,
inode, size and times are: the time of the last change of its inode cannot be set by a program. A
file that was written less than two seconds before it is read is not remembered, as it may change
within the resolution of these times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from threading import Event, Lock

from hubmerge.cores import core_count
from hubmerge.durable import flush_to_disk, hash_file, write_atomic
from hubmerge.progress import Progress, no_progress

FILE = "digests.jsonl"
_MIN_AGE_NS = 2_000_000_000
_MOST_ENTRIES = 10_000
# Fewer are hashed sooner than threads start.
_MIN_BYTES_FOR_THREADS = 4 << 20
_REPORT_EVERY_S = 0.1

_Key = tuple[int, ...]
OnRead = Callable[[int], None]


class DigestCache:
    """The digests that were computed so far, in a file that any process may append to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = Lock()

    def hash(self, path: Path, on_read: OnRead | None = None) -> str:
        """The SHA-256 of a file's bytes, as 64 hex digits; raises OSError if it cannot be read.

        `on_read` gets the number of bytes that are read. Threads may hash files at the same time.
        """
        key = _key(path)
        if known := self._known.get(key):
            return known
        is_old = _is_old(key)
        digest = hash_file(path, on_read)
        if is_old and _key(path) == key:
            self._remember(key, digest)
        return digest

    def add(self, path: Path, digest: str) -> None:
        """Remember the digest of a file that this process wrote, computed after its last write.

        That the file is young does not matter, unless the disk counts in seconds: nobody else
        writes it, and the next process that does comes later.
        """
        key = _key(path)
        if any(time_ns % 1_000_000_000 for time_ns in key[3:]):
            self._remember(key, digest)

    def would_remember(self, path: Path) -> bool:
        """Whether the digest of this file is not known, and can be remembered."""
        key = _key(path)
        return key not in self._known and _is_old(key)

    @cached_property
    def _known(self) -> dict[_Key, str]:
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

    def _remember(self, key: _Key, digest: str) -> None:
        with self._lock:
            if key not in self._known:
                self._known[key] = digest
                self._append(key, digest)

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


def _key(path: Path) -> _Key:
    status = path.stat()
    return tuple(getattr(status, field) for field in _FIELDS)


def _is_old(key: _Key) -> bool:
    return time.time_ns() - max(key[3:]) >= _MIN_AGE_NS


def remember_in(folder: Path) -> None:
    """Remember digests in a file of this folder from now on; without this none is remembered."""
    global _cache
    _cache = DigestCache(folder / FILE)


def file_digest(path: Path, on_read: OnRead | None = None) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits, computed once while it does not change."""
    return (_cache.hash if _cache else hash_file)(path, on_read)


def file_digests(paths: Iterable[Path], progress: Progress = no_progress) -> dict[Path, str]:
    """The digest of each file, computed with all cores; the progress is in bytes."""
    sizes = {path: path.stat().st_size for path in paths}
    if sum(sizes.values()) < _MIN_BYTES_FOR_THREADS:
        return {path: file_digest(path) for path in sizes}
    largest_first = sorted(sizes, key=lambda path: -sizes[path])
    done, stop = dict.fromkeys(sizes, 0), Event()

    def hash_one(path: Path) -> str:
        def on_read(count: int) -> None:
            done[path] += count
            if stop.is_set():
                raise CancelledError

        digest = file_digest(path, on_read)
        done[path] = sizes[path]  # also if it was known
        return digest

    with ThreadPoolExecutor(core_count()) as pool:
        futures = {path: pool.submit(hash_one, path) for path in largest_first}
        try:
            while wait(futures.values(), _REPORT_EVERY_S).not_done:
                progress("hash", sum(done.values()), sum(sizes.values()))
            progress("hash", sum(sizes.values()), sum(sizes.values()))
        finally:
            stop.set()  # Ctrl-C does not wait for the rest of a large file
    return {path: futures[path].result() for path in sizes}


def hash_written(paths: Iterable[Path]) -> dict[Path, str]:
    """The digest of each file that this process wrote and has closed, remembered at once.

    While they are hashed, the disk writes them.
    """
    paths = tuple(paths)
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(_flush, paths)
        digests = file_digests(paths)
        flushed.result()
    remember(digests)
    return digests


def remember(digests: Mapping[Path, str]) -> None:
    """Remember digests of files that only this process writes, and has written and closed."""
    if _cache is not None:
        for path, digest in digests.items():
            _cache.add(path, digest)


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            flush_to_disk(file)


def hash_ahead(paths: Iterable[Path], progress: Progress = no_progress) -> None:
    """Hash files with all cores, so that `file_digest` knows their digests.

    Files that are missing, and those whose digests are not remembered, are left out.
    """
    if _cache is not None:
        file_digests(filter(_cache.would_remember, filter(Path.is_file, paths)), progress)
