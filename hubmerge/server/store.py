"""All repositories of one data folder, and the large files that they share."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from hubmerge.durable import hash_file, rename_into
from hubmerge.errors import HubmergeError
from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import (
    GITATTRIBUTES,
    AddFile,
    AddLargeFile,
    Change,
    is_lfs_path,
    lfs_patterns,
)
from hubmerge.server.git import init_git
from hubmerge.server.http_errors import Conflict, RepoMissing
from hubmerge.server.names import KINDS, RepoId, check_repo
from hubmerge.server.redirects import Redirects
from hubmerge.server.repository import RepoSettings, Repository
from hubmerge.server.uploads import Uploads

TINY_CLIP = RepoId("models", "hubmerge", "tiny-clip")

# Longer than any upload waits for its commit.
_LONG_AGO_S = 24 * 3600

# Author, date and message are fixed, so that the commit has the same id everywhere.
_SEED_AUTHOR = "hubmerge"
_SEED_DATE = datetime(2026, 1, 1, tzinfo=UTC)


class RepositoryStore:
    """Repositories and blobs in a folder that only one process may use at a time.

    repos/models/owner/name   bare git repositories
    blobs/aa/bb/<sha256>      large files
    uploads/<user>/<sha256>   who has uploaded what in the last day
    parts/                    uploads in parts that are not complete
    tmp/                      incomplete files; emptied at start
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.tmp = data / "tmp"
        self.parts = data / "parts"
        self.blobs = BlobStore(data / "blobs", self.tmp)
        self.uploads = Uploads(data / "uploads", self.blobs)
        self.redirects = Redirects(data)
        self._write_locks: dict[str, threading.Lock] = {}
        # Held while a name is taken: names that differ only in case are one.
        self._names_lock = threading.Lock()

    def create(
        self,
        id: RepoId,
        changes: Iterable[Change] = (),
        *,
        author: str,
        private: bool = False,
        when: datetime | None = None,
    ) -> Repository:
        """Create a repository with a first commit, atomically; raises Conflict if it exists."""
        created = when or datetime.now(UTC)
        self._check_free(check_repo(id))
        draft = Repository(id, self.tmp / secrets.token_hex(8), self.blobs, self._write_lock(id))
        try:
            init_git(draft.folder)
            draft.configure(RepoSettings(created, private))
            first = chain([AddFile(".gitattributes", GITATTRIBUTES)], changes)
            draft.write_first_commit(first, "initial commit", author, created)
            with self._names_lock:
                self._check_free(id)
                rename_into(draft.folder, self._folder(id))
                self.redirects.remove(id)
        finally:
            # After success the folder has moved away.
            shutil.rmtree(draft.folder, ignore_errors=True)
        return self.find(id)

    def move(self, old: RepoId, new: RepoId) -> None:
        """Rename a repository; the old name then redirects to the new one."""
        repository = self.find(old)
        with self._names_lock, self._write_lock(old):
            # The same name in another case is free.
            if self.existing_name(new) != old:
                self._check_free(check_repo(new), "A {} repository called {} already exists")
            # First, because a name that exists is found before a redirect is looked for.
            self.redirects.add(old, new)
            rename_into(repository.folder, self._folder(new))

    def existing_name(self, id: RepoId) -> RepoId | None:
        """The name of a repository as it was created; it may be given in another case."""
        if id.problem:
            return None
        if self._folder(id).is_dir():
            return id
        kind = self.data / "repos" / id.kind
        for owner in _same_in_any_case(kind, id.owner):
            for name in _same_in_any_case(kind / owner, id.name):
                return RepoId(id.kind, owner, name)
        return None

    def find(self, id: RepoId) -> Repository:
        """The repository; raises RepoMissing."""
        folder = self._folder(id)
        if id.problem or not folder.is_dir():
            raise RepoMissing("Repository not found")
        return Repository(id, folder, self.blobs, self._write_lock(id))

    def all(self, kind: str) -> Iterator[Repository]:
        """The repositories of a kind, sorted by name."""
        for folder in sorted((self.data / "repos" / kind).glob("*/*")):
            yield self.find(RepoId(kind, folder.parent.name, folder.name))

    def count(self) -> int:
        """The number of repositories."""
        return sum(1 for kind in KINDS for _ in self.all(kind))

    def delete(self, id: RepoId) -> None:
        """Delete a repository atomically; its large files stay until garbage is collected."""
        repository = self.find(id)
        large_files = repository.large_files()
        trash = self.tmp / secrets.token_hex(8)
        with self._write_lock(id):
            os.rename(repository.folder, trash)
        for oid in large_files:
            self.blobs.release(oid, _LONG_AGO_S)
        shutil.rmtree(trash)

    def delete_large_files(self, id: RepoId, oids: Iterable[str]) -> None:
        """Delete large files of a repository for good, except those that another one has too."""
        own = set(oids) & self.find(id).large_files().keys()
        # No commit may add a pointer to these files now.
        with self.locked() as repositories:
            others = [repo.large_files() for repo in repositories if repo.id != id]
            for oid in own.difference(*others):
                self.blobs.remove(oid)

    @contextmanager
    def locked(self) -> Iterator[list[Repository]]:
        """All repositories, to which nobody commits meanwhile; none is created or moved."""
        with ExitStack() as locks:
            locks.enter_context(self._names_lock)
            repositories = [repository for _, repository in self.every()]
            for repo in repositories:  # sorted, or two calls would deadlock
                locks.enter_context(self._write_lock(repo.id))
            yield repositories

    def every(self) -> Iterator[tuple[str, Repository]]:
        """The repositories of all kinds, each with its kind, sorted."""
        return ((kind, repo) for kind in sorted(KINDS) for repo in self.all(kind))

    def clean_up(self) -> None:
        """Remove what a killed process left: drafts, partial uploads, git locks. Not concurrent."""
        self.tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self.tmp.iterdir():
            # The folder itself stays: it could not be created again on a full disk.
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for stale in (self.data / "repos").glob("*/*/*/**/*.lock"):
            stale.unlink()

    def _check_free(
        self, id: RepoId, message: str = "You already created this {} repo: {}"
    ) -> None:
        if existing := self.existing_name(id):
            raise Conflict(message.format(id.kind.removesuffix("s"), existing))

    def _folder(self, id: RepoId) -> Path:
        return self.data / "repos" / id.kind / id.owner / id.name

    def _write_lock(self, id: RepoId) -> threading.Lock:
        # setdefault is atomic: two threads get the same lock.
        return self._write_locks.setdefault(f"{id.kind}/{id}", threading.Lock())


def _same_in_any_case(folder: Path, name: str) -> list[str]:
    try:
        return [entry for entry in sorted(os.listdir(folder)) if entry.lower() == name.lower()]
    except FileNotFoundError:
        return []


def seed(store: RepositoryStore, folder: Path) -> None:
    """Add the tiny CLIP model of a folder to an empty store, as the same commit everywhere."""
    if store.count():
        return
    if not folder.is_dir():
        raise HubmergeError(
            f"The model to seed the Hub with is missing: {folder}.",
            "Reinstall hubmerge, or serve an empty Hub with --no-seed.",
        )
    changes = (
        _change_of_file(store.blobs, file) for file in sorted(folder.iterdir()) if file.is_file()
    )
    store.create(TINY_CLIP, changes, author=_SEED_AUTHOR, when=_SEED_DATE)


def _change_of_file(blobs: BlobStore, file: Path) -> Change:
    if not is_lfs_path(file.name, lfs_patterns(GITATTRIBUTES)):
        return AddFile(file.name, file.read_bytes())
    oid, size = hash_file(file), file.stat().st_size
    blobs.add(file, oid, size)
    return AddLargeFile(file.name, oid, size)
