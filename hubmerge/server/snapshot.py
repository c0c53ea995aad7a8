"""A repository at one commit: its files and their contents."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import Pointer, parse_pointer
from hubmerge.server.git import Git, GitCommit, TreeEntry
from hubmerge.server.http_errors import EntryMissing


@dataclass(frozen=True)
class File:
    """A file or folder at a commit; the size is that of the content, not of the pointer in git."""

    path: str
    oid: str
    size: int = 0
    lfs: Pointer | None = None
    is_folder: bool = False

    @property
    def etag(self) -> str:
        """The id of the content: the sha256 of a large file, the git id of a regular one."""
        return self.lfs.oid if self.lfs else self.oid


@dataclass(frozen=True)
class Snapshot:
    """One commit of the repository in a folder; it never changes, so reading needs no lock."""

    folder: Path
    blobs: BlobStore
    sha: str

    @property
    def commit(self) -> GitCommit:
        return _read_commit(self.folder, self.sha)

    def history(self, limit: int) -> list[GitCommit]:
        """Up to `limit` commits, this one and its ancestors."""
        return list(islice(self._ancestors(), limit))

    def list_folder(self, path: str = "", recursive: bool = False) -> list[File]:
        """The files and folders in a folder; raises EntryMissing if there is no such folder."""
        return list(_list_folder(self.folder, self.sha, path, recursive))

    def files(self) -> list[File]:
        return [file for file in self.list_folder(recursive=True) if not file.is_folder]

    def find_files(self, paths: Iterable[str]) -> list[File]:
        """The files at the given paths; paths that do not exist are left out."""
        found = (_find_file(self.folder, self.sha, path.strip("/")) for path in paths)
        return [file for file in found if file]

    def file(self, path: str) -> File:
        """The file at a path; raises EntryMissing."""
        for file in self.find_files([path]):
            if not self._has_content(file):
                raise EntryMissing("The content of this file was deleted", commit=self.sha)
            if not file.is_folder:
                return file
        raise EntryMissing("Entry not found", commit=self.sha)

    def open(self, file: File) -> BinaryIO:
        """Open the content of a file; a large one is never read into memory."""
        if file.lfs:
            return self.blobs.open(file.lfs.oid)
        with Git(self.folder) as git:
            return io.BytesIO(git.read_blob(file.oid))

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The bytes of a small file; empty if it is missing or larger than the limit."""
        for file in self.find_files([path]):
            if not file.is_folder and file.size <= limit and self._has_content(file):
                with self.open(file) as content:
                    return content.read()
        return b""

    def _ancestors(self) -> Iterator[GitCommit]:
        sha: str | None = self.sha
        while sha:
            commit = _read_commit(self.folder, sha)
            yield commit
            sha = commit.parent

    def _has_content(self, file: File) -> bool:
        """Whether the content exists: a large file may have been deleted for good."""
        return file.lfs is None or self.blobs.has(file.lfs.oid)

    def last_changes(self, paths: Iterable[str]) -> dict[str, GitCommit]:
        """For each path, the newest commit that changed it."""
        remaining, changes = set(paths), dict[str, GitCommit]()
        with Git(self.folder) as git:
            for commit in git.history(self.sha):
                older = git.read_commit(commit.parent).tree if commit.parent else None
                changed = {p for p in remaining if _differs(git, p, commit.tree, older)}
                changes |= dict.fromkeys(changed, commit)
                remaining -= changed
                if not remaining:
                    break
        return changes


def read_at_commits(
    folder: Path, paths: Iterable[tuple[str, str]], limit: int
) -> Iterator[tuple[str, bytes] | None]:
    """The git id and the bytes of regular files, each by its commit and path; None if it is a large
    file or longer than the limit, or if there is no such commit. The id is "" if there is no file.
    """
    with Git(folder) as git:
        for sha, path in paths:
            if not git.has_commit(sha):
                yield None
                continue
            entry = git.find(git.read_commit(sha).tree, path)
            if entry is None or entry.is_folder:
                yield "", b""
                continue
            content = git.read_blob(entry.oid)
            is_small = len(content) <= limit and parse_pointer(content) is None
            yield (entry.oid, content) if is_small else None


# A commit never changes, so what was read of one stays true.
@lru_cache(maxsize=4096)
def _read_commit(folder: Path, sha: str) -> GitCommit:
    with Git(folder) as git:
        return git.read_commit(sha)


@lru_cache(maxsize=64)
def _list_folder(folder: Path, sha: str, path: str, recursive: bool) -> tuple[File, ...]:
    commit = _read_commit(folder, sha)
    with Git(folder) as git:
        root = git.find(commit.tree, path)
        if root is None or not root.is_folder:
            raise EntryMissing(f'"{path}" does not exist on "{sha}"', commit=sha)
        return tuple(_to_file(git, entry) for entry in git.walk(root, recursive))


@lru_cache(maxsize=4096)
def _find_file(folder: Path, sha: str, path: str) -> File | None:
    commit = _read_commit(folder, sha)
    with Git(folder) as git:
        entry = git.find(commit.tree, path) if path else None
        return _to_file(git, entry) if entry else None


def _to_file(git: Git, entry: TreeEntry) -> File:
    if entry.is_folder:
        return File(entry.path, entry.oid, is_folder=True)
    content = git.read_blob(entry.oid)
    lfs = parse_pointer(content)
    return File(entry.path, entry.oid, lfs.size if lfs else len(content), lfs)


def _differs(git: Git, path: str, tree: str, older: str | None) -> bool:
    return older is None or git.find(tree, path) != git.find(older, path)
