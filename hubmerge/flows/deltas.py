"""hubmerge retain --as-delta: steps of full fine-tuning as deltas to their base, elsewhere."""

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
from hubmerge.cards.markdown import plain
from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.step_names import list_refs
from hubmerge.manifest import NAME, Manifest
from hubmerge.opening.delta import (
    TOLD,
    Told,
    parse_told,
    read_delta,
    restore_into,
    write_whole_checkpoint,
)
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.publication import CARD, check_room, step_publication
from hubmerge.opening.references import (
    every_step,
    open_delta_base,
    open_pinned,
    pin_revision,
    source_of,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_tag
from hubmerge.weights import delta_file
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.delta_file import Rounding, rounding, survey, write_delta
from hubmerge.weights.dtypes import is_float


@dataclass(frozen=True)
class Stored:
    """A step as a delta: the commit it has, bytes of its weights before and after, its rounding."""

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
) -> list[Stored]:
    """Publish steps of `repo` (all without `steps`) in `to`, each as a verified delta.

    Each is restored from what was published and compared with the original before its tag stands.
    Raises UsageError for what is no full fine-tuned step, and where nothing would be saved.
    """
    pinned = [pin_revision(hub, revision) for revision in _wanted(hub, repo, steps)]
    raise_together(UsageError, list(_problems(pinned, repo, to)))
    check_room(hub, to, "expert")
    standing = [_standing(hub, one, to) for one in pinned]
    opened = {}
    for place, one in enumerate(pinned):
        progress(f"fetching {one.revision.label}", place, len(pinned))
        if standing[place] is None:
            opened[place] = open_pinned(hub, one)
    raise_together(
        UsageError,
        [_too_narrow(one) for one in opened.values() if not _halves(one.checkpoint)],
        "Keep it as it is: a delta in bfloat16 halves float32.",
    )
    ensure_repo(hub, to, private)
    home.mkdir(parents=True, exist_ok=True)
    done = []
    for place, one in enumerate(pinned):
        progress(f"{one.revision.label} as a delta", place, len(pinned))
        done.append(standing[place] or _store(hub, opened[place], to, home))
    return done


def _wanted(hub: Hub, repo: str, steps: Collection[int]) -> list[Revision]:
    found = [one for one in every_step(hub, repo) if not steps or one.step in steps]
    absent = sorted(set(steps) - {one.step for one in found})
    if absent:
        raise UsageError(
            f"{repo} has no step {', '.join(map(str, absent))}.",
            f"`hubmerge steps {repo}` lists them.",
        )
    return found


def _problems(pinned: Sequence[Pinned], repo: str, to: str) -> Iterator[str]:
    if repo == to:
        yield f"{to} cannot hold a step both whole and as a delta."
    for one in pinned:
        label, manifest = one.revision.label, one.manifest
        if manifest and manifest.is_moe:
            yield f"{label} is a mixture, whose experts are small adapters already."
        elif manifest is None or not manifest.is_expert or not manifest.validation:
            yield f"{label} has no manifest of `hubmerge train`, which names its base."
        elif manifest.layout == "peft":
            yield f"{label} is an adapter, which is small already."
        elif manifest.base.is_local:
            yield f"The base of {label} is a folder, and nobody else could restore it."
        elif TOLD in manifest.files:
            yield f"{label} is a delta already."


def _halves(checkpoint: Checkpoint) -> bool:
    """Whether there is a tensor that bfloat16 would make smaller."""
    return any(
        is_float(tensor.dtype) and tensor.nbytes > 2 * prod(tensor.shape)
        for tensor in checkpoint.index.values()
    )


def _too_narrow(model: Opened) -> str:
    dtypes = ", ".join(sorted({tensor.dtype for tensor in model.checkpoint.index.values()}))
    return f"{model.revision.label} is {dtypes}: as a delta it would take as many bytes."


def _store(hub: Hub, original: Opened, to: str, home: Path) -> Stored:
    assert original.manifest is not None  # asked for in `_problems`
    label = f"{to}@{step_tag(original.manifest.step or 0)}"
    with tempfile.TemporaryDirectory(dir=home, prefix=".delta-") as scratch:
        folder, again = Path(scratch) / "delta", Path(scratch) / "again"
        told = _pack(hub, original, original.manifest, Path(scratch) / "whole", folder)
        manifest = _seal(folder, original.manifest, told, label)
        publication = step_publication(folder, manifest, to)
        commit = publish(hub, publication, lambda sha: _verify(hub, to, sha, original, again))
    return _stored(label, original.revision, commit, told)


def _standing(hub: Hub, pinned: Pinned, to: str) -> Stored | None:
    """The delta of this very step that was published, and so verified, before."""
    tag = step_tag(pinned.revision.step or 0)
    try:
        commit = list_refs(hub, to).tags.get(tag)
    except NotOnHub:
        return None
    if commit is None:
        return None
    revision = Revision(ModelRef(to, revision=tag), commit)
    data = read_file(hub, revision, TOLD)
    told = parse_told(data, revision.label) if data else None
    if told is None or told.original.sha != pinned.revision.sha:
        return None
    return _stored(revision.label, pinned.revision, commit, told)


def _stored(label: str, revision: Revision, commit: str, told: Told) -> Stored:
    return Stored(
        label,
        revision.step or 0,
        commit,
        delta_file.full_bytes(told.pieces),
        delta_file.stored_bytes(told.pieces),
        told.rounding,
    )


def _pack(hub: Hub, original: Opened, manifest: Manifest, whole: Path, folder: Path) -> Told:
    """Write the delta into its folder, restore it once here, and tell what comes of it."""
    expert = original.checkpoint
    draft = Told(manifest.base, source_of(original), {}, (), Rounding(0.0, 0.0, True))
    base = open_delta_base(hub, draft, original.revision.label)
    if base.digest != manifest.base.digest:
        raise IntegrityError(
            f"{original.revision.label} was fine-tuned from other weights than "
            f"{base.revision.label} holds now."
        )
    pieces = survey(base.checkpoint, expert)
    folder.mkdir()
    write_delta(base.checkpoint, expert, pieces, folder)
    index = next((n for n in manifest.files if n.endswith(".safetensors.index.json")), None)
    weights = {piece.file for piece in pieces} | {index}
    for name in manifest.files.keys() - weights:
        shutil.copyfile(original.folder / name, folder / name)
    draft = dataclasses.replace(draft, files=manifest.files, pieces=pieces, index=index)
    whole.mkdir()
    write_whole_checkpoint(whole, folder, draft, base.checkpoint)
    return dataclasses.replace(
        draft,
        files={path.name: hash_file(path) for path in sorted(whole.iterdir())},
        rounding=rounding(base.checkpoint, expert, open_checkpoint(whole)),
    )


def _seal(folder: Path, manifest: Manifest, told: Told, label: str) -> Manifest:
    """Add what tells of the delta: delta.json, then manifest and card."""
    (folder / TOLD).write_bytes(told.to_bytes())
    whole = manifest.with_files({p.name: hash_file(p) for p in sorted(folder.iterdir())})
    (folder / NAME).write_bytes(whole.to_bytes())
    (folder / CARD).write_text(_card(told, label), encoding="utf-8")
    return whole


def _verify(hub: Hub, to: str, commit: str, original: Opened, out: Path) -> None:
    """Restore what was published, and compare it with the original; raises IntegrityError."""
    pinned = pin_revision(hub, Revision(ModelRef(to, revision=commit), commit))
    label, folder = pinned.revision.label, fetch(hub, pinned.revision)
    told, _ = read_delta(folder, pinned.manifest, label)
    base = open_delta_base(hub, told, label)
    out.mkdir()
    restore_into(out, folder, told, label, base)
    found = rounding(base.checkpoint, original.checkpoint, open_checkpoint(out))
    if found != told.rounding:
        raise IntegrityError(
            f"{label} restores to other values than {original.revision.label} has: off by "
            f"{found.absolute:.3g}, not by {told.rounding.absolute:.3g}."
        )


def _card(told: Told, label: str) -> str:
    """What a stranger should know who finds a delta where weights were expected."""
    base, original = plain(told.base.label), plain(told.original.label)
    off = (
        "Every value comes back bit by bit."
        if told.rounding.exact
        else f"Restored values differ from the original by at most {told.rounding.absolute:.3g}, "
        f"which is {told.rounding.relative:.2%} of the largest change in their tensor."
    )
    data = {
        "base_model": told.base.name,
        "base_model_relation": "finetune",
        "library_name": "hubmerge",
        "tags": ["hubmerge", "delta"],
        **licence_metadata(told.original.licence),
    }
    front = yaml.safe_dump(data, sort_keys=False)
    return (
        f"---\n{front}---\n\n# {original}, as a delta to its base\n\n"
        "These are not weights to be loaded as they are: `delta.safetensors` holds, in bfloat16, "
        f"what fine-tuning changed in {base}. Whatever `hubmerge` opens, it restores first:\n\n"
        f"```bash\nhubmerge eval {label}\n```\n\n"
        f"{off} `delta.json` has the digests of base and original, and of the restored files.\n"
    )
