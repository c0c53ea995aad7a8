"""A repository at one commit: what lies in it, and what the files hold."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from hubmerge.server.blobs import Blobs
from hubmerge.server.content import Pointer, parse_pointer
from hubmerge.server.git import Entry, Git, Version
from hubmerge.server.http_errors import EntryMissing


@dataclass(frozen=True)
class File:
    """A path at a commit; the size is that of the content, not of the pointer in git."""

    path: str
    oid: str
    size: int = 0
    lfs: Pointer | None = None
    is_folder: bool = False

    @property
    def etag(self) -> str:
        """What names the content: the sha256 of a large file, the git id of a small one."""
        return self.lfs.oid if self.lfs else self.oid


@dataclass(frozen=True)
class Snapshot:
    """One commit of the repository in a folder; it never changes, so it can be read unlocked."""

    folder: Path
    blobs: Blobs
    sha: str

    @property
    def version(self) -> Version:
        with Git(self.folder) as git:
            return git.version(self.sha)

    def history(self, limit: int) -> list[Version]:
        """Up to `limit` commits from this one back."""
        with Git(self.folder) as git:
            return list(islice(git.history(self.sha), limit))

    def entries(self, path: str = "", recursive: bool = False) -> list[File]:
        """What lies in a folder, with everything below it if so wished."""
        with Git(self.folder) as git:
            folder = git.find(git.version(self.sha).tree, path)
            if folder is None or not folder.is_folder:
                raise EntryMissing(f'"{path}" does not exist on "{self.sha}"', commit=self.sha)
            return [_describe(git, entry) for entry in git.walk(folder, recursive)]

    def files(self) -> list[File]:
        return [file for file in self.entries(recursive=True) if not file.is_folder]

    def look_up(self, paths: Iterable[str]) -> list[File]:
        """Those of the paths that exist; the others are left out."""
        with Git(self.folder) as git:
            tree = git.version(self.sha).tree
            found = [git.find(tree, path.strip("/")) for path in paths]
            return [_describe(git, entry) for entry in found if entry and entry.path]

    def file(self, path: str) -> File:
        """One file that must exist."""
        for file in self.look_up([path]):
            if not self._is_here(file):
                raise EntryMissing("The content of this file was deleted", commit=self.sha)
            if not file.is_folder:
                return file
        raise EntryMissing("Entry not found", commit=self.sha)

    def open(self, file: File) -> BinaryIO:
        """The content of a file; a large one is never held in memory."""
        if file.lfs:
            return self.blobs.open(file.lfs.oid)
        with Git(self.folder) as git:
            return io.BytesIO(git.read(file.oid))

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """A small file in one piece; empty if it is not there or larger than the limit."""
        for file in self.look_up([path]):
            if not file.is_folder and file.size <= limit and self._is_here(file):
                with self.open(file) as content:
                    return content.read()
        return b""

    def _is_here(self, file: File) -> bool:
        """Whether there is a content to send: a large one may have been deleted for good."""
        return file.lfs is None or self.blobs.has(file.lfs.oid)

    def last_changes(self, paths: Iterable[str]) -> dict[str, Version]:
        """For each path the youngest commit that changed it."""
        wanted, found = set(paths), dict[str, Version]()
        with Git(self.folder) as git:
            for version in git.history(self.sha):
                older = git.version(version.parent).tree if version.parent else None
                changed = {p for p in wanted if _differs(git, p, version.tree, older)}
                found |= dict.fromkeys(changed, version)
                wanted -= changed
                if not wanted:
                    break
        return found


def _describe(git: Git, entry: Entry) -> File:
    if entry.is_folder:
        return File(entry.path, entry.oid, is_folder=True)
    content = git.read(entry.oid)
    lfs = parse_pointer(content)
    return File(entry.path, entry.oid, lfs.size if lfs else len(content), lfs)


def _differs(git: Git, path: str, tree: str, older: str | None) -> bool:
    return older is None or git.find(tree, path) != git.find(older, path)
