"""hubmerge merge: experts by name -> one folder with its manifest and card, published if asked."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.flows.bases import common_base
from hubmerge.flows.combination import copy_heads, heads_of, kind_of_tasks, notes_on
from hubmerge.flows.publication import check_room, folder_publication, seal
from hubmerge.flows.sources import (
    Opened,
    Pinned,
    is_sealed,
    open_pinned,
    pin,
    read_local_manifest,
    source_of,
    versions,
)
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import Manifest, Source
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.plan import Expert, MergePlan, check
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision


@dataclass(frozen=True)
class MergeRequest:
    """What was asked for: experts, method, parameters as typed, and where the result goes."""

    experts: tuple[ModelRef, ...]
    method: str
    settings: Mapping[str, str]
    base: ModelRef | None = None
    out: Path | None = None
    push: ModelRef | None = None
    private: bool = False
    dtype: str | None = None
    replace: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to be possible: nothing has been written yet.

    `heads` are the experts' trained heads, which go with the merge; `notes` are sentences on what
    experts have not in common, though they can be merged.
    """

    request: MergeRequest
    plan: MergePlan
    manifest: Manifest
    folder: Path
    heads: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether just this merge lies in the folder already, whole."""
        try:
            there = read_local_manifest(self.folder)
        except IntegrityError:
            return False  # what is broken is not done
        same = there is not None and (there.kind, there.recipe) == ("merge", self.manifest.recipe)
        return there is not None and same and is_sealed(self.folder, there)


@dataclass(frozen=True)
class Merged:
    """Where the result lies, what it is, and its commit if it was pushed."""

    folder: Path
    manifest: Manifest
    commit: str | None = None


def prepare(hub: Hub, request: MergeRequest, merges: Path) -> Prepared:
    """Check and pin everything: method and parameters, then names and bases, and only then weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases) or CheckpointError.
    """
    method = find_method(request.method)
    weights, settings = _weights(request)
    params = parse_params(method, settings)
    pinned = [pin(hub, ref) for ref in request.experts]
    base = open_pinned(hub, pin(hub, request.base or common_base(hub, pinned)))
    _check_bases(pinned, base)
    opened = [open_pinned(hub, one) for one in pinned]
    experts = tuple(
        source_of(one, weight, _last_step(hub, one.revision))
        for one, weight in zip(opened, weights, strict=True)
    )
    plan = MergePlan(
        base=base.checkpoint,
        experts=tuple(
            Expert(one.checkpoint, source.sha, source.weight, source.label)
            for one, source in zip(opened, experts, strict=True)
        ),
        method=method,
        params=params,
        dtype=request.dtype,
        allow_nonfinite=request.allow_nonfinite,
    )
    notes = tuple(notes_on(opened))
    manifest = dataclasses.replace(
        _manifest(request, base, experts, params.model_dump()),
        task_kind=kind_of_tasks(opened),
        training={"notes": notes} if notes else {},
    )
    folder = request.out or merges / manifest.recipe[:12]
    prepared = Prepared(request, plan, manifest, folder, heads_of(opened), notes)
    check(plan)
    if not prepared.is_done:
        check_out(plan, prepared.folder, request.replace)
    if request.push is not None:
        check_room(hub, str(request.push.repo_id), "merge")
    return prepared


def merge_and_publish(hub: Hub, prepared: Prepared, progress: Progress) -> Merged:
    """Merge into the folder, unless just this merge lies there already, and push it if asked."""
    request, out = prepared.request, prepared.folder
    if request.push is not None:
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
    commit = publish(hub, folder_publication(out, manifest, request.push)) if request.push else None
    return Merged(out, manifest, commit)


def _finish(folder: Path, prepared: Prepared) -> None:
    copy_heads(prepared.heads, folder)
    seal(folder, prepared.manifest)


def _weights(request: MergeRequest) -> tuple[list[float], dict[str, str]]:
    """`weight=1,0.5` is one weight per expert; everything else belongs to the method."""
    settings = dict(request.settings)
    said = settings.pop("weight", "1")
    try:
        weights = [float(part) for part in said.split(",")]
    except ValueError:
        raise UsageError(f"weight={said} is not a list of numbers.") from None
    if len(weights) == 1:
        weights *= len(request.experts)
    if len(weights) != len(request.experts):
        raise UsageError(
            f"weight={said} gives {len(weights)} weights for {len(request.experts)} experts.",
            "Give one weight for all, or one per expert, in their order.",
        )
    return weights, settings


def _check_bases(pinned: Sequence[Pinned], base: Opened) -> None:
    problems = [
        f"{one.revision.label} was fine-tuned from {one.manifest.base.label} "
        f"({one.manifest.base.sha[:12]}), not from {base.revision.label}."
        for one in pinned
        if one.manifest and one.manifest.base.digest != base.digest
    ]
    raise_together(IntegrityError, problems, "Only experts of one base can be merged.")


def _last_step(hub: Hub, revision: Revision) -> Revision | None:
    if revision.ref.repo_id is None:
        return None
    steps = list_steps(hub, revision.ref.repo_id)
    return steps[-1] if steps else None


def _manifest(
    request: MergeRequest, base: Opened, experts: tuple[Source, ...], params: Mapping[str, Any]
) -> Manifest:
    open_clip = (base.folder / "open_clip_config.json").is_file()
    return Manifest(
        kind="merge",
        base=source_of(base),
        experts=experts,
        method=request.method,
        params={**params, **({"dtype": request.dtype} if request.dtype else {})},
        layout="open_clip" if open_clip else "transformers",
        command=_command(request, experts),
        versions=versions(),
    )


def _command(request: MergeRequest, experts: Sequence[Source]) -> str:
    """The command that repeats the merge, by labels that do not move."""
    words = ["hubmerge", "merge", *(expert.label for expert in experts)]
    words += ["--method", request.method]
    for name, value in sorted(request.settings.items()):
        words += ["--set", f"{name}={value}"]
    if request.base:
        words += ["--base", str(request.base)]
    if request.dtype:
        words += ["--dtype", request.dtype]
    if request.allow_nonfinite:
        words.append("--allow-nonfinite")
    return shlex.join(words)
