"""What is asked of a merge, the merge that was checked, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hubmerge import lock
from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest
from hubmerge.merging.plan import MergePlan
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.references import NOT_HASHED, read_local_manifest
from hubmerge.refs import ModelRef
from hubmerge.weights.kept_heads import KeptHead
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions


@dataclass(frozen=True)
class MergeRequest:
    """The experts, method and parameters (as typed) of a merge, and where the result goes.

    A `lock` replaces the first three: `policy` names the pick to merge, and with `locked` every
    name must still point to its pinned commit. With `pull_request`, the result is proposed to
    `push`. `licence` replaces the one that follows from the experts' licences. `options` decide
    where experts and base differ. For a `dry_run` local folders are not hashed. `threads` has no
    effect on the result.
    """

    experts: tuple[ModelRef, ...] = ()
    method: str = "ties"
    settings: Mapping[str, str] = field(default_factory=dict)
    base: ModelRef | None = None
    lock: Path | None = None
    policy: str | None = None
    locked: bool = False
    out: Path | None = None
    push: ModelRef | None = None
    private: bool = False
    pull_request: bool = False
    dtype: str | None = None
    replace: bool = False
    allow_nonfinite: bool = False
    licence: str | None = None
    options: MatchOptions = DEFAULT_OPTIONS
    dry_run: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that was checked and can run; nothing has been written yet.

    `heads` are the experts' trained heads; they and `lock` are written next to the merge. `notes`
    are sentences on differences between experts and on what has changed since they were pinned.
    """

    request: MergeRequest
    plan: MergePlan
    manifest: Manifest
    folder: Path
    heads: Mapping[str, Path | KeptHead] = field(default_factory=dict)
    lock: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_hashed(self) -> bool:
        """Whether the recipe, and the folder that is named after it, are known."""
        sources = (self.manifest.base, *self.manifest.experts)
        return all(source.sha != NOT_HASHED for source in sources)

    @property
    def existing(self) -> Manifest | None:
        """The manifest in the folder, if the folder has exactly this merge, complete; else None."""
        try:
            existing = read_local_manifest(self.folder)
        except IntegrityError:
            return None
        if existing is None or not existing.is_merge:
            return None
        expected = self.manifest.recipe, self.manifest.licence
        is_same = (existing.recipe, existing.licence) == expected
        is_intact = is_same and matches_manifest(self.folder, existing)
        return existing if is_intact and self._has_lock(existing) else None

    def _has_lock(self, existing: Manifest) -> bool:
        expected, copy = self.manifest.lock, self.folder / lock.LOCK_FILE
        if expected is None:
            return True
        return existing.lock == expected and copy.is_file() and hash_file(copy) == expected


@dataclass(frozen=True)
class MergeResult:
    """The folder and manifest of a merge, and its commit or pull request if it was pushed."""

    folder: Path
    manifest: Manifest
    commit: str | None = None
    pull_request: str | None = None
