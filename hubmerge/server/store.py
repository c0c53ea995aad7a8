"""Every repository of one data folder, and the large files that they share."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from hubmerge.durable import place
from hubmerge.server.blobs import Blobs
from hubmerge.server.changes import AddFile, Change
from hubmerge.server.git import create_git
from hubmerge.server.names import KINDS, RepoId, check_repo
from hubmerge.server.patterns import GITATTRIBUTES
from hubmerge.server.refusals import Conflict, RepoMissing
from hubmerge.server.repository import Repository
from hubmerge.server.settings import Settings, write_settings


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
        self._turns: dict[str, threading.RLock] = {}

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
        with self._draft(id) as draft:
            write_settings(draft.folder, Settings(created=created, private=private))
            first = chain([AddFile(".gitattributes", GITATTRIBUTES)], changes)
            draft.begin(first, "initial commit", author, created)
            self._publish(draft, folder)
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

    def sweep(self) -> None:
        """Clear what a killed process left: drafts, half uploads, git locks; run it alone."""
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir(parents=True, mode=0o700)
        for stale in (self.data / "repos").glob("*/*/*/**/*.lock"):
            stale.unlink()

    def _folder(self, id: RepoId) -> Path:
        return self.data / "repos" / id.kind / id.owner / id.name

    def _turn(self, id: RepoId) -> threading.RLock:
        # setdefault, because two threads must never get two locks.
        return self._turns.setdefault(f"{id.kind}/{id}", threading.RLock())

    @contextmanager
    def _draft(self, id: RepoId) -> Iterator[Repository]:
        folder = self.tmp / secrets.token_hex(8)
        folder.mkdir()
        try:
            create_git(folder)
            yield Repository(id, folder, self.blobs, threading.RLock())
        finally:
            # Once it is published it lies elsewhere.
            shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, draft: Repository, folder: Path) -> None:
        try:
            place(draft.folder, folder)
        except OSError as error:
            # Two creators at once: a folder cannot be renamed over one that is not empty.
            raise Conflict(f"You already created this repo: {draft.id}") from error
