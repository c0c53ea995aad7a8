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
from hubmerge.durable import hash_file, write_atomic
from hubmerge.errors import IntegrityError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.pull_request import check_can_open_pull_request, open_pull_request
from hubmerge.kinds import MERGE
from hubmerge.manifest import Manifest
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.mergekit_export import export_config
from hubmerge.merging.mergekit_merge import MergekitMerge
from hubmerge.merging.plan import Expert, MergePlan, check_plan
from hubmerge.merging.settings import for_tensors, record_params
from hubmerge.opening.expert_heads import (
    common_task_kind,
    expert_notes,
    find_heads,
    find_kept_heads,
    write_heads,
)
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.locked_experts import open_locked_merge
from hubmerge.opening.matched_inputs import MatchedInputs, match_inputs
from hubmerge.opening.merge_experts import open_merge_inputs
from hubmerge.opening.merge_inputs import MergeInputs, check_licences
from hubmerge.opening.mergekit_inputs import open_mergekit_merge
from hubmerge.opening.mergekit_names import mergekit_names
from hubmerge.opening.publication import check_repository_kind, finalize_folder, folder_publication
from hubmerge.opening.references import (
    NOT_HASHED,
    left_out_files,
    read_local_manifest,
    versions,
)
from hubmerge.opening.stacked_inputs import record_layers, stack_inputs
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.kept_heads import KeptHead
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

CONFIG_FILE = "mergekit_config.yml"


@dataclass(frozen=True)
class MergeRequest:
    """The experts, method and parameters (as typed) of a merge, and where the result goes.

    A `config` of mergekit or a `lock` replaces the first three: `policy` names the pick of a lock,
    and with `locked` every name must still point to its pinned commit. With `pull_request`, the
    result is proposed to `push`. `licence` replaces the one that follows from the experts'
    licences. `options` decide where experts and base differ. The configuration for mergekit is
    written to `export`. For a `dry_run` local folders are not hashed. `threads` has no effect on
    the result.
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
    export: Path | None = None
    dry_run: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that was checked and can run; nothing has been written yet.

    `heads` are the experts' trained heads; they and `lock` are written next to the merge. `notes`
    are sentences on differences between experts and on what has changed since they were pinned.
    `export` is the merge as a configuration of mergekit, if that is to be written.
    """

    request: MergeRequest
    plan: MergePlan
    manifest: Manifest
    folder: Path
    heads: Mapping[str, Path | KeptHead] = field(default_factory=dict)
    lock: bytes | None = None
    notes: tuple[str, ...] = ()
    export: str | None = None

    @property
    def is_hashed(self) -> bool:
        """Whether the recipe, and the folder that is named after it, are known."""
        sources = (self.manifest.base, *self.manifest.experts)
        return all(source.sha != NOT_HASHED for source in sources)

    @property
    def is_done(self) -> bool:
        """Whether the folder already has exactly this merge, complete."""
        try:
            existing = read_local_manifest(self.folder)
        except IntegrityError:
            return False
        if existing is None or not existing.is_merge:
            return False
        expected = self.manifest.recipe, self.manifest.licence
        is_same = (existing.recipe, existing.licence) == expected
        return is_same and matches_manifest(self.folder, existing) and self._has_lock(existing)

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
    if request.dtype:
        request = replace(request, dtype=float_dtype_name(request.dtype))
    if request.config is not None:
        inputs = open_mergekit_merge(hub, request.config, hashed=not request.dry_run)
        options = replace(request.options, vocabulary=request.config.vocabulary)
        request = replace(request, dtype=request.config.dtype, options=options)
    elif request.lock is None:
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
    check_licences((inputs.base, *inputs.experts), request.licence)
    return prepare_inputs(hub, request, inputs, merges)


def prepare_inputs(
    hub: Hub, request: MergeRequest, inputs: MergeInputs, merges: Path
) -> PreparedMerge:
    """Check that the opened models can be merged, and that the result can be written and pushed."""
    matched = match_inputs(inputs, request.options)
    stacked = stack_inputs(matched, inputs)
    plan = MergePlan(
        base=stacked.base,
        experts=tuple(
            Expert(expert, s.key, s.weight, s.label, keep=s.keep, intruders=s.intruders)
            for expert, s in zip(stacked.experts, stacked.sources, strict=True)
        ),
        method=inputs.method,
        params=inputs.params,
        dtype=request.dtype,
        allow_nonfinite=request.allow_nonfinite,
        separate_head=matched.separated is not None,
        options=request.options,
        vocabulary_size=matched.tokens.size,
        tokenizer_files=matched.tokens.files,
        settings=for_tensors(inputs.settings, stacked.base.index),
        config=stacked.config,
    )
    check_plan(plan)
    heads = _find_all_heads(inputs, plan)
    notes = tuple(_merge_notes(hub, inputs, plan, matched, heads))
    manifest = _make_manifest(request, inputs, notes)
    # Several locks may have the same pick: each lock gets its own folder.
    names = [digest[:12] for digest in (manifest.recipe, manifest.lock) if digest]
    prepared = PreparedMerge(
        request,
        plan,
        manifest,
        folder=request.out or merges / "-".join(names),
        heads=heads,
        lock=inputs.lock,
        notes=(*inputs.notes, *notes),
        export=_export(request, plan, inputs) if request.export else None,
    )
    if not prepared.is_done:
        check_out(plan, prepared.folder, request.replace)
    if request.push is not None:
        _check_push(hub, request)
    return prepared


def _export(request: MergeRequest, plan: MergePlan, inputs: MergeInputs) -> str:
    if request.export and request.export.exists() and not request.replace:
        raise UsageError(f"{request.export} exists.", "Give --replace, or another name.")
    return export_config(plan, *mergekit_names(inputs))


def _find_all_heads(inputs: MergeInputs, plan: MergePlan) -> dict[str, Path | KeptHead]:
    """The heads beside the merge: those of trained experts, and those that are not merged."""
    heads: dict[str, Path | KeptHead] = {**find_heads(inputs.experts)}
    if plan.options.heads == "keep":
        if plan.config is not None:
            raise UsageError(
                "--heads keep needs whole models, and here layers are merged.", "Give --heads drop."
            )
        kept = find_kept_heads(inputs.experts, plan.vectors)
        if twice := sorted(heads.keys() & kept.keys()):
            raise UsageError(f"Two experts would have the head {twice[0]}.", "Rename a folder.")
        heads |= kept
    return heads


def _check_push(hub: Hub, request: MergeRequest) -> None:
    repo_id = str(request.push.repo_id) if request.push else ""
    if request.pull_request:
        check_can_open_pull_request(hub, repo_id)
    check_repository_kind(hub, repo_id, "merge")


def merge_and_publish(hub: Hub, prepared: PreparedMerge, progress: Progress) -> MergeResult:
    """Merge into the folder, unless it already has this merge; push or propose the result."""
    request, out = prepared.request, prepared.folder
    if request.export is not None and prepared.export is not None:
        write_atomic(request.export, prepared.export.encode(), mode=0o644)
    if request.push is not None and not request.pull_request:
        ensure_repo(hub, str(request.push.repo_id), request.private)
    if not prepared.is_done:
        merge(
            prepared.plan,
            out,
            replace=request.replace,
            progress=progress,
            threads=request.threads,
            finish=lambda folder: _finish(folder, prepared),
        )
    manifest = read_local_manifest(out)
    assert manifest is not None  # written above
    if request.push is None:
        return MergeResult(out, manifest)
    publication = folder_publication(out, manifest, request.push)
    if request.pull_request:
        proposal = open_pull_request(hub, publication)
        return MergeResult(out, manifest, proposal.commit, proposal.url)
    return MergeResult(out, manifest, publish(hub, publication))


def _finish(folder: Path, prepared: PreparedMerge) -> None:
    write_heads(prepared.heads, folder)
    finalize_folder(folder, prepared.manifest, prepared.lock)
    if prepared.request.config is not None:  # as mergekit does; the manifest does not list it
        (folder / CONFIG_FILE).write_bytes(prepared.request.config.text)


def _merge_notes(
    hub: Hub,
    inputs: MergeInputs,
    plan: MergePlan,
    matched: MatchedInputs,
    heads: Mapping[str, Path | KeptHead],
) -> Iterator[str]:
    """Notes for the plan and the card."""
    yield from expert_notes(inputs.experts)
    for expert, vector in zip(plan.experts, plan.vectors, strict=True):
        if vector.adapter is None:
            yield from vector.full.notes(expert.name)
        elif vector.adapter.head:
            names = summarize_names(vector.adapter.head)
            yield f"{expert.name} has a head of its own, {names}: it is not merged."
    if kept := [name for name, head in heads.items() if isinstance(head, KeptHead)]:
        yield f"Beside the merge: {', '.join(map(safe_name, kept))}."
    yield from matched.notes()
    if left_out := left_out_files(hub, inputs.base):
        yield f"Left out of {inputs.base.revision.label}: {summarize_names(left_out, 'file')}."


def _make_manifest(request: MergeRequest, inputs: MergeInputs, notes: tuple[str, ...]) -> Manifest:
    open_clip = (inputs.base.folder / "open_clip_config.json").is_file()
    return Manifest(
        kind=MERGE,
        base=inputs.base_source,
        experts=inputs.sources,
        method=inputs.method.name,
        params={
            **record_params(inputs.params, inputs.settings),
            **record_layers(inputs.layers, inputs.sources)[0],
            **({"dtype": request.dtype} if request.dtype else {}),
            **request.options.chosen,
        },
        task_kind=common_task_kind(inputs.experts),
        training={"notes": notes} if notes else {},
        licence=request.licence,
        lock=hashlib.sha256(inputs.lock).hexdigest() if inputs.lock is not None else None,
        layout="open_clip" if open_clip else "transformers",
        command=_format_command(request, inputs),
        versions=versions(),
    )


def _format_command(request: MergeRequest, inputs: MergeInputs) -> str:
    """Return the command that repeats the merge, from pinned labels or the lock next to it."""
    words = ["hubmerge", "merge"]
    if inputs.lock is not None:
        words += ["--lock", lock.LOCK_FILE]
        words += ["--policy", request.policy] if request.policy else []
    elif request.config is not None:
        words += ["--config", CONFIG_FILE]
    else:
        words += [*(source.label for source in inputs.sources), "--method", request.method]
        for name, value in request.options.chosen.items():
            words += [f"--{name}", value]
    for name, value in sorted(request.settings.items()):
        words += ["--set", f"{name}={value}"]
    if request.base:
        words += ["--base", inputs.base_source.name if inputs.lock else str(request.base)]
    if request.dtype and request.config is None:
        words += ["--dtype", request.dtype]
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
