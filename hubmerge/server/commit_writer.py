"""Writes commits: the objects only, no ref moves to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import AddFile, AddLargeFile, Change, Pointer, parse_pointer
from hubmerge.server.git import Edit, Git
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.names import check_path


@dataclass(frozen=True)
class CommitWriter:
    """Writes commits whose large files are all in the blob store."""

    blobs: BlobStore

    def write(
        self,
        git: Git,
        parent: str | None,
        changes: Iterable[Change],
        message: str,
        author: str,
        when: datetime,
    ) -> str:
        """Write the changes on top of a parent, or a first commit; returns its id."""
        tree = git.read_commit(parent).tree if parent else None
        tree = git.edit_tree(tree, self._write_changes(git, changes))
        return git.write_commit(tree, parent, message, author, when)

    def _write_changes(self, git: Git, changes: Iterable[Change]) -> list[Edit]:
        return [(check_path(change.path), self._write_blob(git, change)) for change in changes]

    def _write_blob(self, git: Git, change: Change) -> str | None:
        match change:
            case AddFile(content=content):
                # A regular file that parses as a pointer is one, so its content must exist too.
                self._check_pointer(parse_pointer(content))
                return git.write_blob(content)
            case AddLargeFile(path, oid, size):
                pointer = Pointer(oid, self._uploaded_size(path, oid) if size is None else size)
                self._check_pointer(pointer)
                return git.write_blob(pointer.text)
        return None

    def _uploaded_size(self, path: str, oid: str) -> int:
        if not self.blobs.has(oid):
            raise BadRequest(f"The content of {path!r} was never uploaded (sha256 {oid}).")
        return self.blobs.size(oid)

    def _check_pointer(self, pointer: Pointer | None) -> None:
        if pointer and not self.blobs.has(pointer.oid):
            raise BadRequest(f"LFS pointer points to a file that does not exist: {pointer.oid}")
        if pointer and self.blobs.size(pointer.oid) != pointer.size:
            raise BadRequest(f"The LFS file {pointer.oid} does not have {pointer.size} bytes.")
