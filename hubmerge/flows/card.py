"""hubmerge card: the card of a folder or a revision, told anew from manifest and score log."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hubmerge.cards.card import Told, render_card
from hubmerge.errors import UsageError
from hubmerge.flows.merge import publication
from hubmerge.flows.sources import read_local_manifest
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.resolve import resolve
from hubmerge.manifest import NAME
from hubmerge.refs import ModelRef
from hubmerge.scores import ScoreLog


@dataclass(frozen=True)
class Card:
    """A card's text, the folder it was written to, and its commit if it was pushed."""

    text: str
    folder: Path | None
    commit: str | None = None


def card(hub: Hub, ref: ModelRef, log: ScoreLog, split: str, push: ModelRef | None) -> Card:
    """Tell the card of `ref`; write it into a local folder, push it where `push` says.

    A tag never moves: a new card of a published revision is a new commit on main.
    """
    if ref.path is not None:
        return _of_folder(hub, ref.path, log, split, push)
    fetched = fetch(hub, resolve(hub, ref))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "revision"
        shutil.copytree(fetched, folder, symlinks=False)
        told = _of_folder(hub, folder, log, split, push)
    return Card(told.text, None, told.commit)


def _of_folder(hub: Hub, folder: Path, log: ScoreLog, split: str, push: ModelRef | None) -> Card:
    manifest = read_local_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"{folder} has no {NAME}, and a card is told from nothing else.",
            "Cards are for what hubmerge trained or merged.",
        )
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = render_card(Told(manifest, log.read(), split), before)
    path.write_text(text, encoding="utf-8")
    if push is None:
        return Card(text, folder)
    ensure_repo(hub, str(push.repo_id))
    return Card(text, folder, publish(hub, publication(folder, manifest, push)))
