"""hubmerge card: the card of a folder or a revision, told anew from manifest and score log."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hubmerge.cards.card import CardInput, render_card
from hubmerge.durable import write_whole
from hubmerge.errors import UsageError
from hubmerge.flows.publication import CARD, check_room, folder_publication
from hubmerge.flows.sources import Pinned, check_sealed, pin
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.manifest import NAME
from hubmerge.refs import ModelRef
from hubmerge.scores import ScoreLog


@dataclass(frozen=True)
class Card:
    """A card's text, and its commit if it was pushed."""

    text: str
    commit: str | None = None


def card(
    hub: Hub,
    ref: ModelRef,
    log: ScoreLog,
    split: str,
    push: ModelRef | None = None,
    private: bool = False,
) -> Card:
    """Tell the card of `ref`; write it into a local folder, push it where `push` says.

    A tag never moves: a new card of a published revision is a new commit on main. Raises
    IntegrityError for a folder whose files are not those its manifest vouches for.
    """
    pinned = pin(hub, ref)
    if pinned.manifest is None:
        raise UsageError(
            f"{pinned.revision.label} has no {NAME}, and a card is told from nothing else.",
            "Cards are for what hubmerge trained or merged.",
        )
    manifest = pinned.manifest
    text = render_card(CardInput(manifest, log.read(), split), _before(hub, pinned))
    if ref.path is not None:
        check_sealed(ref.path, manifest, pinned.revision.label)
        write_whole(ref.path / CARD, text.encode(), mode=0o644)
    if push is None:
        return Card(text)
    check_room(hub, str(push.repo_id), manifest.kind)
    ensure_repo(hub, str(push.repo_id), private)
    if ref.path is not None:
        return Card(text, publish(hub, folder_publication(ref.path, manifest, push)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "revision"
        shutil.copytree(fetch(hub, pinned.revision), folder)
        check_sealed(folder, manifest, pinned.revision.label)
        (folder / CARD).write_text(text, encoding="utf-8")
        return Card(text, publish(hub, folder_publication(folder, manifest, push)))


def _before(hub: Hub, pinned: Pinned) -> str:
    """The card that is there now: what a human wrote around ours must stay."""
    path = pinned.revision.ref.path
    if path is not None:
        return (path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else ""
    return (read_file(hub, pinned.revision, CARD) or b"").decode(errors="replace")
