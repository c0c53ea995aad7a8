"""Every repository of one data folder, and the large files that they share."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from hubmerge.durable import hash_file, place
from hubmerge.errors import HubmergeError
from hubmerge.server.blobs import Blobs
from hubmerge.server.content import (
    GITATTRIBUTES,
    AddFile,
    AddLarge,
    Change,
    is_tracked,
    lfs_patterns,
)
from hubmerge.server.git import create_git
from hubmerge.server.http_errors import Conflict, RepoMissing
from hubmerge.server.names import KINDS, RepoId, check_repo
from hubmerge.server.repository import Repository, Settings

TINY_CLIP = RepoId("models", "hubmerge", "tiny-clip")

# Author, date and message are part of a commit's id, so they are part of the promise.
_SEED_AUTHOR = "hubmerge"
_SEED_DATE = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """Repositories and blobs in a folder that one process at a time may hold.

    repos/models/owner/name   bare git repositories
    blobs/aa/bb/<sha256>      large files
    tmp/                      whatever is not whole yet; emptied at start
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.tmp = data / "tmp"
        self.blobs = Blobs(data / "blobs", self.tmp)
        self._turns: dict[str, threading.Lock] = {}

    def create(
        self,
        id: RepoId,
        changes: Iterable[Change] = (),
        *,
        author: str,
        private: bool = False,
        when: datetime | None = None,
    ) -> Repository:
        """Make a repository with one first commit: it appears whole or not at all."""
        created = when or datetime.now(UTC)
        folder = self._folder(check_repo(id))
        if folder.exists():
            raise Conflict(f"You already created this {id.kind.removesuffix('s')} repo: {id}")
        draft = Repository(id, self.tmp / secrets.token_hex(8), self.blobs, self._turn(id))
        try:
            create_git(draft.folder)
            draft.configure(Settings(created, private))
            first = chain([AddFile(".gitattributes", GITATTRIBUTES)], changes)
            draft.begin(first, "initial commit", author, created)
            _publish(draft, folder)
        finally:
            # Once it is published it lies elsewhere.
            shutil.rmtree(draft.folder, ignore_errors=True)
        return self.find(id)

    def find(self, id: RepoId) -> Repository:
        """A repository that must exist."""
        folder = self._folder(id)
        if id.problem or not folder.is_dir():
            raise RepoMissing("Repository not found")
        return Repository(id, folder, self.blobs, self._turn(id))

    def all(self, kind: str) -> Iterator[Repository]:
        """The repositories of a kind, by name."""
        for folder in sorted((self.data / "repos" / kind).glob("*/*")):
            yield self.find(RepoId(kind, folder.parent.name, folder.name))

    def count(self) -> int:
        """How many repositories there are."""
        return sum(1 for kind in KINDS for _ in self.all(kind))

    def delete(self, id: RepoId) -> None:
        """Remove a repository in one step; shared large files stay."""
        repository = self.find(id)
        grave = self.tmp / secrets.token_hex(8)
        with self._turn(id):
            os.rename(repository.folder, grave)
        shutil.rmtree(grave)

    def forget(self, id: RepoId, oids: Iterable[str]) -> None:
        """Delete large files of a repository for good, but for those that another one holds too."""
        wanted = set(oids) & self.find(id).large_files().keys()
        with ExitStack() as turns:
            # Nobody may commit a pointer to what is about to go; in order, or two would deadlock.
            everyone = [one for kind in sorted(KINDS) for one in self.all(kind)]
            for one in everyone:
                turns.enter_context(self._turn(one.id))
            others = [one.large_files() for one in everyone if one.id != id]
            for oid in wanted.difference(*others):
                self.blobs.remove(oid)

    def sweep(self) -> None:
        """Clear what a killed process left: drafts, half uploads, git locks; run it alone."""
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir(parents=True, mode=0o700)
        for stale in (self.data / "repos").glob("*/*/*/**/*.lock"):
            stale.unlink()

    def _folder(self, id: RepoId) -> Path:
        return self.data / "repos" / id.kind / id.owner / id.name

    def _turn(self, id: RepoId) -> threading.Lock:
        # setdefault, because two threads must never get two locks.
        return self._turns.setdefault(f"{id.kind}/{id}", threading.Lock())


def seed(store: Store, folder: Path) -> None:
    """Fill an empty store with the tiny CLIP model in a folder: the same commit everywhere."""
    if store.count():
        return
    if not folder.is_dir():
        raise HubmergeError(
            f"The model to seed the Hub with is missing: {folder}.",
            "Reinstall hubmerge, or serve an empty Hub with --no-seed.",
        )
    changes = (_taken_in(store.blobs, file) for file in sorted(folder.iterdir()) if file.is_file())
    store.create(TINY_CLIP, changes, author=_SEED_AUTHOR, when=_SEED_DATE)


def _taken_in(blobs: Blobs, file: Path) -> Change:
    if not is_tracked(file.name, lfs_patterns(GITATTRIBUTES)):
        return AddFile(file.name, file.read_bytes())
    oid, size = hash_file(file), file.stat().st_size
    blobs.add(file, oid, size)
    return AddLarge(file.name, oid, size)


def _publish(draft: Repository, folder: Path) -> None:
    try:
        place(draft.folder, folder)
    except OSError as error:
        # Two creators at once: a folder cannot be renamed over one that is not empty.
        raise Conflict(f"You already created this repo: {draft.id}") from error
