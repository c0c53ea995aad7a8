"""hubmerge merge: experts by name, or a lock -> one folder with its manifest and card.

Published if asked.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hubmerge import lock
from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.pull_request import check_proposable, propose
from hubmerge.kinds import MERGE
from hubmerge.manifest import Manifest
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.plan import Expert, MergePlan, check
from hubmerge.opening.expert_heads import copy_heads, heads_of, kind_of_tasks, notes_on
from hubmerge.opening.integrity import is_sealed
from hubmerge.opening.locked_experts import open_lock
from hubmerge.opening.merge_experts import open_named
from hubmerge.opening.merge_inputs import Inputs, check_licences
from hubmerge.opening.publication import check_room, folder_publication, seal
from hubmerge.opening.references import read_local_manifest, versions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef


@dataclass(frozen=True)
class MergeRequest:
    """What was asked for: experts, method, parameters as typed, and where the result goes.

    Or a lock, which says the first three: `policy` is whose pick is merged, and with `locked` no
    name may mean another commit than when it was pinned. With `pull_request`, the result is
    proposed to `push`. `licence` is stated where it shall not follow from the experts'.
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


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to be possible: nothing has been written yet.

    `heads` are the experts' trained heads, which go with the merge, as does `lock`; `notes` are
    sentences on what experts have not in common, though they can be merged, and on what has changed
    since they were pinned.
    """

    request: MergeRequest
    plan: MergePlan
    manifest: Manifest
    folder: Path
    heads: Mapping[str, Path] = field(default_factory=dict)
    lock: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether just this merge lies in the folder already, whole."""
        try:
            there = read_local_manifest(self.folder)
        except IntegrityError:
            return False  # what is broken is not done
        if there is None or not there.is_merge:
            return False
        wanted = self.manifest.recipe, self.manifest.licence
        same = (there.recipe, there.licence) == wanted
        return same and is_sealed(self.folder, there) and self._has_lock(there)

    def _has_lock(self, there: Manifest) -> bool:
        wanted, copy = self.manifest.lock, self.folder / lock.NAME
        if wanted is None:
            return True
        return there.lock == wanted and copy.is_file() and hash_file(copy) == wanted


@dataclass(frozen=True)
class Merged:
    """Where the result lies, what it is, and if it was pushed its commit, or its pull request."""

    folder: Path
    manifest: Manifest
    commit: str | None = None
    pull_request: str | None = None


def prepare(hub: Hub, request: MergeRequest, merges: Path) -> Prepared:
    """Check and pin everything: method and parameters, then names and bases, and only then weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases, a lock that does not
    hold) or CheckpointError.
    """
    if request.lock is None:
        inputs = open_named(hub, request.experts, request.method, request.settings, request.base)
    else:
        inputs = open_lock(hub, request.lock, request.policy, request.locked, request.base)
    check_licences((inputs.base, *inputs.experts), request.licence)
    return prepare_inputs(hub, request, inputs, merges)


def prepare_inputs(hub: Hub, request: MergeRequest, inputs: Inputs, merges: Path) -> Prepared:
    """Check that what was opened can be merged, and put where it shall go."""
    plan = MergePlan(
        base=inputs.base.checkpoint,
        experts=tuple(
            Expert(one.checkpoint, s.key, s.weight, s.label, keep=s.keep, intruders=s.intruders)
            for one, s in zip(inputs.experts, inputs.sources, strict=True)
        ),
        method=inputs.method,
        params=inputs.params,
        dtype=request.dtype,
        allow_nonfinite=request.allow_nonfinite,
    )
    manifest = _manifest(request, inputs)
    # Other locks may pick the same: each has a folder of its own.
    names = [digest[:12] for digest in (manifest.recipe, manifest.lock) if digest]
    prepared = Prepared(
        request,
        plan,
        manifest,
        folder=request.out or merges / "-".join(names),
        heads=heads_of(inputs.experts),
        lock=inputs.lock,
        notes=(*inputs.notes, *notes_on(inputs.experts)),
    )
    check(plan)
    if not prepared.is_done:
        check_out(plan, prepared.folder, request.replace)
    if request.push is not None:
        _check_push(hub, request)
    return prepared


def _check_push(hub: Hub, request: MergeRequest) -> None:
    repo_id = str(request.push.repo_id) if request.push else ""
    if request.pull_request:
        check_proposable(hub, repo_id)
    check_room(hub, repo_id, "merge")


def merge_and_publish(hub: Hub, prepared: Prepared, progress: Progress) -> Merged:
    """Merge into the folder, unless just this merge lies there already; push or propose it."""
    request, out = prepared.request, prepared.folder
    if request.push is not None and not request.pull_request:
        ensure_repo(hub, str(request.push.repo_id), request.private)
    if not prepared.is_done:
        merge(
            prepared.plan,
            out,
            replace=request.replace,
            progress=progress,
            finish=lambda folder: _finish(folder, prepared),
        )
    manifest = read_local_manifest(out)
    assert manifest is not None  # sealed above
    if request.push is None:
        return Merged(out, manifest)
    publication = folder_publication(out, manifest, request.push)
    if request.pull_request:
        proposal = propose(hub, publication)
        return Merged(out, manifest, proposal.commit, proposal.url)
    return Merged(out, manifest, publish(hub, publication))


def _finish(folder: Path, prepared: Prepared) -> None:
    copy_heads(prepared.heads, folder)
    seal(folder, prepared.manifest, prepared.lock)


def _manifest(request: MergeRequest, inputs: Inputs) -> Manifest:
    open_clip = (inputs.base.folder / "open_clip_config.json").is_file()
    notes = tuple(notes_on(inputs.experts))
    return Manifest(
        kind=MERGE,
        base=inputs.base_source,
        experts=inputs.sources,
        method=inputs.method.name,
        params={
            **inputs.params.model_dump(),
            **({"dtype": request.dtype} if request.dtype else {}),
        },
        task_kind=kind_of_tasks(inputs.experts),
        training={"notes": notes} if notes else {},
        licence=request.licence,
        lock=hashlib.sha256(inputs.lock).hexdigest() if inputs.lock is not None else None,
        layout="open_clip" if open_clip else "transformers",
        command=_command(request, inputs),
        versions=versions(),
    )


def _command(request: MergeRequest, inputs: Inputs) -> str:
    """The command that repeats the merge, by labels that do not move or by the lock beside it."""
    words = ["hubmerge", "merge"]
    if inputs.lock is not None:
        words += ["--lock", lock.NAME]
        words += ["--policy", request.policy] if request.policy else []
    else:
        words += [*(source.label for source in inputs.sources), "--method", request.method]
    for name, value in sorted(request.settings.items()):
        words += ["--set", f"{name}={value}"]
    if request.base:
        words += ["--base", inputs.base_source.name if inputs.lock else str(request.base)]
    if request.dtype:
        words += ["--dtype", request.dtype]
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
