"""The refs of a repository. New ones are files; when these are many, they are packed into one file.

So ten thousand tags are read at once, and a new tag costs the same however many there are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dulwich.objects import ObjectID
from dulwich.refs import (
    DiskRefsContainer,
    Ref,
    read_packed_refs,
    read_packed_refs_with_peeled,
    write_packed_refs,
)

from hubmerge.durable import write_atomic

# So many refs may be files of their own before they are packed.
MAX_LOOSE = 128

_MAIN = b"refs/heads/main"


@dataclass(frozen=True)
class PackedRefs:
    """The content of packed-refs: targets, the commits of tag objects, and folders of names."""

    targets: dict[Ref, ObjectID]
    peeled: dict[Ref, ObjectID]
    folders: frozenset[bytes]


class RefStore(DiskRefsContainer):
    """Refs on disk. The packed ones are parsed once for all requests, until the file changes.

    `peel` returns the commit of a tag object, the object itself if it is a commit, else None.
    """

    def __init__(self, folder: Path, peel: Callable[[ObjectID], str | None]) -> None:
        super().__init__(str(folder))
        self._folder = folder
        self._peel = peel

    def get_packed_refs(self) -> dict[Ref, ObjectID]:
        """For the base class, which copies it before a change."""
        packed = self._packed()
        self._packed_refs, self._peeled_refs = packed.targets, packed.peeled
        return packed.targets

    def commits(self, prefix: str) -> dict[str, str]:
        """The names below a prefix ("refs/tags/"), sorted, and their commits."""
        # Files first: a ref that is packed meanwhile is found in the packed ones.
        loose, packed, start = self._loose(prefix), self._packed(), prefix.encode()
        commits = {
            name: packed.peeled.get(name, target).decode()
            for name, target in packed.targets.items()
            if name.startswith(start)
        }
        for name, target in loose.items():
            if commit := self._peel(target):
                commits[name] = commit
        return {name[len(start) :].decode(): commits[name] for name in sorted(commits)}

    def commit(self, name: str) -> str | None:
        """The commit of a ref, None if there is no such ref."""
        ref = Ref(name.encode())
        if target := self.read_loose_ref(ref):
            return self._peel(ObjectID(target))
        packed = self._packed()
        commit = packed.peeled.get(ref) or packed.targets.get(ref)
        return commit.decode() if commit else None

    def add(self, name: str, target: ObjectID) -> bool:
        """Create a ref; False if it exists already. The caller holds the repository's lock.

        Raises NotADirectoryError if the name is a folder of others, or has one as its folder.
        """
        packed, ref = self._packed(), Ref(name.encode())
        if ref in packed.folders or any(Ref(p) in packed.targets for p in _parents(ref)):
            raise NotADirectoryError(name)
        is_new = self.add_if_new(ref, target)
        if sum(1 for _ in _walk(self._folder / "refs", "refs/")) > MAX_LOOSE:
            self._pack()
        return is_new

    def _packed(self) -> PackedRefs:
        """The packed refs; not to be changed."""
        try:
            status = (self._folder / "packed-refs").stat()
        except FileNotFoundError:
            return _NONE
        return _read_packed(self._folder, status.st_mtime_ns, status.st_ino, status.st_size)

    def _loose(self, prefix: str) -> dict[Ref, ObjectID]:
        """The refs below a prefix that are files of their own."""
        names = (Ref(name.encode()) for name in _walk(self._folder / prefix, prefix))
        found = ((name, self.read_loose_ref(name)) for name in names)
        return {name: ObjectID(target) for name, target in found if target}

    def _pack(self) -> None:
        """Pack all refs that are files, but main. Readers find each in one place or the other."""
        packed, peeled = self._packed(), dict[Ref, ObjectID]()
        loose = {name: target for name, target in self._loose("refs/").items() if name != _MAIN}
        for name, target in loose.items():
            commit = self._peel(target)
            if commit and commit.encode() != target:
                peeled[name] = ObjectID(commit.encode())
        kept = {name: oid for name, oid in packed.peeled.items() if name not in loose}
        content = io.BytesIO()
        write_packed_refs(content, {**packed.targets, **loose}, {**kept, **peeled})
        write_atomic(self._folder / "packed-refs", content.getvalue())
        for name in loose:
            (self._folder / name.decode()).unlink()
            _remove_empty_folders(self._folder, name.decode())


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif not entry.name.endswith(".lock"):
            yield prefix + entry.name


def _parents(name: bytes) -> Iterator[bytes]:
    while name := os.path.dirname(name):
        yield name


def _remove_empty_folders(root: Path, name: str) -> None:
    """Remove the folders of a packed name, so that a ref of the folder's name may exist later."""
    # refs/tags/ itself stays.
    for parent in list(Path(name).parents)[:-3]:
        try:
            (root / parent).rmdir()
        except OSError:
            return


_NONE = PackedRefs({}, {}, frozenset())


@lru_cache(maxsize=64)
def _read_packed(folder: Path, *version: int) -> PackedRefs:
    """The packed refs of a folder; the version is that of the file."""
    targets: dict[Ref, ObjectID] = {}
    peeled: dict[Ref, ObjectID] = {}
    with (folder / "packed-refs").open("rb") as file:
        has_peeled = b" peeled" in file.readline()
        if has_peeled:
            for oid, name, commit in read_packed_refs_with_peeled(file):
                targets[name] = oid
                if commit:
                    peeled[name] = commit
        else:
            file.seek(0)
            targets = {name: oid for oid, name in read_packed_refs(file)}
    folders = frozenset(parent for name in targets for parent in _parents(name))
    return PackedRefs(targets, peeled, folders)
