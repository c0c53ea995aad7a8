"""hubmerge extract: the LoRA of a whole expert, in a folder with manifest and card.

It is a merge of this one expert that is written as an adapter. The folder is published on request.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubmerge.errors import IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.kinds import EXPERT
from hubmerge.manifest import Manifest
from hubmerge.merging.lora_writer import LoraOutput, check_lora_out, merge_to_lora
from hubmerge.opening.expert_heads import common_task_kind, write_heads
from hubmerge.opening.finished_folder import read_finished
from hubmerge.opening.lora_outputs import check_lora_options, plan_lora, with_shares
from hubmerge.opening.merge_experts import open_merge_inputs
from hubmerge.opening.merge_inputs import MergeInputs, check_licences
from hubmerge.opening.planned_merge import PlannedMerge, plan_merge
from hubmerge.opening.publication import check_repository_kind, finalize_folder, folder_publication
from hubmerge.opening.references import (
    NOT_HASHED,
    base_layout,
    fetch_adapter_config,
    pin,
    read_local_manifest,
    versions,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.kept_shares import KeptShares
from hubmerge.weights.match_options import MatchOptions

KEEP_HEADS = MatchOptions(heads="keep")


@dataclass(frozen=True)
class ExtractRequest:
    """The expert and the rank of its adapter, and where the result goes.

    `options` decide where expert and base differ; by default heads of tasks are kept beside the
    adapter. For a `dry_run` local folders are not hashed.
    """

    expert: ModelRef
    rank: int
    base: ModelRef | None = None
    out: Path | None = None
    push: ModelRef | None = None
    private: bool = False
    dtype: str | None = None
    replace: bool = False
    licence: str | None = None
    options: MatchOptions = KEEP_HEADS
    dry_run: bool = False


@dataclass(frozen=True)
class PreparedExtraction:
    """An extraction that was checked and can run; nothing has been written yet."""

    request: ExtractRequest
    planned: PlannedMerge
    lora: LoraOutput
    manifest: Manifest
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def is_hashed(self) -> bool:
        """Whether the recipe, and the folder that is named after it, are known."""
        return NOT_HASHED not in (self.manifest.base.sha, self.manifest.experts[0].sha)


@dataclass(frozen=True)
class ExtractedAdapter:
    """The folder and manifest of an adapter, and its commit if it was pushed."""

    folder: Path
    manifest: Manifest
    commit: str | None = None


def prepare_extraction(hub: Hub, request: ExtractRequest, extracted: Path) -> PreparedExtraction:
    """Check and pin everything; `extracted` is the parent of the folder if none is named.

    Raises UsageError, NotOnHub, IntegrityError or CheckpointError.
    """
    check_lora_options(request.rank, "--rank", request.options, request.dtype)
    if request.dtype:
        request = replace(request, dtype=float_dtype_name(request.dtype))
    _check_is_whole(hub, request)
    inputs = open_merge_inputs(
        hub, (request.expert,), "average", {}, request.base, hashed=not request.dry_run
    )
    check_licences((inputs.base, *inputs.experts), request.licence)
    planned = plan_merge(inputs, request.options)
    lora, lora_notes = plan_lora(planned.plan, inputs.base, request.rank, request.dtype)
    notes = (*planned.notes(inputs), *lora_notes)
    manifest = _make_manifest(request, inputs, lora, notes)
    folder = request.out or extracted / manifest.recipe[:12]
    if read_finished(folder, manifest) is None:
        check_lora_out(planned.plan, lora, folder, request.replace)
    if request.push is not None:
        _check_push(hub, str(request.push.repo_id))
    return PreparedExtraction(request, planned, lora, manifest, folder, (*inputs.notes, *notes))


def extract_and_publish(
    hub: Hub, prepared: PreparedExtraction, progress: Progress
) -> ExtractedAdapter:
    """Extract into the folder, unless it already has this adapter; push the result."""
    request, out = prepared.request, prepared.folder
    if request.push is not None:
        ensure_repo(hub, str(request.push.repo_id), request.private)
    if read_finished(out, prepared.manifest) is None:

        def finish(folder: Path, shares: KeptShares) -> None:
            write_heads(prepared.planned.heads, folder)
            finalize_folder(folder, with_shares(prepared.manifest, shares))

        merge_to_lora(prepared.planned.plan, prepared.lora, out, finish, request.replace, progress)
    manifest = read_local_manifest(out)
    assert manifest is not None  # written above
    if request.push is None:
        return ExtractedAdapter(out, manifest)
    commit = publish(hub, folder_publication(out, manifest, request.push))
    return ExtractedAdapter(out, manifest, commit)


def _check_is_whole(hub: Hub, request: ExtractRequest) -> None:
    pinned = pin(hub, request.expert)
    if fetch_adapter_config(hub, pinned) is not None:
        label, rank = pinned.revision.label, request.rank
        raise UsageError(
            f"{label} is an adapter already.",
            f"`hubmerge merge {label} --method average --as-lora {rank}` gives it another rank.",
        )


def _check_push(hub: Hub, repo_id: str) -> None:
    check_repository_kind(hub, repo_id, EXPERT)
    try:
        manifest = pin(hub, ModelRef(repo_id)).manifest
    except NotOnHub:
        return
    if manifest is not None and manifest.run is not None:
        raise IntegrityError(
            f"{repo_id} holds a trained expert on main, which would be replaced by its adapter.",
            "Choose another repository.",
        )


def _make_manifest(
    request: ExtractRequest, inputs: MergeInputs, lora: LoraOutput, notes: tuple[str, ...]
) -> Manifest:
    [source] = inputs.sources
    return Manifest(
        kind=EXPERT,
        base=inputs.base_source,
        experts=inputs.sources,
        params={
            "rank": request.rank,
            **({"dtype": request.dtype} if request.dtype else {}),
            **request.options.chosen,
        },
        task=source.task,
        task_kind=common_task_kind(inputs.experts),
        step=source.step,
        last_step=source.last_step,
        training=dict(_training(inputs, lora, notes)),
        licence=request.licence,
        layout="peft",
        command=_format_command(request, inputs),
        versions=versions(),
    )


def _training(
    inputs: MergeInputs, lora: LoraOutput, notes: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    yield "tune", "lora"
    yield "rank", lora.rank
    if notes:
        yield "notes", notes
    if (layout := base_layout(inputs.base)) == "open_clip":
        yield "base_layout", layout
    trained = inputs.experts[0].manifest
    if trained is not None and "anneal" in trained.training:
        yield "anneal", trained.training["anneal"]


def _format_command(request: ExtractRequest, inputs: MergeInputs) -> str:
    """Return the command that repeats the extraction, from the pinned label."""
    words = ["hubmerge", "extract", inputs.sources[0].label, "--rank", str(request.rank)]
    if request.base:
        words += ["--base", str(request.base)]
    if request.dtype:
        words += ["--dtype", request.dtype]
    for name, value in request.options.chosen.items():
        if getattr(KEEP_HEADS, name) != value:
            words += [f"--{name}", value]
    if request.licence:
        words += ["--license", request.licence]
    return shlex.join(words)
