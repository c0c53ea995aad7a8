"""Git trees: looking into them, and writing a changed one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dulwich.object_store import BaseObjectStore
from dulwich.objects import ObjectID, Tree

from hubmerge.server.refusals import BadRequest, EntryMissing

FILE = 0o100644
FOLDER = 0o40000


@dataclass(frozen=True)
class Entry:
    """A path in a tree and the git object under it."""

    path: str
    oid: ObjectID
    is_folder: bool


def find(objects: BaseObjectStore, root: ObjectID, path: str) -> Entry | None:
    """Look one path up; the empty path is the root itself."""
    entry = Entry("", root, is_folder=True)
    for name in filter(None, path.split("/")):
        below = _child(objects, entry, name)
        if below is None:
            return None
        entry = below
    return entry if entry.path == path else None


def walk(objects: BaseObjectStore, folder: Entry, recursive: bool) -> Iterator[Entry]:
    """List a folder in git's order, parents before their children."""
    for entry in _children(objects, folder):
        yield entry
        if recursive and entry.is_folder:
            yield from walk(objects, entry, recursive)


class Folder:
    """A folder being rewritten: read when it is touched, written once at the end."""

    def __init__(self, objects: BaseObjectStore, oid: ObjectID | None) -> None:
        self._objects = objects
        self._tree = _tree(objects, oid) if oid else Tree()
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


def _child(objects: BaseObjectStore, folder: Entry, name: str) -> Entry | None:
    if not folder.is_folder:
        return None
    key = name.encode("utf-8", "surrogateescape")
    tree = _tree(objects, folder.oid)
    return _entry(folder, key, *tree[key]) if key in tree else None


def _children(objects: BaseObjectStore, folder: Entry) -> Iterator[Entry]:
    for name, mode, oid in _tree(objects, folder.oid).iteritems():
        yield _entry(folder, name, mode, oid)


def _entry(folder: Entry, name: bytes, mode: int, oid: ObjectID) -> Entry:
    path = f"{folder.path}/{name.decode()}" if folder.path else name.decode()
    return Entry(path, oid, is_folder=mode == FOLDER)


def _tree(objects: BaseObjectStore, oid: ObjectID) -> Tree:
    # Parsed anew each time: an object store may hand out the same object twice.
    return Tree.from_string(objects.get_raw(oid)[1])
