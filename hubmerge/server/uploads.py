"""Which user has uploaded which large file: who knows only the sha256 of one does not have it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from hubmerge.server.blobs import BlobStore
from hubmerge.server.tokens import FIRST_USER


def user_key(name: str) -> str:
    """What stands for a user in paths and addresses; names that differ in case are one user."""
    return hashlib.sha256(name.lower().encode()).hexdigest()[:16]


# Who has the data folder has all large files.
_HAS_ALL = user_key(FIRST_USER)


class Uploads:
    """A folder with an empty file USER/SHA256 for each large file that a user has uploaded.

    An upload counts until its commit, or for as long as its address does; after that, the file is
    in a repository of the user, or is uploaded again. Large files are stored once for all users.
    """

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self._folder = folder
        self._blobs = blobs

    def has(self, user: str, oid: str) -> bool:
        """Whether a large file is here and the user has uploaded it; `user` is a `user_key`."""
        return self._blobs.has(oid) and (user == _HAS_ALL or self._path(user, oid).is_file())

    def record(self, user: str, oid: str) -> None:
        """Note that a user has uploaded a large file, whose sha256 was checked."""
        if user != _HAS_ALL:
            path = self._path(user, oid)
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            path.touch()

    def remove_old(self, age_s: float) -> None:
        """Forget the uploads that are older; large files stay."""
        for path in self._folder.glob("*/*"):
            if path.stat().st_mtime < time.time() - age_s:
                path.unlink(missing_ok=True)

    def _path(self, user: str, oid: str) -> Path:
        return self._folder / user / oid
