"""hubmerge merge: experts by name -> one folder with its manifest and card, published if asked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.cards.card import Told, render_card
from hubmerge.errors import IntegrityError, UsageError, together
from hubmerge.flows.sources import (
    Opened,
    Pinned,
    open_pinned,
    pin,
    read_local_manifest,
    source_of,
    versions,
)
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, ensure_repo, manifest_digest, publish
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import NAME, Manifest, Source
from hubmerge.merging.engine import Expert, MergePlan, merge
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.weights.writer import hash_file

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MergeRequest:
    """What was asked for: experts, method, parameters as typed, and where the result goes."""

    experts: tuple[ModelRef, ...]
    method: str
    settings: Mapping[str, str]
    base: ModelRef | None = None
    out: Path | None = None
    push: ModelRef | None = None
    dtype: str | None = None
    replace: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to be possible: nothing has been written yet."""

    request: MergeRequest
    plan: MergePlan
    manifest: Manifest
    out: Path


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
    if len(request.experts) < 2 and not request.settings:
        raise UsageError("A merge needs at least two experts.", "Name them: owner/a@step64 ...")
    pinned = [pin(hub, ref) for ref in request.experts]
    base_ref = request.base or _common_base(pinned)
    base = open_pinned(hub, pin(hub, base_ref))
    _check_bases(pinned, base)
    opened = [open_pinned(hub, one) for one in pinned]
    experts = tuple(
        source_of(one, weight, _last_step(hub, one))
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
    manifest = _manifest(request, base, experts, {**params.model_dump(), **_dtype(request)})
    return Prepared(request, plan, manifest, request.out or merges / manifest.recipe[:12])


def merge_and_publish(hub: Hub, prepared: Prepared, progress: Progress) -> Merged:
    """Merge into the folder, unless just this merge lies there already, and push it if asked."""
    request, out = prepared.request, prepared.out
    if request.push is not None:
        ensure_repo(hub, str(request.push.repo_id))
    if not _is_there(prepared):
        merge(
            prepared.plan,
            out,
            replace=request.replace,
            progress=progress,
            finish=lambda folder: _describe(folder, prepared.manifest),
        )
    manifest = read_local_manifest(out)
    assert manifest is not None
    commit = publish(hub, publication(out, manifest, request.push)) if request.push else None
    return Merged(out, manifest, commit)


def publication(folder: Path, manifest: Manifest, to: ModelRef) -> Publication:
    """The folder of a merge or an expert as a revision of `to`, tagged if `to` names a revision."""
    data, card = (folder / NAME).read_bytes(), hash_file(folder / "README.md")
    what = manifest.recipe if manifest.kind == "merge" else str(manifest.run)
    return Publication(
        repo_id=str(to.repo_id),
        folder=folder,
        title=f"Merge by {manifest.method}"
        if manifest.kind == "merge"
        else f"Step {manifest.step}",
        trailer={"recipe": what, "manifest": manifest_digest(data), "card": card},
        tag=to.revision,
    )


def _weights(request: MergeRequest) -> tuple[list[float], dict[str, str]]:
    """`weight=1,0.5` is one weight per expert; everything else belongs to the method."""
    settings = dict(request.settings)
    said = settings.pop("weight", None)
    if said is None:
        return [1.0] * len(request.experts), settings
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


def _common_base(pinned: Sequence[Pinned]) -> ModelRef:
    """The base that every expert's manifest names; raises if they are silent or disagree."""
    silent = [one.revision.label for one in pinned if one.manifest is None]
    if silent:
        raise UsageError(
            f"{', '.join(silent)} does not say which base it was fine-tuned from.",
            "Name it with --base owner/name.",
        )
    bases = {one.manifest.base.digest: one.manifest.base for one in pinned if one.manifest}
    if len(bases) > 1:
        raise IntegrityError(
            "The experts were fine-tuned from different bases: "
            + ", ".join(
                f"{one.revision.label} from {one.manifest.base.label} "
                f"({one.manifest.base.sha[:12]})"
                for one in pinned
                if one.manifest
            ),
            "Only experts of one base can be merged.",
        )
    base = next(iter(bases.values()))
    named = parse_ref(base.name)
    if named.path is None:
        return ModelRef(repo_id=named.repo_id, revision=base.sha)
    if not named.path.is_dir():
        raise UsageError(
            f"The experts' base is the folder {base.name}, and it is not here.",
            "Name it with --base.",
        )
    return named


def _check_bases(pinned: Sequence[Pinned], base: Opened) -> None:
    digest = base.checkpoint.digest()
    problems = [
        f"{one.revision.label} was fine-tuned from {one.manifest.base.label} "
        f"({one.manifest.base.sha[:12]}), not from {base.revision.label}."
        for one in pinned
        if one.manifest and one.manifest.base.digest != digest
    ]
    together(IntegrityError, problems, "Only experts of one base can be merged.")


def _last_step(hub: Hub, opened: Opened) -> tuple[int, str] | None:
    if opened.revision.ref.is_local:
        return None
    steps = list_steps(hub, str(opened.revision.ref.repo_id))
    return (int(steps[-1].step or 0), steps[-1].sha) if steps else None


def _dtype(request: MergeRequest) -> dict[str, Any]:
    return {"dtype": request.dtype} if request.dtype else {}


def _manifest(
    request: MergeRequest, base: Opened, experts: tuple[Source, ...], params: Mapping[str, Any]
) -> Manifest:
    layout = next(
        (layout for layout in ("open_clip",) if (base.folder / f"{layout}_config.json").is_file()),
        "transformers",
    )
    # The base's label is its name and commit: "main" of a base means something else tomorrow.
    source = source_of(base)
    return Manifest(
        kind="merge",
        base=source,
        experts=experts,
        method=request.method,
        params=params,
        layout=layout,
        command=_command(request),
        versions=versions(),
    )


def _command(request: MergeRequest) -> str:
    words = ["hubmerge", "merge", *map(str, request.experts), "--method", request.method]
    for name, value in sorted(request.settings.items()):
        words += ["--set", f"{name}={value}"]
    if request.base:
        words += ["--base", str(request.base)]
    if request.dtype:
        words += ["--dtype", request.dtype]
    return shlex.join(words)


def _is_there(prepared: Prepared) -> bool:
    """Whether the folder holds just this merge, whole: then a rerun has nothing to do."""
    there = read_local_manifest(prepared.out) if prepared.out.is_dir() else None
    if there is None or there.recipe != prepared.manifest.recipe or there.kind != "merge":
        return False
    return all(
        (prepared.out / name).is_file() and hash_file(prepared.out / name) == digest
        for name, digest in there.files.items()
    )


def _describe(folder: Path, manifest: Manifest) -> None:
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    whole = manifest.with_files(files)
    (folder / NAME).write_bytes(whole.to_bytes())
    (folder / "README.md").write_text(render_card(Told(whole, ())), encoding="utf-8")
