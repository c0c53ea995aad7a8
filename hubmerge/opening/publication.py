"""Finish a folder with its manifest and card, and describe it for publishing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from hubmerge.cards import forgotten, routing, selection
from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.curve import CSV, PICTURE, curve_csv
from hubmerge.cards.figures import heat_map_png, selection_png, training_curve_png
from hubmerge.cards.forgotten_bars import forgotten_bars_png
from hubmerge.cards.routing_map import routing_map_png
from hubmerge.durable import hash_file, write_atomic
from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.file_digests import hash_written
from hubmerge.forgetting import Forgetting, read_forgetting
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.hub.publish import Publication, manifest_digest
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.model_class import language_loader
from hubmerge.opening.integrity import files_in
from hubmerge.opening.references import CARD as CARD
from hubmerge.opening.references import pin
from hubmerge.refs import ModelRef, step_tag
from hubmerge.routing import ROUTING_JSON as ROUTING
from hubmerge.routing import Routing, read_routing
from hubmerge.tasks.task_file import TASK_YAML

Figures = Mapping[str, Callable[[], bytes]]  # file name -> function that draws it

_COMMON_FILES = {".gitattributes", CARD, "LICENSE"}


def finalize_folder(folder: Path, manifest: Manifest, lock: bytes | None = None) -> None:
    """Write manifest and card into a folder; the manifest lists the SHA-256 of all files in it.

    It does not list the lock that a merge was made from, the routing of a mixture of experts, nor
    the YAML of an own task: the digest of a model does not depend on how it was chosen or measured.
    """
    files, measured = files_in(folder), _read_routing(folder, manifest)
    if measured is not None:
        del files[ROUTING]
    files.pop(TASK_YAML, None)
    digests = hash_written(files.values())
    complete = manifest.with_files({name: digests[path] for name, path in files.items()})
    (folder / MANIFEST_JSON).write_bytes(complete.to_bytes())
    if lock is not None:
        (folder / LOCK).write_bytes(lock)
    card = render_card(
        CardInput(
            complete,
            (),
            lock=read_folder_lock(folder, complete),
            routing=measured,
            language_loader=language_loader(partial(_read_text, folder)),
        )
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    if lock is not None:
        add_figures(folder, complete)


def _read_text(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_folder_lock(folder: Path, manifest: Manifest) -> Lock | None:
    """The lock in the folder of a merge made from one; raises IntegrityError if it is another."""
    path = folder / LOCK
    return parse_matching_lock(
        manifest, read_lock_bytes(path) if path.is_file() else None, str(path)
    )


def parse_matching_lock(manifest: Manifest, data: bytes | None, where: str) -> Lock | None:
    """Parse the lock of a manifest; raises IntegrityError if the manifest lists another one."""
    if manifest.lock is None or data is None:
        return None
    if hashlib.sha256(data).hexdigest() != manifest.lock:
        raise IntegrityError(
            f"{where} is not the lock in {MANIFEST_JSON}, from which the merge was made.",
            "Restore that lock, or merge again.",
        )
    return parse_lock(data, where)


def add_figures(folder: Path, manifest: Manifest) -> None:
    """Write the pictures and CSV files that the card links to, unless they exist.

    They show the training curve (from the manifest), the selection (from the lock), the routing of
    a mixture of experts (from routing.json) and forgotten rows (from forgotten.json). The manifest
    lists none of them: the digest of a model does not depend on its figures.
    """
    for name, draw in _figures(folder, manifest).items():
        if not (folder / name).is_file():
            write_atomic(folder / name, draw(), mode=0o644)


def _figures(folder: Path, manifest: Manifest) -> Figures:
    return {
        **_curve_figures(manifest),
        **_selection_figures(read_folder_lock(folder, manifest)),
        **_routing_figures(
            _read_routing(folder, manifest), [expert.task for expert in manifest.experts]
        ),
        **_forgetting_figures(read_forgetting(folder, manifest.digest)),
    }


def _read_routing(folder: Path, manifest: Manifest) -> Routing | None:
    """The routing of a mixture of experts, None if it was not measured."""
    return read_routing(folder) if manifest.is_moe else None


def _curve_figures(manifest: Manifest) -> Figures:
    points, name = manifest.validation, manifest.curve_name
    if not points:
        return {}
    return {
        CSV: lambda: curve_csv(points).encode(),
        PICTURE: lambda: training_curve_png(points, name),
    }


def _selection_figures(lock: Lock | None) -> Figures:
    if lock is None:
        return {}
    data = lock.to_bytes()
    return {
        selection.CSV: lambda: selection.selection_csv(lock).encode(),
        selection.CURVES: lambda: _picture_of_lock(selection_png, data),
        selection.HEAT_MAP: lambda: _picture_of_lock(heat_map_png, data),
    }


@lru_cache(maxsize=4)  # every pick of a lock is merged with the same pictures
def _picture_of_lock(draw: Callable[[Lock], bytes], data: bytes) -> bytes:
    return draw(parse_lock(data, LOCK))


def _routing_figures(measured: Routing | None, expert_tasks: Sequence[str | None]) -> Figures:
    if measured is None:
        return {}
    return {
        routing.CSV: lambda: routing.routing_csv(measured).encode(),
        routing.PICTURE: lambda: routing_map_png(measured, expert_tasks),
    }


def _forgetting_figures(forgetting: Forgetting | None) -> Figures:
    if forgetting is None:
        return {}
    return {forgotten.PICTURE: lambda: forgotten_bars_png(forgetting)}


def check_repository_kind(hub: Hub, repo_id: str, kind: str) -> None:
    """Raise IntegrityError if main of a repository holds a model of another kind or other files.

    A publication replaces all files on main. A repository that is missing or empty is accepted.
    """
    try:
        pinned = pin(hub, ModelRef(repo_id))
        files = list_files(hub, pinned.revision).keys() - _COMMON_FILES
    except NotOnHub:
        return
    if files and (pinned.manifest is None or pinned.manifest.kind != kind):
        noun = pinned.manifest.noun if pinned.manifest else "other"
        raise IntegrityError(
            f"{repo_id} holds {noun} files on main ({min(files)} ...), which would be replaced.",
            "Choose another repository.",
        )


def step_publication(folder: Path, manifest: Manifest, to: str) -> Publication:
    """Describe a step of a run as a tagged revision of the repository `to`.

    Its training curve is drawn here and not while training.
    """
    add_figures(folder, manifest)
    digest = manifest_digest((folder / MANIFEST_JSON).read_bytes())
    message = {
        "step": manifest.step,
        "anneal": manifest.training.get("anneal"),
        "validation": manifest.validation[-1].accuracy if manifest.validation else None,
        "manifest": digest,
    }
    return Publication(
        repo_id=to,
        folder=folder,
        title=_moe_title(manifest) or f"Step {manifest.step} of {manifest.task_name}",
        trailer={"run": str(manifest.run), "step": str(manifest.step), "manifest": digest},
        tag=step_tag(manifest.step or 0),
        tag_message=json.dumps(message, sort_keys=True),
    )


def folder_publication(folder: Path, manifest: Manifest, to: ModelRef) -> Publication:
    """Describe a folder with its current card as main of `to`, tagged if `to` names a revision.

    Missing figures are added: they are not needed to load a model, and older versions drew none.
    """
    add_figures(folder, manifest)
    is_trained = not manifest.is_merge and manifest.extracted_from is None
    origin = {"run": str(manifest.run)} if is_trained else {"recipe": manifest.recipe}
    digests = {
        "manifest": manifest_digest((folder / MANIFEST_JSON).read_bytes()),
        "card": hash_file(folder / CARD),
    }
    return Publication(
        repo_id=str(to.repo_id),
        folder=folder,
        title=_folder_title(manifest),
        trailer=origin | digests,
        tag=to.revision,
    )


def _folder_title(manifest: Manifest) -> str:
    """The title of the commit of a folder."""
    if manifest.is_merge:
        return f"Merge by {manifest.method}"
    if whole := manifest.extracted_from:
        return f"LoRA of {whole.label}"
    return _moe_title(manifest) or f"Step {manifest.step}"


def _moe_title(manifest: Manifest) -> str | None:
    """The title of a step of a mixture of experts, None for any other kind."""
    if not manifest.is_moe:
        return None
    return f"Mixture of {len(manifest.experts)} experts at step {manifest.step or 0}"
