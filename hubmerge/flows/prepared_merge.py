"""What is asked of a merge, the merge that was checked, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.durable import hash_file
from hubmerge.manifest import LOCK_FILE, Manifest
from hubmerge.merging.plan import MergePlan
from hubmerge.opening.finished_folder import read_finished
from hubmerge.opening.planned_merge import PlannedMerge
from hubmerge.opening.references import NOT_HASHED
from hubmerge.refs import ModelRef
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

if TYPE_CHECKING:
    from hubmerge.mergekit.merge import MergekitMerge
    from hubmerge.merging.lora_writer import LoraOutput

CONFIG_FILE = "mergekit_config.yml"  # beside the merge, as mergekit names it


@dataclass(frozen=True)
class MergeRequest:
    """The experts, method and parameters (as typed) of a merge, and where the result goes.

    A `config` of mergekit or a `lock` replaces the first three: `policy` names the pick of a lock,
    and with `locked` every name must still point to its pinned commit. With `pull_request`, the
    result is proposed to `push`; `export` is the file that gets the merge as a configuration of
    mergekit. `licence` replaces the one that follows from the experts' licences. `options` decide
    where experts and base differ. With `as_lora` the result is an adapter of that rank, or of a
    lower one that suffices; with `shard_size` files have at most so many bytes. For a `dry_run`
    local folders are not hashed. `threads` and `device` have no effect on the result.
    """

    experts: tuple[ModelRef, ...] = ()
    method: str = "ties"
    settings: Mapping[str, str] = field(default_factory=dict)
    base: ModelRef | None = None
    config: MergekitMerge | None = None
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
    as_lora: int | None = None
    shard_size: int | None = None
    export: Path | None = None
    dry_run: bool = False
    threads: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that was checked and can run; nothing has been written yet.

    `lock` is written next to the merge, as are the heads of `planned`. `notes` are sentences on
    differences between experts and on what has changed since they were pinned. `lora` is the
    adapter that is written instead of whole weights, if it was asked for, and `export` the merge as
    a configuration of mergekit, likewise.
    """

    request: MergeRequest
    planned: PlannedMerge
    manifest: Manifest
    folder: Path
    lock: bytes | None = None
    notes: tuple[str, ...] = ()
    lora: LoraOutput | None = None
    export: str | None = None

    @property
    def plan(self) -> MergePlan:
        return self.planned.plan

    @property
    def is_hashed(self) -> bool:
        """Whether the recipe, and the folder that is named after it, are known."""
        sources = (self.manifest.base, *self.manifest.experts)
        return all(source.sha != NOT_HASHED for source in sources)

    @property
    def existing(self) -> Manifest | None:
        """The manifest in the folder, if the folder has exactly this merge, complete; else None."""
        existing = read_finished(self.folder, self.manifest)
        return existing if existing and self._has_lock(existing) else None

    def _has_lock(self, existing: Manifest) -> bool:
        expected, copy = self.manifest.lock, self.folder / LOCK_FILE
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
