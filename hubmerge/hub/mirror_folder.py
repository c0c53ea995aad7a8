"""Repositories outside of any Hub, with their history: to carry them to a place without a network.

models/owner/name.git     a bare git repository
models/owner/name.json    whether it was private, and on which Hub
lfs/aa/bb/<sha256>        the large files of all of them
tmp/                      incomplete files
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dulwich.errors import (
    ApplyDeltaError,
    ChecksumMismatch,
    FileFormatException,
    NotGitRepository,
)
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.refs import Ref
from dulwich.repo import Repo

from hubmerge.durable import try_lock, write_atomic
from hubmerge.errors import Busy, IntegrityError
from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import parse_pointer
from hubmerge.server.git import init_git
from hubmerge.server.names import RepoId

_FOLDER_MODE = 0o040000
# What dulwich raises for missing and malformed objects, packs and folders.
_DAMAGE = (
    KeyError, ValueError, TypeError, AssertionError, zlib.error, ChecksumMismatch,
    ApplyDeltaError, FileFormatException, NotGitRepository,
)  # fmt: skip


@dataclass(frozen=True)
class LargeFile:
    """A large file: sha256, size in bytes, and a commit and path where it is found."""

    oid: str
    size: int
    commit: str
    path: str


@dataclass(frozen=True)
class Origin:
    """Where a repository came from: the name of its Hub, and whether it was private there."""

    hub: str
    private: bool


class MirrorFolder:
    """A folder of repositories; made when something is written into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "lfs", folder / "tmp")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder; raises Busy if one is at work there."""
        self.blobs.spool.mkdir(parents=True, exist_ok=True)
        with (self.folder / "tmp" / "lock").open("wb") as file:
            if not try_lock(file):
                raise Busy(f"Another process moves repositories by {self.folder}.", "Wait for it.")
            yield

    def repository(self, id: RepoId) -> MirroredRepository:
        """The repository of this name, which need not exist."""
        return MirroredRepository(self, id)

    def repository_ids(self) -> list[RepoId]:
        """The repositories in the folder."""
        parts = [path.relative_to(self.folder).parts for path in self.folder.glob("*/*/*.git")]
        return [
            RepoId(kind, owner, name.removesuffix(".git")) for kind, owner, name in sorted(parts)
        ]


class MirroredRepository:
    """One repository in a folder."""

    def __init__(self, mirror: MirrorFolder, id: RepoId) -> None:
        self.mirror, self.id = mirror, id
        self._folder = mirror.folder / id.kind / id.owner / f"{id.name}.git"
        self._origin = self._folder.with_suffix(".json")

    @property
    def exists(self) -> bool:
        return self._origin.is_file()

    def create(self, origin: Origin) -> None:
        """Make an empty repository, unless it is there; what a killed process left is removed."""
        if not self.exists:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            init_git(self._folder)
        for stale in self._folder.rglob("*.lock"):
            stale.unlink()
        write_atomic(self._origin, json.dumps(asdict(origin)).encode())

    @property
    def origin(self) -> Origin:
        """Where it came from; raises IntegrityError if that cannot be read."""
        with self._damage_as_error():
            return Origin(**json.loads(self._origin.read_text()))

    @contextmanager
    def open(self) -> Iterator[Repo]:
        """The git repository; what is wrong with its files is raised as IntegrityError."""
        with self._damage_as_error(), Repo(str(self._folder), bare=True) as repo:
            yield repo

    @contextmanager
    def _damage_as_error(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise IntegrityError(
                f"{self.id} in {self.mirror.folder} is damaged or not complete "
                f"({type(error).__name__}).",
                "Copy the folder again, or remove the repository there and pull it again.",
            ) from error

    def refs(self) -> dict[str, str]:
        """The branches and tags by full name, and the objects that they point to."""
        with self.open() as repo:
            return {
                name.decode(): oid.decode()
                for name, oid in repo.get_refs().items()
                if name != b"HEAD"
            }

    def write_refs(self, refs: Mapping[str, str]) -> None:
        """Set these refs; others stay."""
        with self.open() as repo:
            for name, oid in refs.items():
                repo.refs.set_if_equals(Ref(name.encode()), None, ObjectID(oid.encode()))

    def reaches(self, tip: str, commit: str) -> bool:
        """Whether a commit is among the ancestors of `tip`, or `tip` itself."""
        with self.open() as repo:
            if ObjectID(commit.encode()) not in repo.object_store:
                return False
            walker = repo.get_walker([ObjectID(tip.encode())])
            return any(entry.commit.id == commit.encode() for entry in walker)

    def large_files(self, refs: Mapping[str, str]) -> list[LargeFile]:
        """The large files of all commits that these refs reach, each once.

        Raises IntegrityError if an object is missing.
        """
        with self.open() as repo:
            return [*_large_files(repo, refs.values())]


def _large_files(repo: Repo, tips: Iterable[str]) -> Iterator[LargeFile]:
    seen = set[bytes]()
    oids = set[str]()
    commits = [commit for tip in tips if (commit := _peel(repo, tip.encode()))]
    for entry in repo.get_walker(commits) if commits else ():
        for path, blob in _new_blobs(repo, entry.commit.tree, "", seen):
            pointer = parse_pointer(blob.data)
            if pointer and pointer.oid not in oids:
                oids.add(pointer.oid)
                yield LargeFile(pointer.oid, pointer.size, entry.commit.id.decode(), path)


def _new_blobs(
    repo: Repo, tree: bytes, prefix: str, seen: set[bytes]
) -> Iterator[tuple[str, Blob]]:
    """Yield path and blob of everything in a tree that is not in `seen`."""
    if tree in seen:
        return
    seen.add(tree)
    item: Any = repo.object_store[ObjectID(tree)]
    assert isinstance(item, Tree)
    for name, mode, oid in item.iteritems():
        path = prefix + name.decode("utf-8", "surrogateescape")
        if mode == _FOLDER_MODE:
            yield from _new_blobs(repo, oid, f"{path}/", seen)
        elif oid not in seen:
            seen.add(oid)
            blob = repo.object_store[oid]
            if isinstance(blob, Blob):
                yield path, blob


def _peel(repo: Repo, oid: bytes) -> ObjectID | None:
    """The commit that an object is, or that a tag points to."""
    item: Any = repo.object_store[ObjectID(oid)]
    while isinstance(item, Tag):
        item = repo.object_store[item.object[1]]
    return ObjectID(item.id) if isinstance(item, Commit) else None
