"""A finished folder: sealed with its manifest and card, and described for publishing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hubmerge.cards import forgotten, routing, selection
from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.curve import CSV, PICTURE, curve_csv
from hubmerge.cards.figures import heat_map_picture, selection_picture, training_picture
from hubmerge.cards.forgotten_bars import forgotten_picture
from hubmerge.cards.routing_map import routing_picture
from hubmerge.durable import hash_file, write_whole
from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.forgetting import Forgetting, forgetting_beside
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.hub.publish import Publication, manifest_digest
from hubmerge.lock import NAME as LOCK
from hubmerge.lock import Lock, parse_lock, read_lock
from hubmerge.manifest import NAME, Manifest, Point
from hubmerge.opening.integrity import files_in
from hubmerge.opening.references import CARD as CARD
from hubmerge.opening.references import pin
from hubmerge.refs import ModelRef, step_tag
from hubmerge.routing import NAME as ROUTING
from hubmerge.routing import Routing, routing_beside

Figures = Mapping[str, Callable[[], bytes]]  # file name -> what draws it

_OF_ANY_REPOSITORY = {".gitattributes", CARD, "LICENSE"}


def seal(folder: Path, manifest: Manifest, lock: bytes | None = None) -> None:
    """Add manifest and card to a folder that holds all its other files, for which it vouches.

    The lock that a merge was made from goes beside them: the model is the same however it was
    chosen, and so is its digest. Nor does the digest hang on what was measured of a mixture.
    """
    files, seen = files_in(folder), _seen(folder, manifest)
    if seen is not None:
        del files[ROUTING]
    whole = manifest.with_files({name: hash_file(path) for name, path in files.items()})
    (folder / NAME).write_bytes(whole.to_bytes())
    if lock is not None:
        (folder / LOCK).write_bytes(lock)
    card = render_card(CardInput(whole, (), lock=lock_beside(folder, whole), routing=seen))
    (folder / CARD).write_text(card, encoding="utf-8")
    if lock is not None:
        add_figures(folder, whole)


def lock_beside(folder: Path, manifest: Manifest) -> Lock | None:
    """The lock beside a merge that was made from one; raises IntegrityError if it is another."""
    path = folder / LOCK
    return vouched_lock(manifest, read_lock(path) if path.is_file() else None, str(path))


def vouched_lock(manifest: Manifest, data: bytes | None, where: str) -> Lock | None:
    """A lock, read if its manifest names it; raises IntegrityError if that names another."""
    if manifest.lock is None or data is None:
        return None
    if hashlib.sha256(data).hexdigest() != manifest.lock:
        raise IntegrityError(
            f"{where} is not the lock that {NAME} says the merge was made from.",
            "Put that one back, or merge again.",
        )
    return parse_lock(data, where)


def add_figures(folder: Path, manifest: Manifest) -> None:
    """Write what a card shows, pictures and CSV, where its card expects it and it is not.

    The curve of an expert or a mixture is told from its manifest, a selection from the lock, and
    where a mixture's tokens went from its routing, and what was forgotten from forgotten.json. The
    manifest vouches for none of these: what a
    model is must not hang on a drawing.
    """
    for name, draw in _figures(folder, manifest).items():
        if not (folder / name).is_file():
            write_whole(folder / name, draw(), mode=0o644)


def _figures(folder: Path, manifest: Manifest) -> Figures:
    return {
        **_curve(manifest.validation),
        **_choice(lock_beside(folder, manifest)),
        **_routes(_seen(folder, manifest), [one.task for one in manifest.experts]),
        **_losses(forgetting_beside(folder, manifest.digest)),
    }


def _seen(folder: Path, manifest: Manifest) -> Routing | None:
    """Where a mixture's tokens went, None where that was not measured."""
    return routing_beside(folder) if manifest.is_moe else None


def _curve(points: tuple[Point, ...]) -> Figures:
    if not points:
        return {}
    return {CSV: lambda: curve_csv(points).encode(), PICTURE: lambda: training_picture(points)}


def _choice(lock: Lock | None) -> Figures:
    if lock is None:
        return {}
    return {
        selection.CSV: lambda: selection.selection_csv(lock).encode(),
        selection.CURVES: lambda: selection_picture(lock),
        selection.HEAT_MAP: lambda: heat_map_picture(lock),
    }


def _routes(seen: Routing | None, trained_for: Sequence[str | None]) -> Figures:
    if seen is None:
        return {}
    return {
        routing.CSV: lambda: routing.routing_csv(seen).encode(),
        routing.PICTURE: lambda: routing_picture(seen, trained_for),
    }


def _losses(found: Forgetting | None) -> Figures:
    return {forgotten.PICTURE: lambda: forgotten_picture(found)} if found else {}


def check_room(hub: Hub, repo_id: str, kind: str) -> None:
    """A publication replaces all of main: refuse a repository that holds something else there.

    Raises IntegrityError; a repository that does not exist, or is as good as empty, is fine.
    """
    try:
        pinned = pin(hub, ModelRef(repo_id))
        held = list_files(hub, pinned.revision).keys() - _OF_ANY_REPOSITORY
    except NotOnHub:
        return
    if held and (pinned.manifest is None or pinned.manifest.kind != kind):
        whose = pinned.manifest.noun if pinned.manifest else "other"
        raise IntegrityError(
            f"{repo_id} holds {whose} files on main ({min(held)} ...), which would be replaced.",
            "Choose another repository.",
        )


def step_publication(folder: Path, manifest: Manifest, to: str) -> Publication:
    """A step of a run as a tagged revision of the repository `to`, with its curve.

    It is drawn now, as training should not wait for it.
    """
    add_figures(folder, manifest)
    digest = manifest_digest((folder / NAME).read_bytes())
    message = {
        "step": manifest.step,
        "anneal": manifest.training.get("anneal"),
        "validation": manifest.validation[-1].accuracy if manifest.validation else None,
        "manifest": digest,
    }
    return Publication(
        repo_id=to,
        folder=folder,
        title=_mixed(manifest) or f"Step {manifest.step} of {manifest.task_name}",
        trailer={"run": str(manifest.run), "step": str(manifest.step), "manifest": digest},
        tag=step_tag(manifest.step or 0),
        tag_message=json.dumps(message, sort_keys=True),
    )


def folder_publication(folder: Path, manifest: Manifest, to: ModelRef) -> Publication:
    """A folder with its card of today as main of `to`, tagged if `to` names a revision.

    The figures that the card shows are added if they are missing: they are no files one downloads
    to load a model, and an older hubmerge drew none.
    """
    add_figures(folder, manifest)
    merge, title = manifest.is_merge, _mixed(manifest) or f"Step {manifest.step}"
    made = {"recipe": manifest.recipe} if merge else {"run": str(manifest.run)}
    seals = {
        "manifest": manifest_digest((folder / NAME).read_bytes()),
        "card": hash_file(folder / CARD),
    }
    return Publication(
        repo_id=str(to.repo_id),
        folder=folder,
        title=f"Merge by {manifest.method}" if merge else title,
        trailer=made | seals,
        tag=to.revision,
    )


def _mixed(manifest: Manifest) -> str | None:
    """The title of a mixture's step, None for any other kind."""
    if not manifest.is_moe:
        return None
    return f"Mixture of {len(manifest.experts)} experts at step {manifest.step or 0}"
