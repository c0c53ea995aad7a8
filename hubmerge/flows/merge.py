"""hubmerge merge: merge experts, named or from a lock, into a folder with manifest and card.

The folder is published on request.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hubmerge import lock
from hubmerge.errors import UsageError
from hubmerge.flows.prepared_merge import MergeRequest, MergeResult, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.kinds import MERGE
from hubmerge.manifest import Manifest
from hubmerge.merging.plan import Expert, MergePlan, check_plan
from hubmerge.opening.expert_heads import (
    common_task_kind,
    expert_notes,
    find_heads,
    find_kept_heads,
)
from hubmerge.opening.matched_inputs import MatchedInputs, match_inputs
from hubmerge.opening.merge_experts import open_merge_inputs
from hubmerge.opening.merge_inputs import MergeInputs, check_licences
from hubmerge.opening.references import left_out_files
from hubmerge.progress import Progress, no_progress
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.kept_heads import KeptHead


def prepare_merge(
    hub: Hub, request: MergeRequest, merges: Path, progress: Progress = no_progress
) -> PreparedMerge:
    """Check and pin everything: method and parameters, then names and bases, and last weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases, a lock that does not
    match) or CheckpointError.
    """
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
            progress=progress,
        )
    else:
        from hubmerge.opening.locked_experts import open_locked_merge

        inputs = open_locked_merge(hub, request.lock, request.policy, request.locked, request.base)
        request = replace(request, options=inputs.options)
    check_licences((inputs.base, *inputs.experts), request.licence)
    return prepare_inputs(hub, request, inputs, merges)


def prepare_inputs(
    hub: Hub, request: MergeRequest, inputs: MergeInputs, merges: Path
) -> PreparedMerge:
    """Check that the opened models can be merged, and that the result can be written and pushed."""
    matched = match_inputs(inputs, request.options)
    plan = MergePlan(
        base=matched.base,
        experts=tuple(
            Expert(expert, s.key, s.weight, s.label, keep=s.keep, intruders=s.intruders)
            for expert, s in zip(matched.experts, inputs.sources, strict=True)
        ),
        method=inputs.method,
        params=inputs.params,
        dtype=request.dtype,
        allow_nonfinite=request.allow_nonfinite,
        separate_head=matched.separated is not None,
        options=request.options,
        vocabulary_size=matched.tokens.size,
        tokenizer_files=matched.tokens.files,
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
    )
    if prepared.existing is None or request.push is not None:
        # A merge that is there needs no engine, no card and no client of the Hub: to import these
        # takes longer than to find it.
        from hubmerge.flows.merge_result import check_result

        check_result(hub, prepared)
    return prepared


def _find_all_heads(inputs: MergeInputs, plan: MergePlan) -> dict[str, Path | KeptHead]:
    """The heads beside the merge: those of trained experts, and those that are not merged."""
    heads: dict[str, Path | KeptHead] = {**find_heads(inputs.experts)}
    if plan.options.heads == "keep":
        kept = find_kept_heads(inputs.experts, plan.vectors)
        if twice := sorted(heads.keys() & kept.keys()):
            raise UsageError(f"Two experts would have the head {twice[0]}.", "Rename a folder.")
        heads |= kept
    return heads


def merge_and_publish(hub: Hub, prepared: PreparedMerge, progress: Progress) -> MergeResult:
    """Merge into the folder, unless it already has this merge; push or propose the result."""
    existing = prepared.existing
    if existing is not None and prepared.request.push is None:
        return MergeResult(prepared.folder, existing)
    from hubmerge.flows.merge_result import write_and_push

    return write_and_push(hub, prepared, existing, progress)


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
            **inputs.params.model_dump(),
            **({"dtype": request.dtype} if request.dtype else {}),
            **request.options.chosen,
        },
        task_kind=common_task_kind(inputs.experts),
        training={"notes": notes} if notes else {},
        licence=request.licence,
        lock=hashlib.sha256(inputs.lock).hexdigest() if inputs.lock is not None else None,
        layout="open_clip" if open_clip else "transformers",
        command=_format_command(request, inputs),
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
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
