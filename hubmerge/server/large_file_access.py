"""The large files that a user may name in a commit: large files are stored once for all users."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request

from hubmerge.server.access import get_hub, may_read, require_writer
from hubmerge.server.http_errors import HttpError
from hubmerge.server.repository import Repository
from hubmerge.server.uploads import user_key


class LargeFileAccess:
    """What the user of a request has uploaded, or can read in a repository.

    For all else, the answer is the same whether or not another user has it.
    """

    def __init__(self, request: Request, repository: Repository) -> None:
        self._user = require_writer(request)
        self._hub = get_hub(request)
        self._readable: set[str] = set()
        self._unread = self._large_files(request, repository)

    @property
    def user(self) -> str:
        """The `user_key` of the user."""
        return user_key(self._user.name)

    def allows(self, oid: str) -> bool:
        """Whether a large file is here and the user may use it; raises BadRequest for no sha256."""
        store = self._hub.store
        if store.uploads.has(self.user, oid):
            return True
        if not store.blobs.has(oid) or not self._is_readable(oid):
            return False
        # Who can read it could upload it; the next time, no repository is searched.
        store.uploads.record(self.user, oid)
        return True

    def touch(self, oid: str) -> bool:
        """`allows`; if so, the large file is as young as one that was just uploaded."""
        if not (self.allows(oid) and self._hub.store.blobs.touch(oid)):
            return False
        self._hub.store.uploads.record(self.user, oid)
        return True

    def _is_readable(self, oid: str) -> bool:
        while oid not in self._readable:
            files = next(self._unread, None)
            if files is None:
                return False
            self._readable |= files
        return True

    def _large_files(self, request: Request, first: Repository) -> Iterator[set[str]]:
        """The large files of each repository that the user can read, the most likely one first."""
        if may_read(request, self._user, first):
            yield {*first.large_files()}
        for _, repository in self._hub.store.every():
            try:
                if repository.id != first.id and may_read(request, self._user, repository):
                    yield {*repository.large_files()}
            except (OSError, HttpError):
                continue  # deleted meanwhile
