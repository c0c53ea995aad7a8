"""The first model of a fresh Hub, the same commit on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from hubmerge.errors import HubmergeError
from hubmerge.server.blobs import Blobs
from hubmerge.server.changes import AddFile, AddLarge, Change
from hubmerge.server.names import RepoId
from hubmerge.server.patterns import GITATTRIBUTES, is_tracked, lfs_patterns
from hubmerge.server.store import Store

TINY_CLIP = RepoId("models", "hubmerge", "tiny-clip")

# Author, date and message are part of a commit's id, so they are part of the promise.
_AUTHOR = "hubmerge"
_WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def seed(store: Store, folder: Path) -> None:
    """Fill an empty store with the tiny CLIP model that lies in a folder."""
    if store.count():
        return
    if not folder.is_dir():
        raise HubmergeError(
            f"The model to seed the Hub with is missing: {folder}.",
            "Reinstall hubmerge, or serve an empty Hub with --no-seed.",
        )
    store.create(TINY_CLIP, _changes(store.blobs, folder), author=_AUTHOR, when=_WHEN)


def _changes(blobs: Blobs, folder: Path) -> Iterator[Change]:
    tracked = lfs_patterns(GITATTRIBUTES)
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        yield _large(blobs, file) if is_tracked(file.name, tracked) else _small(file)


def _small(file: Path) -> AddFile:
    return AddFile(file.name, file.read_bytes())


def _large(blobs: Blobs, file: Path) -> AddLarge:
    with file.open("rb") as content:
        oid, size = hashlib.file_digest(content, "sha256").hexdigest(), file.stat().st_size
        content.seek(0)
        blobs.add(content, oid, size)
    return AddLarge(file.name, oid, size)
