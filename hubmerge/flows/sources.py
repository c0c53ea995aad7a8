"""A reference followed to the end: resolved, its manifest read, its files fetched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hubmerge
from hubmerge.errors import NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.resolve import list_steps, pin_dataset, resolve
from hubmerge.manifest import NAME, Manifest, Source, parse_manifest
from hubmerge.refs import ModelRef, Revision
from hubmerge.tasks.task import Task
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

_NAMED = ("torch", "numpy", "transformers", "open_clip_torch", "accelerate", "datasets")


@dataclass(frozen=True)
class Opened:
    """A model at hand: its pinned revision, its checkpoint, and its manifest if it has one."""

    revision: Revision
    checkpoint: Checkpoint
    manifest: Manifest | None

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder


@dataclass(frozen=True)
class Pinned:
    """A model by name, before its weights are fetched."""

    revision: Revision
    manifest: Manifest | None


def pin(hub: Hub, ref: ModelRef) -> Pinned:
    """Resolve a reference to a commit and read its manifest; no weights are fetched."""
    if ref.path is not None:
        return Pinned(_local(ref), read_local_manifest(ref.path))
    revision = resolve(hub, ref)
    data = read_file(hub, revision, NAME)
    manifest = parse_manifest(data, revision.label) if data is not None else None
    step = manifest.step if manifest and manifest.kind == "expert" else revision.step
    return Pinned(dataclasses.replace(revision, step=step), manifest)


def open_pinned(hub: Hub, pinned: Pinned) -> Opened:
    """Fetch what was pinned, check its bytes, and open it from its headers."""
    ref = pinned.revision.ref
    folder = ref.path if ref.path is not None else fetch(hub, pinned.revision)
    return Opened(pinned.revision, open_checkpoint(folder), pinned.manifest)


def open_ref(hub: Hub, ref: ModelRef) -> Opened:
    """Follow a reference to the end."""
    return open_pinned(hub, pin(hub, ref))


def source_of(opened: Opened, weight: float = 1.0, last: tuple[int, str] | None = None) -> Source:
    """An opened checkpoint as a manifest names it."""
    revision, manifest = opened.revision, opened.manifest
    digest = opened.checkpoint.digest()
    return Source(
        label=revision.label,
        sha=revision.sha or digest[:40],
        digest=digest,
        step=revision.step,
        task=(manifest.task or {}).get("name") if manifest else None,
        weight=weight,
        last_step=last[0] if last else None,
        last_sha=last[1] if last else None,
    )


def with_every_step(hub: Hub, ref: ModelRef) -> tuple[ModelRef, ...]:
    """The references of all step revisions of a repository; raises NotOnHub if it has none."""
    steps = list_steps(hub, str(ref.repo_id))
    if not steps:
        raise NotOnHub(
            f"{ref.repo_id} has no step revisions.", "Train it with --push-every, or name a commit."
        )
    return tuple(revision.ref for revision in steps)


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


def _local(ref: ModelRef) -> Revision:
    folder = Path(str(ref.path))
    manifest = read_local_manifest(folder) if folder.is_dir() else None
    step = manifest.step if manifest else None
    return Revision(ref, sha="", step=step, found="local")
