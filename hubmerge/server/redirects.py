"""Old names of repositories that were moved, so that what names them still works."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from hubmerge.durable import write_atomic
from hubmerge.server.names import RepoId


class Redirects:
    """Old names and the current ones, in a file. An old name leads straight to the newest one."""

    def __init__(self, data: Path) -> None:
        self._file = data / "redirects.json"
        self._lock = threading.Lock()

    def find(self, id: RepoId) -> RepoId | None:
        """The current name of a repository that had this name, in any case."""
        name = self._read().get(_key(id))
        return RepoId(id.kind, *name.split("/")) if name else None

    def add(self, old: RepoId, new: RepoId) -> None:
        """Redirect an old name, and every name that led to it."""
        with self._lock:
            names = self._read()
            moved = {key: str(new) for key, name in names.items() if _is(key, name, old)}
            self._write({**names, **moved, _key(old): str(new)}, without=new)

    def remove(self, id: RepoId) -> None:
        """Forget an old name: a repository has it again."""
        with self._lock:
            names = self._read()
            if _key(id) in names:
                self._write(names, without=id)

    def _write(self, names: dict[str, str], without: RepoId) -> None:
        names.pop(_key(without), None)
        write_atomic(self._file, json.dumps(names).encode())

    def _read(self) -> dict[str, str]:
        return json.loads(self._file.read_text()) if self._file.is_file() else {}


def _key(id: RepoId) -> str:
    return f"{id.kind}/{id}".lower()


def _is(key: str, name: str, id: RepoId) -> bool:
    return f"{key.partition('/')[0]}/{name}".lower() == _key(id)
