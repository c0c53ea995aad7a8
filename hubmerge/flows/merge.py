"""hubmerge merge: merge experts, named or from a lock, into a folder with manifest and card.

The folder is published on request.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.durable import write_atomic
from hubmerge.errors import Failures, UsageError
from hubmerge.flows.prepared_merge import CONFIG_FILE, MergeRequest, MergeResult, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.kinds import MERGE
from hubmerge.manifest import LOCK_FILE, Manifest
from hubmerge.merging.device import check_device, runs_on_device
from hubmerge.merging.settings import record_params
from hubmerge.opening.expert_heads import common_task_kind
from hubmerge.opening.merge_experts import open_merge_inputs
from hubmerge.opening.merge_inputs import MergeInputs, check_licences
from hubmerge.opening.planned_merge import PlannedMerge, plan_merge
from hubmerge.opening.references import base_layout, left_out_files
from hubmerge.opening.stacked_inputs import record_layers
from hubmerge.progress import Progress, no_progress
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.header import summarize_names

if TYPE_CHECKING:
    from hubmerge.merging.estimate import MergeEstimate
    from hubmerge.merging.lora_writer import LoraOutput
    from hubmerge.merging.plan import MergePlan

AS_LORA = "--as-lora"


def prepare_merge(
    hub: Hub, request: MergeRequest, merges: Path, progress: Progress = no_progress
) -> PreparedMerge:
    """Check and pin everything: method and parameters, then names and bases, and last weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases, a lock that does not
    match) or CheckpointError.
    """
    _check_lora_options(request)
    if request.device is not None:
        check_device(request.device)
    if request.dtype:
        request = replace(request, dtype=float_dtype_name(request.dtype))
    if request.config is not None:
        from hubmerge.opening.mergekit_inputs import open_mergekit_merge

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
            progress=progress,
        )
    else:
        from hubmerge.opening.locked_experts import open_locked_merge

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
    _check_lora_options(request)
    planned = plan_merge(
        inputs, request.options, request.dtype, request.allow_nonfinite, request.shard_size
    )
    lora, lora_notes = _plan_lora(request, inputs, planned)
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
        notes=(*inputs.notes, *notes, *_device_notes(request, planned.plan)),
        lora=lora,
        export=_export(request, planned.plan, inputs),
    )
    if prepared.existing is None or request.push is not None:
        # A merge that is there needs no engine, no card and no client of the Hub: to import these
        # takes longer than to find it.
        from hubmerge.flows.merge_result import check_result

        check_result(hub, prepared)
    return prepared


def _device_notes(request: MergeRequest, plan: MergePlan) -> Iterator[str]:
    """What is computed on the CPU although a device was named."""
    if request.device is None:
        return
    if request.as_lora is not None:
        yield f"{AS_LORA} is computed on the CPU: --device {request.device} has no effect."
    elif not runs_on_device(plan.method, plan.params):
        yield (
            f"{plan.method.name} with these parameters is computed on the CPU: "
            f"--device {request.device} has no effect."
        )


def _check_lora_options(request: MergeRequest) -> None:
    """Raise UsageError for everything that an adapter cannot be, if an adapter was asked for."""
    if request.as_lora is not None:
        from hubmerge.opening.lora_outputs import check_lora_options

        check_lora_options(request.as_lora, AS_LORA, request.options, request.dtype)


def _export(request: MergeRequest, plan: MergePlan, inputs: MergeInputs) -> str | None:
    """The merge as a configuration of mergekit, if that is to be written."""
    if request.export is None:
        return None
    from hubmerge.mergekit.export import export_config
    from hubmerge.opening.mergekit_names import mergekit_names

    if any(source.averaged for source in inputs.sources):
        raise UsageError(
            "mergekit cannot average steps of one expert before it merges them.",
            "Leave --export out, or name another pick of the lock with --policy.",
        )
    if request.export.exists() and not request.replace:
        raise UsageError(f"{request.export} exists.", "Give --replace, or another name.")
    return export_config(plan, *mergekit_names(inputs))


def _plan_lora(
    request: MergeRequest, inputs: MergeInputs, planned: PlannedMerge
) -> tuple[LoraOutput | None, tuple[str, ...]]:
    """The adapter that the merge is written as, with notes, if one was asked for."""
    if request.as_lora is None:
        return None, ()
    if planned.plan.config is not None:
        raise UsageError(
            f"{AS_LORA}: layers are taken from several places, and an adapter cannot do that.",
            f"Leave {AS_LORA} out.",
        )
    from hubmerge.opening.lora_outputs import plan_lora

    return plan_lora(planned.plan, inputs.base, request.as_lora, request.dtype)


def estimate_merge(prepared: PreparedMerge) -> MergeEstimate | None:
    """What the merge will take; None if it is there already, or is written as an adapter."""
    if prepared.lora is not None or prepared.existing is not None:
        return None
    from hubmerge.merging.estimate import estimate

    return estimate(prepared.plan, prepared.request.threads)


def merge_and_publish(hub: Hub, prepared: PreparedMerge, progress: Progress) -> MergeResult:
    """Merge into the folder, unless it already has this merge; push or propose the result."""
    if prepared.request.export is not None and prepared.export is not None:
        write_atomic(prepared.request.export, prepared.export.encode(), mode=0o644)
    existing = prepared.existing
    if existing is not None and prepared.request.push is None:
        return MergeResult(prepared.folder, existing)
    from hubmerge.flows.merge_result import write_and_push

    return write_and_push(hub, prepared, existing, progress)


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
            **record_layers(inputs.layers, inputs.sources)[0],
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
    )


def _format_command(request: MergeRequest, inputs: MergeInputs) -> str:
    """Return the command that repeats the merge, from pinned labels or the lock next to it."""
    words = ["hubmerge", "merge"]
    if inputs.lock is not None:
        words += ["--lock", LOCK_FILE]
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
    if request.shard_size:
        words += ["--shard-size", f"{request.shard_size}B"]
    if request.as_lora is not None:
        words += [AS_LORA, str(request.as_lora)]
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
