"""hubmerge merge: merge experts, named or from a lock, into a folder with manifest and card.

The folder is published on request.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hubmerge import lock
from hubmerge.durable import hash_file
from hubmerge.errors import Failures
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.pull_request import check_can_open_pull_request, open_pull_request
from hubmerge.kinds import MERGE
from hubmerge.manifest import Manifest
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.estimate import MergeEstimate, estimate
from hubmerge.merging.lora_writer import LoraOutput, check_lora_out, merge_to_lora
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.settings import record_params
from hubmerge.opening.expert_heads import common_task_kind, write_heads
from hubmerge.opening.finished_folder import read_finished
from hubmerge.opening.locked_experts import open_locked_merge
from hubmerge.opening.lora_outputs import check_lora_options, plan_lora, with_shares
from hubmerge.opening.merge_experts import open_merge_inputs
from hubmerge.opening.merge_inputs import MergeInputs, check_licences
from hubmerge.opening.planned_merge import PlannedMerge, plan_merge
from hubmerge.opening.publication import check_repository_kind, finalize_folder, folder_publication
from hubmerge.opening.references import (
    NOT_HASHED,
    base_layout,
    left_out_files,
    read_local_manifest,
    versions,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.header import summarize_names
from hubmerge.weights.kept_shares import KeptShares
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

AS_LORA = "--as-lora"


@dataclass(frozen=True)
class MergeRequest:
    """The experts, method and parameters (as typed) of a merge, and where the result goes.

    A `lock` replaces the first three: `policy` names the pick to merge, and with `locked` every
    name must still point to its pinned commit. With `pull_request`, the result is proposed to
    `push`. `licence` replaces the one that follows from the experts' licences. `options` decide
    where experts and base differ. With `as_lora` the result is an adapter of that rank, or of a
    lower one that suffices; with `shard_size` files have at most so many bytes. For a `dry_run`
    local folders are not hashed. `threads` has no effect on the result.
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
    as_lora: int | None = None
    shard_size: int | None = None
    dry_run: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that was checked and can run; nothing has been written yet.

    `lock` is written next to the merge, as are the heads of `planned`. `notes` are sentences on
    differences between experts and on what has changed since they were pinned. `lora` is the
    adapter that is written instead of whole weights, if it was asked for.
    """

    request: MergeRequest
    planned: PlannedMerge
    manifest: Manifest
    folder: Path
    lock: bytes | None = None
    notes: tuple[str, ...] = ()
    lora: LoraOutput | None = None

    @property
    def plan(self) -> MergePlan:
        return self.planned.plan

    @property
    def is_hashed(self) -> bool:
        """Whether the recipe, and the folder that is named after it, are known."""
        sources = (self.manifest.base, *self.manifest.experts)
        return all(source.sha != NOT_HASHED for source in sources)

    @property
    def is_done(self) -> bool:
        """Whether the folder already has exactly this merge, complete."""
        existing = read_finished(self.folder, self.manifest)
        return existing is not None and self._has_lock(existing)

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


def prepare_merge(hub: Hub, request: MergeRequest, merges: Path) -> PreparedMerge:
    """Check and pin everything: method and parameters, then names and bases, and last weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases, a lock that does not
    match) or CheckpointError.
    """
    if request.as_lora is not None:
        check_lora_options(request.as_lora, AS_LORA, request.options, request.dtype)
    if request.dtype:
        request = replace(request, dtype=float_dtype_name(request.dtype))
    if request.lock is None:
        inputs = open_merge_inputs(
            hub,
            request.experts,
            request.method,
            request.settings,
            request.base,
            hashed=not request.dry_run,
        )
    else:
        inputs = open_locked_merge(hub, request.lock, request.policy, request.locked, request.base)
        request = replace(request, options=inputs.options)
    failures = Failures(inputs.failures)
    failures.run(lambda: check_licences((inputs.base, *inputs.experts), request.licence))
    inputs = replace(inputs, failures=tuple(failures.errors))
    return prepare_inputs(hub, request, inputs, merges)


def prepare_inputs(
    hub: Hub, request: MergeRequest, inputs: MergeInputs, merges: Path
) -> PreparedMerge:
    """Check that the opened models can be merged, and that the result can be written and pushed."""
    if request.as_lora is not None:
        check_lora_options(request.as_lora, AS_LORA, request.options, request.dtype)
    planned = plan_merge(
        inputs, request.options, request.dtype, request.allow_nonfinite, request.shard_size
    )
    lora, lora_notes = None, tuple[str, ...]()
    if request.as_lora is not None:
        lora, lora_notes = plan_lora(planned.plan, inputs.base, request.as_lora, request.dtype)
    notes = (*_merge_notes(hub, inputs, planned, lora is not None), *lora_notes)
    manifest = _make_manifest(request, inputs, notes)
    # Several locks may have the same pick: each lock gets its own folder.
    names = [digest[:12] for digest in (manifest.recipe, manifest.lock) if digest]
    prepared = PreparedMerge(
        request,
        planned,
        manifest,
        folder=request.out or merges / "-".join(names),
        lock=inputs.lock,
        notes=(*inputs.notes, *notes),
        lora=lora,
    )
    if prepared.is_done:
        pass
    elif lora is not None:
        check_lora_out(planned.plan, lora, prepared.folder, request.replace)
    else:
        check_out(planned.plan, prepared.folder, request.replace)
    if request.push is not None:
        _check_push(hub, request)
    return prepared


def _check_push(hub: Hub, request: MergeRequest) -> None:
    repo_id = str(request.push.repo_id) if request.push else ""
    if request.pull_request:
        check_can_open_pull_request(hub, repo_id)
    check_repository_kind(hub, repo_id, "merge")


def estimate_merge(prepared: PreparedMerge) -> MergeEstimate | None:
    """What the merge will take; None if it is there already, or is written as an adapter."""
    if prepared.lora is not None or prepared.is_done:
        return None
    return estimate(prepared.plan, prepared.request.threads)


def merge_and_publish(hub: Hub, prepared: PreparedMerge, progress: Progress) -> MergeResult:
    """Merge into the folder, unless it already has this merge; push or propose the result."""
    request, out = prepared.request, prepared.folder
    if request.push is not None and not request.pull_request:
        ensure_repo(hub, str(request.push.repo_id), request.private)
    if not prepared.is_done:
        _write(prepared, progress)
    manifest = read_local_manifest(out)
    assert manifest is not None  # written above
    if request.push is None:
        return MergeResult(out, manifest)
    publication = folder_publication(out, manifest, request.push)
    if request.pull_request:
        proposal = open_pull_request(hub, publication)
        return MergeResult(out, manifest, proposal.commit, proposal.url)
    return MergeResult(out, manifest, publish(hub, publication))


def _write(prepared: PreparedMerge, progress: Progress) -> None:
    """Write the merge to its folder, with heads, manifest, lock and card."""
    request, plan, lora = prepared.request, prepared.plan, prepared.lora

    def finish(folder: Path, shares: KeptShares | None = None) -> None:
        write_heads(prepared.planned.heads, folder)
        finalize_folder(folder, with_shares(prepared.manifest, shares), prepared.lock)

    if lora is not None:
        merge_to_lora(plan, lora, prepared.folder, finish, request.replace, progress)
    else:
        merge(
            plan,
            prepared.folder,
            replace=request.replace,
            progress=progress,
            threads=request.threads,
            finish=finish,
        )


def _merge_notes(
    hub: Hub, inputs: MergeInputs, planned: PlannedMerge, is_adapter: bool
) -> Iterator[str]:
    """Notes for the plan and the card."""
    yield from planned.notes(inputs)
    if is_adapter:
        return  # it has the base's head and tokens, and no copy of its files
    yield from planned.matched.notes()
    if left_out := left_out_files(hub, inputs.base):
        yield f"Left out of {inputs.base.revision.label}: {summarize_names(left_out, 'file')}."


def _make_manifest(request: MergeRequest, inputs: MergeInputs, notes: tuple[str, ...]) -> Manifest:
    layout = base_layout(inputs.base)
    is_adapter = request.as_lora is not None
    return Manifest(
        kind=MERGE,
        base=inputs.base_source,
        experts=inputs.sources,
        method=inputs.method.name,
        params={
            **record_params(inputs.params, inputs.settings),
            **({"dtype": request.dtype} if request.dtype else {}),
            **({"as_lora": request.as_lora} if is_adapter else {}),
            **({"shard_size": request.shard_size} if request.shard_size else {}),
            **request.options.chosen,
        },
        task_kind=common_task_kind(inputs.experts),
        training={
            **({"notes": notes} if notes else {}),
            **({"base_layout": layout} if is_adapter and layout == "open_clip" else {}),
        },
        licence=request.licence,
        lock=hashlib.sha256(inputs.lock).hexdigest() if inputs.lock is not None else None,
        layout="peft" if is_adapter else layout,
        command=_format_command(request, inputs),
        versions=versions(),
    )


def _format_command(request: MergeRequest, inputs: MergeInputs) -> str:
    """Return the command that repeats the merge, from pinned labels or the lock next to it."""
    words = ["hubmerge", "merge"]
    if inputs.lock is not None:
        words += ["--lock", lock.LOCK_FILE]
        words += ["--policy", request.policy] if request.policy else []
    else:
        words += [*(source.label for source in inputs.sources), "--method", request.method]
        for name, value in request.options.chosen.items():
            words += [f"--{name}", value]
    for name, value in sorted(request.settings.items()):
        words += ["--set", f"{name}={value}"]
    if request.base:
        words += ["--base", inputs.base_source.name if inputs.lock else str(request.base)]
    if request.dtype:
        words += ["--dtype", request.dtype]
    if request.shard_size:
        words += ["--shard-size", f"{request.shard_size}B"]
    if request.as_lora is not None:
        words += [AS_LORA, str(request.as_lora)]
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
