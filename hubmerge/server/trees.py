"""Edit a git tree."""

from __future__ import annotations

from dulwich.object_store import BaseObjectStore
from dulwich.objects import ObjectID, Tree

from hubmerge.server.http_errors import BadRequest, EntryMissing

FILE_MODE = 0o100644
FOLDER_MODE = 0o40000


class TreeEditor:
    """A folder that is being edited: read when needed, written once at the end."""

    def __init__(self, objects: BaseObjectStore, oid: ObjectID | None) -> None:
        self._objects = objects
        self._tree = read_tree(objects, oid) if oid else Tree()
        self._subfolders: dict[bytes, TreeEditor] = {}

    def put(self, path: str, oid: ObjectID) -> None:
        """Add or replace a file; raises BadRequest if the path is a folder."""
        folder, name = self._parent(path)
        if folder._is_folder(name):
            raise BadRequest(f"{path!r} is a folder in this repository, not a file.")
        folder._tree[name] = (FILE_MODE, oid)

    def drop(self, path: str) -> None:
        """Remove a file or folder; raises EntryMissing."""
        folder, name = self._parent(path)
        if name not in folder._tree and name not in folder._subfolders:
            raise EntryMissing("A file with this name doesn't exist")
        folder._subfolders.pop(name, None)
        if name in folder._tree:
            del folder._tree[name]

    def write(self) -> ObjectID:
        """Write this folder and its changed subfolders; empty folders vanish, as in git."""
        for name, folder in self._subfolders.items():
            oid = folder.write()
            if len(folder._tree):
                self._tree[name] = (FOLDER_MODE, oid)
            elif name in self._tree:
                del self._tree[name]
        self._objects.add_object(self._tree)
        return self._tree.id

    def _parent(self, path: str) -> tuple[TreeEditor, bytes]:
        *parents, name = path.encode().split(b"/")
        folder = self
        for parent in parents:
            folder = folder._subfolder(parent)
        return folder, name

    def _subfolder(self, name: bytes) -> TreeEditor:
        if name not in self._subfolders:
            self._subfolders[name] = TreeEditor(self._objects, self._subtree_id(name))
        return self._subfolders[name]

    def _subtree_id(self, name: bytes) -> ObjectID | None:
        if name not in self._tree:
            return None
        if not self._is_folder(name):
            raise BadRequest(f"{name.decode()!r} is a file in this repository, not a folder.")
        return self._tree[name][1]

    def _is_folder(self, name: bytes) -> bool:
        return name in self._subfolders or (
            name in self._tree and self._tree[name][0] == FOLDER_MODE
        )


def read_tree(objects: BaseObjectStore, oid: ObjectID) -> Tree:
    """A copy of a tree that may be changed."""
    # Parsed again each time: an object store may return the same object twice.
    return Tree.from_string(objects.get_raw(oid)[1])
