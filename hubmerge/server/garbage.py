"""Find and delete what no ref, pull request or published lock of the Hub reaches any more."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hubmerge.server.multipart_store import remove_old_parts
from hubmerge.server.reachability import ReachabilityWalk, Reachable
from hubmerge.server.store import RepositoryStore
from hubmerge.server.xorbs import Xorbs

# An upload may be followed by its commit this much later. What was uploaded since is not garbage.
_UPLOAD_TIME_S = 3600


@dataclass(frozen=True)
class Garbage:
    """Numbers and bytes of what can be deleted, and the bytes that are too young to be."""

    large_files: int
    large_bytes: int
    git_objects: int
    git_bytes: int
    upload_bytes: int
    young_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.large_bytes + self.git_bytes + self.upload_bytes


def collect_garbage(store: RepositoryStore, xorbs: Xorbs, dry_run: bool) -> Garbage:
    """Delete what is not reachable, or only count it; commits wait meanwhile.

    Raises HubmergeError, and deletes nothing, if a repository is damaged.
    """
    with store.locked() as repositories, ExitStack() as stack:
        walks = [ReachabilityWalk(repository.folder) for repository in repositories]
        for walk in walks:
            stack.callback(walk.close)
            walk.from_refs()
        _follow_pins(walks)
        known = {oid for walk in walks for oid in walk.reached.large_files}
        unknown = [path for path in store.blobs.files() if path.name not in known]
        old = [path for path in unknown if _is_old(path)]
        objects = [item for walk in walks for item in walk.unreached()]
        has_old_xorbs = xorbs.age_s() > _UPLOAD_TIME_S
        parts = remove_old_parts(store.parts, _UPLOAD_TIME_S, dry_run)
        garbage = Garbage(
            large_files=len(old),
            large_bytes=_size_of(old),
            git_objects=len(objects),
            git_bytes=sum(size for _, size in objects),
            upload_bytes=parts + (xorbs.size() if has_old_xorbs else 0),
            young_bytes=_size_of(unknown) - _size_of(old),
        )
        if not dry_run:
            # Looked at again: an upload may have found its content here since.
            store.uploads.remove_old(_UPLOAD_TIME_S)
            _delete([path for path in old if _is_old(path)] + [path for path, _ in objects])
            if has_old_xorbs:
                xorbs.clear()
    return garbage


def measure_usage(store: RepositoryStore, xorbs: Xorbs) -> dict[str, object]:
    """Bytes on disk: of each repository, and of what is shared or not reachable."""
    rows, count = list[dict[str, object]](), Counter[str]()
    walks = [(kind, repo, _walk_refs(repo.folder)) for kind, repo in store.every()]
    for _, _, reached in walks:
        count.update(reached.large_files.keys())
    for kind, repository, reached in walks:
        files = reached.large_files
        rows.append(
            {
                "repository": str(repository.id),
                "kind": kind,
                "commits": reached.commits,
                "git_bytes": _size_of(p for p in repository.folder.rglob("*") if p.is_file()),
                "large_bytes": sum(files.values()),
                "own_bytes": sum(size for oid, size in files.items() if count[oid] == 1),
            }
        )
    stored = list(store.blobs.files())
    return {
        "repositories": rows,
        "large_bytes": _size_of(stored),
        "unreachable_bytes": _size_of(path for path in stored if path.name not in count),
        "upload_bytes": xorbs.size() + _size_of(store.parts.glob("*")),
        "free_bytes": shutil.disk_usage(store.data).free,
    }


def _walk_refs(folder: Path) -> Reachable:
    walk = ReachabilityWalk(folder)
    try:
        walk.from_refs()
    finally:
        walk.close()
    return walk.reached


def _follow_pins(walks: list[ReachabilityWalk]) -> None:
    """Walk from the commits that locks pin, in any repository, and from what their locks pin."""
    followed: set[bytes] = set()
    while new := {pin for walk in walks for pin in walk.reached.pins} - followed:
        followed |= new
        for walk in walks:
            walk.from_pins(new)


def _is_old(path: Path) -> bool:
    return path.stat().st_mtime < time.time() - _UPLOAD_TIME_S


def _size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        if not any(os.scandir(folder)):
            folder.rmdir()
