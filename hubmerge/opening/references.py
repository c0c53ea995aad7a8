"""Resolve a reference, read its manifest, fetch its files and check them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import hubmerge
from hubmerge import model_files
from hubmerge.cards.licence import card_licence
from hubmerge.errors import IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, list_files, read_file
from hubmerge.hub.resolve import list_steps, pin_dataset, resolve
from hubmerge.hub.revision_files import read_at_revisions
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.opening.delta import DELTA_JSON, DeltaManifest, is_delta, read_delta, restore_to_cache
from hubmerge.opening.integrity import check_manifest
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision
from hubmerge.source import Source
from hubmerge.weights.adapter_config import read_config_bytes
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.layout import SHARD_INDEX_SUFFIX
from hubmerge.weights.moe_config import (
    MOE_CONFIG,
    MoeConfig,
    is_moe_folder,
    parse_moe_config,
    read_moe_config,
)
from hubmerge.weights.side_files import other_files

if TYPE_CHECKING:
    from hubmerge.tasks.task import Task

CARD = "README.md"
NOT_HASHED = "not-hashed"
# Many times the largest front matter.
_CARD_BYTES = 1 << 20

_PACKAGES = (
    "torch", "numpy", "ml_dtypes", "transformers", "open_clip_torch", "peft", "accelerate",
    "datasets", "lm_eval",
)  # fmt: skip


def pin(hub: Hub, ref: ModelRef) -> PinnedModel:
    """Resolve a reference to a commit and read its manifest, without fetching weights."""
    if ref.path is None:
        return pin_revision(hub, resolve(hub, ref))
    if not ref.path.is_dir():
        raise UsageError(f"There is no folder {ref.path}.", "A repository is written owner/name.")
    manifest = read_local_manifest(ref.path)
    step = manifest.step if manifest else None
    return PinnedModel(Revision(ref, sha="", step=step, origin="local"), manifest)


def pin_revision(hub: Hub, revision: Revision) -> PinnedModel:
    """Read the manifest of a revision; the step in it overrides the step in the name."""
    return _with_manifest(revision, read_file(hub, revision, MANIFEST_JSON))


def pin_revisions(hub: Hub, revisions: Sequence[Revision], progress: Progress) -> list[PinnedModel]:
    """Read the manifests of many revisions, as `pin_revision` does; known ones are not read."""
    manifests = read_at_revisions(hub, revisions, MANIFEST_JSON, progress)
    return [_with_manifest(*item) for item in zip(revisions, manifests, strict=True)]


def _with_manifest(revision: Revision, data: bytes | None) -> PinnedModel:
    if data is None:
        return PinnedModel(revision, None)
    manifest = parse_manifest(data, revision.label)
    step = revision.step if manifest.is_merge else manifest.step
    return PinnedModel(dataclasses.replace(revision, step=step), manifest)


def open_pinned(hub: Hub, pinned: PinnedModel) -> OpenedModel:
    """Fetch a pinned model, compare its files with its manifest, and open it.

    A delta is restored first, and opened as the restored checkpoint. Raises IntegrityError if the
    files do not match the manifest.
    """
    ref = pinned.revision.ref
    folder = ref.path if ref.path is not None else fetch(hub, pinned.revision)
    if pinned.manifest:
        check_manifest(folder, pinned.manifest, pinned.revision.label)
    licence = _licence(hub, pinned, folder)
    if is_delta(folder):
        label = pinned.revision.label
        delta, manifest = read_delta(folder, pinned.manifest, label)
        folder = restore_to_cache(folder, delta, label, lambda: open_delta_base(hub, delta, label))
        manifest = delta.restored_manifest(manifest)
        return OpenedModel(pinned.revision, open_checkpoint(folder), manifest, licence)
    return OpenedModel(pinned.revision, open_checkpoint(folder), pinned.manifest, licence)


def base_layout(base: OpenedModel) -> str:
    """The library whose layout a full model has: open_clip or transformers."""
    is_open_clip = (base.folder / "open_clip_config.json").is_file()
    return "open_clip" if is_open_clip else "transformers"


def left_out_files(hub: Hub, model: OpenedModel) -> tuple[str, ...]:
    """The files of a model's folder that a merge of it does not get, by path, sorted.

    They are other formats of the weights, code, and what training left; those of the card and
    hidden files are not listed, and a model that hubmerge made has none.
    """
    if model.manifest is not None:
        return ()
    ref = model.revision.ref
    if ref.path is not None:
        names = other_files(model.folder)
    else:
        prefix = f"{ref.subfolder}/" if ref.subfolder else ""
        listed = list_files(hub, model.revision)
        names = model_files.other_files(
            path.removeprefix(prefix) for path in listed if path.startswith(prefix)
        )
    weights = model.checkpoint.weight_file_names()
    return tuple(
        name for name in names if name not in weights and not name.endswith(SHARD_INDEX_SUFFIX)
    )


def open_delta_base(hub: Hub, delta: DeltaManifest, label: str) -> OpenedModel:
    """Open the base of a delta; raises IntegrityError if that is a delta too."""
    base = pin(hub, delta.base_ref)
    if base.manifest and DELTA_JSON in base.manifest.files:
        raise IntegrityError(f"{label} is a delta to {delta.base.label}, which is a delta itself.")
    return open_pinned(hub, base)


def _licence(hub: Hub, pinned: PinnedModel, folder: Path) -> str | None:
    """The licence on the card; an expert without one has the licence of its base."""
    licence = card_licence(_read_card(hub, pinned.revision, folder))
    manifest = pinned.manifest
    if licence is None and manifest and manifest.is_expert:
        return manifest.base.licence
    return licence


def _read_card(hub: Hub, revision: Revision, folder: Path) -> bytes:
    """The beginning of a card; the one of a checkpoint-N folder is at the repository's root."""
    if revision.ref.subfolder:
        return _hub_card(hub, revision)
    if not (folder / CARD).is_file():
        return b""
    with (folder / CARD).open("rb") as file:
        return file.read(_CARD_BYTES)


def _hub_card(hub: Hub, revision: Revision) -> bytes:
    """The card at the root of a repository."""
    root = dataclasses.replace(revision, ref=ModelRef(revision.ref.repo_id))
    try:
        return (read_file(hub, root, CARD) or b"")[:_CARD_BYTES]
    except IntegrityError:
        return b""  # too large for a card


def fetch_card(hub: Hub, pinned: PinnedModel) -> bytes:
    """Read the beginning of the card of a pinned model; empty without one."""
    path = pinned.revision.ref.path
    return _read_card(hub, pinned.revision, path) if path else _hub_card(hub, pinned.revision)


def fetch_moe_config(hub: Hub, pinned: PinnedModel) -> MoeConfig | None:
    """Read the configuration of a pinned mixture of experts; None for any other model."""
    path = pinned.revision.ref.path
    if path is not None:
        return read_moe_config(path) if is_moe_folder(path) else None
    data = read_file(hub, pinned.revision, MOE_CONFIG)
    return parse_moe_config(data, f"{MOE_CONFIG} of {pinned.revision.label}") if data else None


def fetch_adapter_config(hub: Hub, pinned: PinnedModel) -> bytes | None:
    """Read the adapter_config.json of a pinned model; None without one."""
    path = pinned.revision.ref.path
    if path is None:
        return read_file(hub, pinned.revision, ADAPTER_CONFIG)
    return read_config_bytes(path) if (path / ADAPTER_CONFIG).exists() else None


def open_ref(hub: Hub, ref: ModelRef) -> OpenedModel:
    """Resolve a reference, fetch its files and open it."""
    return open_pinned(hub, pin(hub, ref))


def require_steps(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """All step revisions of a repository; raises NotOnHub if it has none."""
    steps = list_steps(hub, repo_id)
    if not steps:
        raise NotOnHub(
            f"{repo_id} has no step revisions.", "Train it with --push-every, or name a commit."
        )
    return steps


def source_of(
    model: OpenedModel, weight: float = 1.0, last: Revision | None = None, hashed: bool = True
) -> Source:
    """An opened model as an entry of a manifest; `last` is the last step of its repository.

    Without `hashed` the bytes of a model without a manifest are not read, and its digest is
    NOT_HASHED.
    """
    revision, manifest = model.revision, model.manifest
    is_known = hashed or manifest is not None
    digest = model.digest if is_known else NOT_HASHED
    return Source(
        label=revision.label,
        sha=revision.sha or digest,
        digest=digest,
        step=revision.step,
        task=manifest.task if manifest else None,
        weight=weight,
        last_step=last.step if last else None,
        last_sha=last.sha if last else None,
        licence=model.licence,
        folder=revision.ref.subfolder,
        weights=model.weights_digest if is_known else None,
    )


def pin_task(hub: Hub, task: Task) -> Task:
    """The task with the revision of its Hub data set replaced by a commit."""
    data = task.spec.data
    if data.id is None:
        return task
    pinned = data.model_copy(update={"revision": pin_dataset(hub, data.id, data.revision)})
    return dataclasses.replace(task, spec=task.spec.model_copy(update={"data": pinned}))


def read_local_manifest(folder: Path) -> Manifest | None:
    """The manifest of a local folder, None if it has none."""
    path = folder / MANIFEST_JSON
    return parse_manifest(path.read_bytes(), str(folder)) if path.is_file() else None


def versions() -> dict[str, str]:
    """The versions of the installed packages that can change the bytes of a result."""
    return {"hubmerge": hubmerge.__version__, **_installed_packages()}


@cache  # each version is read from a long file
def _installed_packages() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
