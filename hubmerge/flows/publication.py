"""A finished folder: sealed with its manifest and card, and described for publishing."""

from __future__ import annotations

import json
from pathlib import Path

from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.curve import CSV, PICTURE, curve_csv
from hubmerge.cards.figures import training_picture
from hubmerge.durable import hash_file, write_whole
from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.flows.sources import pin
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.hub.publish import Publication, manifest_digest
from hubmerge.manifest import NAME, Manifest
from hubmerge.refs import ModelRef, step_tag

CARD = "README.md"
_OF_ANY_REPOSITORY = {".gitattributes", CARD, "LICENSE"}


def seal(folder: Path, manifest: Manifest) -> None:
    """Add manifest and card to a folder that holds all its other files, for which it vouches."""
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    whole = manifest.with_files(files)
    (folder / NAME).write_bytes(whole.to_bytes())
    (folder / CARD).write_text(render_card(CardInput(whole, ())), encoding="utf-8")


def add_curve(folder: Path, manifest: Manifest) -> None:
    """Write an expert's curve, as a picture and as CSV, where its card expects it and it is not.

    It is told from the manifest, which does not vouch for it: what a model is must not hang on a
    drawing. Drawn when published, as training should not wait for it.
    """
    points = manifest.validation
    if points and not (folder / CSV).is_file():
        write_whole(folder / CSV, curve_csv(points).encode(), mode=0o644)
    if points and not (folder / PICTURE).is_file():
        write_whole(folder / PICTURE, training_picture(points), mode=0o644)


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
        whose = pinned.manifest.kind if pinned.manifest else "other"
        raise IntegrityError(
            f"{repo_id} holds {whose} files on main ({min(held)} ...), which would be replaced.",
            "Choose another repository.",
        )


def step_publication(folder: Path, manifest: Manifest, to: str) -> Publication:
    """A step of a run as a tagged revision of the repository `to`, with its curve."""
    add_curve(folder, manifest)
    digest, last = manifest_digest((folder / NAME).read_bytes()), manifest.validation[-1]
    message = {
        "step": manifest.step,
        "anneal": manifest.training.get("anneal"),
        "validation": last.accuracy,
        "manifest": digest,
    }
    return Publication(
        repo_id=to,
        folder=folder,
        title=f"Step {manifest.step} of {manifest.task_name}",
        trailer={"run": str(manifest.run), "step": str(manifest.step), "manifest": digest},
        tag=step_tag(manifest.step or 0),
        tag_message=json.dumps(message, sort_keys=True),
    )


def folder_publication(folder: Path, manifest: Manifest, to: ModelRef) -> Publication:
    """A folder with its card of today as main of `to`, tagged if `to` names a revision.

    The curve that the card shows is added if it is missing: it is no file one downloads to load a
    model, and an older hubmerge drew none.
    """
    add_curve(folder, manifest)
    merge = manifest.kind == "merge"
    made = {"recipe": manifest.recipe} if merge else {"run": str(manifest.run)}
    seals = {
        "manifest": manifest_digest((folder / NAME).read_bytes()),
        "card": hash_file(folder / CARD),
    }
    return Publication(
        repo_id=str(to.repo_id),
        folder=folder,
        title=f"Merge by {manifest.method}" if merge else f"Step {manifest.step}",
        trailer=made | seals,
        tag=to.revision,
    )
