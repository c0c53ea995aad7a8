"""hubmerge retain --as-delta: store fully fine-tuned steps as deltas in another repository."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import yaml

from hubmerge.cards.licence import licence_metadata
from hubmerge.cards.markdown import escape_markdown
from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.step_names import list_refs
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.opening.delta import (
    DELTA_JSON,
    DeltaManifest,
    parse_delta,
    read_delta,
    restore_into,
    write_checkpoint,
)
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.publication import CARD, check_repository_kind, step_publication
from hubmerge.opening.references import (
    open_delta_base,
    open_pinned,
    pin_revision,
    pin_revisions,
    require_steps,
    source_of,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_tag
from hubmerge.weights import delta_file
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.delta_file import Rounding, measure_rounding, plan_delta, write_delta
from hubmerge.weights.dtypes import is_float


@dataclass(frozen=True)
class StoredDelta:
    """A step stored as a delta: its commit, bytes of weights before and after, and rounding."""

    label: str
    step: int
    commit: str
    before: int
    after: int
    rounding: Rounding


def store_as_deltas(
    hub: Hub,
    repo: str,
    to: str,
    steps: Collection[int],
    home: Path,
    progress: Progress,
    private: bool = False,
) -> list[StoredDelta]:
    """Publish steps of `repo` (all if `steps` is empty) in `to`, each as a verified delta.

    Before a delta is tagged, it is downloaded, restored and compared with the original. Raises
    UsageError if a step is not fully fine-tuned, or if its delta would not be smaller.
    """
    pinned = pin_revisions(hub, _find_steps(hub, repo, steps), progress)
    raise_together(UsageError, list(_find_problems(pinned, repo, to)))
    check_repository_kind(hub, to, "expert")
    published = [_find_published(hub, step, to) for step in pinned]
    models = {}
    for index, step in enumerate(pinned):
        progress(f"fetching {step.revision.label}", index, len(pinned))
        if published[index] is None:
            models[index] = open_pinned(hub, step)
    raise_together(
        UsageError,
        [_cannot_shrink_message(m) for m in models.values() if not _can_shrink(m.checkpoint)],
        "Keep it as it is: a delta in bfloat16 is half as large only for float32.",
    )
    ensure_repo(hub, to, private)
    home.mkdir(parents=True, exist_ok=True)
    stored = []
    for index, step in enumerate(pinned):
        progress(f"{step.revision.label} as a delta", index, len(pinned))
        stored.append(published[index] or _publish_delta(hub, models[index], to, home))
    return stored


def _find_steps(hub: Hub, repo: str, steps: Collection[int]) -> list[Revision]:
    revisions = [step for step in require_steps(hub, repo) if not steps or step.step in steps]
    missing = sorted(set(steps) - {step.step for step in revisions})
    if missing:
        raise UsageError(
            f"{repo} has no step {', '.join(map(str, missing))}.",
            f"`hubmerge steps {repo}` lists them.",
        )
    return revisions


def _find_problems(pinned: Sequence[PinnedModel], repo: str, to: str) -> Iterator[str]:
    if repo == to:
        yield f"{to} cannot hold a step both as a full checkpoint and as a delta."
    for step in pinned:
        label, manifest = step.revision.label, step.manifest
        if manifest and manifest.is_moe:
            yield f"{label} is a mixture of experts, whose experts are small adapters already."
        elif manifest is None or not manifest.is_expert or not manifest.validation:
            yield f"{label} has no manifest of `hubmerge train`, so its base is not known."
        elif manifest.layout == "peft":
            yield f"{label} is an adapter, which is small already."
        elif manifest.base.is_local:
            yield f"The base of {label} is a local folder, so nobody else could restore the delta."
        elif DELTA_JSON in manifest.files:
            yield f"{label} is a delta already."
        elif any("/" in name for name in manifest.files):
            yield f"{label} has modules in subfolders, which a delta cannot restore."


def _can_shrink(checkpoint: Checkpoint) -> bool:
    """Return whether bfloat16 would make any tensor smaller."""
    return any(
        is_float(tensor.dtype) and tensor.nbytes > 2 * prod(tensor.shape)
        for tensor in checkpoint.index.values()
    )


def _cannot_shrink_message(model: OpenedModel) -> str:
    dtypes = ", ".join(sorted({tensor.dtype for tensor in model.checkpoint.index.values()}))
    return f"{model.revision.label} is {dtypes}: as a delta it would take as many bytes."


def _publish_delta(hub: Hub, original: OpenedModel, to: str, home: Path) -> StoredDelta:
    assert original.manifest is not None  # checked in `_find_problems`
    label = f"{to}@{step_tag(original.manifest.step or 0)}"
    with tempfile.TemporaryDirectory(dir=home, prefix=".delta-") as scratch:
        folder, restored = Path(scratch) / "delta", Path(scratch) / "again"
        delta = _write_delta_folder(
            hub, original, original.manifest, Path(scratch) / "whole", folder
        )
        manifest = _finalize_delta(folder, original.manifest, delta, label)
        publication = step_publication(folder, manifest, to)
        commit = publish(
            hub, publication, lambda sha: _verify_published(hub, to, sha, original, restored)
        )
    return _make_result(label, original.revision, commit, delta)


def _find_published(hub: Hub, pinned: PinnedModel, to: str) -> StoredDelta | None:
    """Return the delta of the same commit that was published, and so verified, before."""
    tag = step_tag(pinned.revision.step or 0)
    try:
        commit = list_refs(hub, to).tags.get(tag)
    except NotOnHub:
        return None
    if commit is None:
        return None
    revision = Revision(ModelRef(to, revision=tag), commit)
    data = read_file(hub, revision, DELTA_JSON)
    delta = parse_delta(data, revision.label) if data else None
    if delta is None or delta.original.sha != pinned.revision.sha:
        return None
    return _make_result(revision.label, pinned.revision, commit, delta)


def _make_result(label: str, revision: Revision, commit: str, delta: DeltaManifest) -> StoredDelta:
    return StoredDelta(
        label,
        revision.step or 0,
        commit,
        delta_file.full_bytes(delta.pieces),
        delta_file.stored_bytes(delta.pieces),
        delta.rounding,
    )


def _write_delta_folder(
    hub: Hub, original: OpenedModel, manifest: Manifest, whole: Path, folder: Path
) -> DeltaManifest:
    """Write the delta into `folder`, restore it into `whole`, and describe the result."""
    expert = original.checkpoint
    draft = DeltaManifest(manifest.base, source_of(original), {}, (), Rounding(0.0, 0.0, True))
    base = open_delta_base(hub, draft, original.revision.label)
    if base.digest != manifest.base.digest:
        raise IntegrityError(
            f"{original.revision.label} was fine-tuned from other weights than those of "
            f"{base.revision.label} now."
        )
    pieces = plan_delta(base.checkpoint, expert)
    folder.mkdir()
    write_delta(base.checkpoint, expert, pieces, folder)
    index = next((n for n in manifest.files if n.endswith(".safetensors.index.json")), None)
    weights = {piece.file for piece in pieces} | {index}
    for name in manifest.files.keys() - weights:
        shutil.copyfile(original.folder / name, folder / name)
    draft = dataclasses.replace(draft, files=manifest.files, pieces=pieces, index=index)
    whole.mkdir()
    write_checkpoint(whole, folder, draft, base.checkpoint)
    return dataclasses.replace(
        draft,
        files={path.name: hash_file(path) for path in sorted(whole.iterdir())},
        rounding=measure_rounding(base.checkpoint, expert, open_checkpoint(whole)),
    )


def _finalize_delta(folder: Path, manifest: Manifest, delta: DeltaManifest, label: str) -> Manifest:
    """Write delta.json, then manifest and card."""
    (folder / DELTA_JSON).write_bytes(delta.to_bytes())
    complete = manifest.with_files({p.name: hash_file(p) for p in sorted(folder.iterdir())})
    (folder / MANIFEST_JSON).write_bytes(complete.to_bytes())
    (folder / CARD).write_text(_render_card(delta, label), encoding="utf-8")
    return complete


def _verify_published(hub: Hub, to: str, commit: str, original: OpenedModel, out: Path) -> None:
    """Restore the published delta and compare it with the original; raises IntegrityError."""
    pinned = pin_revision(hub, Revision(ModelRef(to, revision=commit), commit))
    label, folder = pinned.revision.label, fetch(hub, pinned.revision)
    delta, _ = read_delta(folder, pinned.manifest, label)
    base = open_delta_base(hub, delta, label)
    out.mkdir()
    restore_into(out, folder, delta, label, base)
    rounding = measure_rounding(base.checkpoint, original.checkpoint, open_checkpoint(out))
    if rounding != delta.rounding:
        raise IntegrityError(
            f"{label} does not restore to the values of {original.revision.label}: the largest "
            f"error is {rounding.absolute:.3g} instead of {delta.rounding.absolute:.3g}."
        )


def _render_card(delta: DeltaManifest, label: str) -> str:
    """Render a card for readers who expect weights and find a delta."""
    base, original = escape_markdown(delta.base.label), escape_markdown(delta.original.label)
    precision = (
        "Every value is restored exactly."
        if delta.rounding.exact
        else f"Restored values differ from the original by at most {delta.rounding.absolute:.3g}, "
        f"which is {delta.rounding.relative:.2%} of the largest change in their tensor."
    )
    data = {
        "base_model": delta.base.name,
        "base_model_relation": "finetune",
        "library_name": "hubmerge",
        "tags": ["hubmerge", "delta"],
        **licence_metadata(delta.original.licence),
    }
    front_matter = yaml.safe_dump(data, sort_keys=False)
    return (
        f"---\n{front_matter}---\n\n# {original}, as a delta to its base\n\n"
        "These are not weights to be loaded as they are: `delta.safetensors` holds, in bfloat16, "
        f"what fine-tuning changed in {base}. `hubmerge` restores the weights when it opens them:"
        f"\n\n```bash\nhubmerge eval {label}\n```\n\n"
        f"{precision} `delta.json` has the digests of base, original and restored files.\n"
    )
