"""What the refs of a repository reach: git objects, large files, and commits that locks pin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dulwich.object_store import DiskObjectStore
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.refs import Ref

from hubmerge.errors import HubmergeError
from hubmerge.server.content import parse_pointer
from hubmerge.server.refs import RefStore
from hubmerge.server.trees import FOLDER_MODE

# Files that name the commits from which a model was made.
_PINNING_FILES = (b"hubmerge.lock", b"hubmerge.json")
_SHA = re.compile(rb"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
_MAX_PINNING_BYTES = 64 << 20


@dataclass
class Reachable:
    """What was reached so far: git objects, large files with their sizes, and pinned SHAs."""

    objects: set[ObjectID] = field(default_factory=set)
    large_files: dict[str, int] = field(default_factory=dict)
    pins: set[ObjectID] = field(default_factory=set)
    commits: int = 0


class ReachabilityWalk:
    """Walks the objects of one repository. Raises HubmergeError if an object is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reached = Reachable()
        self._objects = DiskObjectStore(str(folder / "objects"))

    def close(self) -> None:
        self._objects.close()

    def from_refs(self) -> None:
        """Walk from all branches, tags and pull requests."""
        refs = RefStore(self.folder, lambda oid: oid.decode())
        targets = {ref: refs.read_ref(Ref(ref)) for ref in refs.allkeys() if ref != b"HEAD"}
        self._walk(ObjectID(target) for target in targets.values() if target)

    def from_pins(self, pins: Iterable[ObjectID]) -> None:
        """Walk from those of the SHAs that are commits of this repository."""
        new = (oid for oid in pins if oid not in self.reached.objects and oid in self._objects)
        self._walk(oid for oid in new if isinstance(self._objects[oid], Commit))

    def unreached(self) -> list[tuple[Path, int]]:
        """The files of the git objects that were not reached, and their sizes; packs stay."""
        loose = (self.folder / "objects").glob("[0-9a-f][0-9a-f]/*")
        known = self.reached.objects
        return [
            (path, path.stat().st_size)
            for path in loose
            if ObjectID((path.parent.name + path.name).encode()) not in known
        ]

    def _walk(self, roots: Iterable[ObjectID]) -> None:
        seen = self.reached.objects
        waiting = [(oid, b"") for oid in roots]
        while waiting:
            oid, name = waiting.pop()
            if oid in seen:
                continue
            seen.add(oid)
            try:
                found = self._objects[oid]
            except (KeyError, OSError, ValueError) as error:
                raise HubmergeError(
                    f"The repository {self.folder} lacks the object {oid.decode()}.",
                    "Nothing was deleted. Run `git fsck` in that folder, or delete the repository.",
                ) from error
            match found:
                case Tag():
                    waiting.append((found.object[1], b""))
                case Commit():
                    self.reached.commits += 1
                    waiting += [(found.tree, b""), *((parent, b"") for parent in found.parents)]
                case Tree():
                    waiting += [
                        (oid, b"" if mode == FOLDER_MODE else name)
                        for name, mode, oid in found.iteritems()
                    ]
                case Blob():
                    self._read_blob(name, found)

    def _read_blob(self, name: bytes, blob: Blob) -> None:
        data = blob.data
        if pointer := parse_pointer(data):
            self.reached.large_files[pointer.oid] = pointer.size
        elif name in _PINNING_FILES and len(data) <= _MAX_PINNING_BYTES:
            self.reached.pins |= {ObjectID(sha) for sha in _SHA.findall(data)}
