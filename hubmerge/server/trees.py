"""Writing a changed git tree."""

from __future__ import annotations

from dulwich.object_store import BaseObjectStore
from dulwich.objects import ObjectID, Tree

from hubmerge.server.http_errors import BadRequest, EntryMissing

FILE = 0o100644
FOLDER = 0o40000


class Folder:
    """A folder being rewritten: read when it is touched, written once at the end."""

    def __init__(self, objects: BaseObjectStore, oid: ObjectID | None) -> None:
        self._objects = objects
        self._tree = read_tree(objects, oid) if oid else Tree()
        self._open: dict[bytes, Folder] = {}

    def put(self, path: str, oid: ObjectID) -> None:
        """Place a file; it may replace a file, never a folder."""
        folder, name = self._parent(path)
        if folder._is_folder(name):
            raise BadRequest(f"{path!r} is a folder in this repository, not a file.")
        folder._tree[name] = (FILE, oid)

    def drop(self, path: str) -> None:
        """Remove a file or a whole folder that must be there."""
        folder, name = self._parent(path)
        if name not in folder._tree and name not in folder._open:
            raise EntryMissing("A file with this name doesn't exist")
        folder._open.pop(name, None)
        if name in folder._tree:
            del folder._tree[name]

    def write(self) -> ObjectID:
        """Store this folder and the changed ones below it; empty ones vanish, as git has it."""
        for name, folder in self._open.items():
            oid = folder.write()
            if len(folder._tree):
                self._tree[name] = (FOLDER, oid)
            elif name in self._tree:
                del self._tree[name]
        self._objects.add_object(self._tree)
        return self._tree.id

    def _parent(self, path: str) -> tuple[Folder, bytes]:
        *parents, name = path.encode().split(b"/")
        folder = self
        for parent in parents:
            folder = folder._enter(parent)
        return folder, name

    def _enter(self, name: bytes) -> Folder:
        if name not in self._open:
            self._open[name] = Folder(self._objects, self._below(name))
        return self._open[name]

    def _below(self, name: bytes) -> ObjectID | None:
        if name not in self._tree:
            return None
        if not self._is_folder(name):
            raise BadRequest(f"{name.decode()!r} is a file in this repository, not a folder.")
        return self._tree[name][1]

    def _is_folder(self, name: bytes) -> bool:
        return name in self._open or (name in self._tree and self._tree[name][0] == FOLDER)


def read_tree(objects: BaseObjectStore, oid: ObjectID) -> Tree:
    """A tree of one's own, fit to be changed."""
    # Parsed anew each time: an object store may hand out the same object twice.
    return Tree.from_string(objects.get_raw(oid)[1])
