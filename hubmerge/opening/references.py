"""A reference followed to the end: resolved, its manifest read, its files fetched and checked."""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hubmerge
from hubmerge.cards.licence import card_licence
from hubmerge.errors import IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.resolve import list_steps, pin_dataset, resolve
from hubmerge.manifest import NAME, Manifest, Source, parse_manifest
from hubmerge.opening.delta import TOLD, Told, is_delta, read_delta, restored
from hubmerge.opening.integrity import check_sealed
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.refs import ModelRef, Revision
from hubmerge.tasks.task import Task
from hubmerge.weights.adapter_config import config_bytes
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import (
    CONFIG,
    MoeConfig,
    is_mixture,
    parse_moe_config,
    read_moe_config,
)

CARD = "README.md"
# Many times what a front matter may have.
_CARD_BYTES = 1 << 20

_NAMED = (
    "torch", "numpy", "ml_dtypes", "transformers", "open_clip_torch", "peft", "accelerate",
    "datasets",
)  # fmt: skip


def pin(hub: Hub, ref: ModelRef) -> Pinned:
    """Resolve a reference to a commit and read its manifest; no weights are fetched."""
    if ref.path is None:
        return pin_revision(hub, resolve(hub, ref))
    if not ref.path.is_dir():
        raise UsageError(f"There is no folder {ref.path}.", "A repository is written owner/name.")
    manifest = read_local_manifest(ref.path)
    step = manifest.step if manifest else None
    return Pinned(Revision(ref, sha="", step=step, found="local"), manifest)


def pin_revision(hub: Hub, revision: Revision) -> Pinned:
    """Read the manifest of a revision; what it says of its step counts more than its name."""
    data = read_file(hub, revision, NAME)
    if data is None:
        return Pinned(revision, None)
    manifest = parse_manifest(data, revision.label)
    step = revision.step if manifest.is_merge else manifest.step
    return Pinned(dataclasses.replace(revision, step=step), manifest)


def open_pinned(hub: Hub, pinned: Pinned) -> Opened:
    """Fetch what was pinned, check its bytes, and open it from its headers.

    What is stored as a delta is restored first: it opens as the whole checkpoint that it stands
    for. Raises IntegrityError if the weights are not those that its manifest vouches for.
    """
    ref = pinned.revision.ref
    folder = ref.path if ref.path is not None else fetch(hub, pinned.revision)
    if pinned.manifest:
        check_sealed(folder, pinned.manifest, pinned.revision.label)
    licence = _licence(hub, pinned, folder)
    if is_delta(folder):
        label = pinned.revision.label
        told, manifest = read_delta(folder, pinned.manifest, label)
        whole = restored(folder, told, label, lambda: open_delta_base(hub, told, label))
        return Opened(pinned.revision, open_checkpoint(whole), told.vouching(manifest), licence)
    return Opened(pinned.revision, open_checkpoint(folder), pinned.manifest, licence)


def open_delta_base(hub: Hub, told: Told, label: str) -> Opened:
    """The base that a delta is to; a delta to a delta is refused, as it might be to itself."""
    base = pin(hub, told.base_ref)
    if base.manifest and TOLD in base.manifest.files:
        raise IntegrityError(f"{label} is a delta to {told.base.label}, which is a delta itself.")
    return open_pinned(hub, base)


def _licence(hub: Hub, pinned: Pinned, folder: Path) -> str | None:
    """What the card names; an expert that was trained here and names none has its base's."""
    named = card_licence(_card(hub, pinned.revision, folder))
    manifest = pinned.manifest
    if named is None and manifest and manifest.is_expert:
        return manifest.base.licence
    return named


def _card(hub: Hub, revision: Revision, folder: Path) -> bytes:
    """The beginning of a card; that of a checkpoint-N folder stands at the repository's root."""
    if revision.ref.subfolder:
        root = dataclasses.replace(revision, ref=ModelRef(revision.ref.repo_id))
        try:
            return read_file(hub, root, CARD) or b""
        except IntegrityError:
            return b""  # what is no small file is no card
    if not (folder / CARD).is_file():
        return b""
    with (folder / CARD).open("rb") as file:
        return file.read(_CARD_BYTES)


def mixture_config(hub: Hub, pinned: Pinned) -> MoeConfig | None:
    """What a pinned mixture says of itself, before its weights are fetched; None for any other."""
    path = pinned.revision.ref.path
    if path is not None:
        return read_moe_config(path) if is_mixture(path) else None
    data = read_file(hub, pinned.revision, CONFIG)
    return parse_moe_config(data, f"{CONFIG} of {pinned.revision.label}") if data else None


def adapter_config(hub: Hub, pinned: Pinned) -> bytes | None:
    """The adapter_config.json of a pinned model, before its weights are fetched; None without."""
    path = pinned.revision.ref.path
    if path is None:
        return read_file(hub, pinned.revision, FILE)
    return config_bytes(path) if (path / FILE).exists() else None


def open_ref(hub: Hub, ref: ModelRef) -> Opened:
    """Follow a reference to the end."""
    return open_pinned(hub, pin(hub, ref))


def every_step(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """All step revisions of a repository; raises NotOnHub if it has none."""
    steps = list_steps(hub, repo_id)
    if not steps:
        raise NotOnHub(
            f"{repo_id} has no step revisions.", "Train it with --push-every, or name a commit."
        )
    return steps


def source_of(opened: Opened, weight: float = 1.0, last: Revision | None = None) -> Source:
    """An opened checkpoint as a manifest names it; `last` is its repository's last step."""
    revision, manifest = opened.revision, opened.manifest
    return Source(
        label=revision.label,
        sha=revision.sha or opened.digest,
        digest=opened.digest,
        step=revision.step,
        task=manifest.task if manifest else None,
        weight=weight,
        last_step=last.step if last else None,
        last_sha=last.sha if last else None,
        licence=opened.licence,
        folder=revision.ref.subfolder,
    )


def pin_task(hub: Hub, task: Task) -> Task:
    """The task with the revision of its Hub data set replaced by a commit; local data stay."""
    data = task.spec.data
    if data.id is None:
        return task
    pinned = data.model_copy(update={"revision": pin_dataset(hub, data.id, data.revision)})
    return dataclasses.replace(task, spec=task.spec.model_copy(update={"data": pinned}))


def read_local_manifest(folder: Path) -> Manifest | None:
    """The manifest of a local folder, None if it has none."""
    path = folder / NAME
    return parse_manifest(path.read_bytes(), str(folder)) if path.is_file() else None


def versions() -> dict[str, str]:
    """What is installed here that decides the bytes of a result."""
    found = {"hubmerge": hubmerge.__version__}
    for name in _NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
