"""hubmerge card: the card of a folder or a revision, told anew from manifest, scores and lock."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hubmerge.cards.card import CardInput, StepTag, render_card
from hubmerge.cards.metadata import EVAL_RESULTS, eval_results
from hubmerge.durable import write_whole
from hubmerge.errors import UsageError
from hubmerge.forgetting import NAME as FORGOTTEN
from hubmerge.forgetting import Forgetting, forgetting_beside, parse_forgetting
from hubmerge.hub.client import Hub
from hubmerge.hub.derived_models import merges_of
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.resolve import list_steps
from hubmerge.lock import NAME as LOCK
from hubmerge.lock import Lock
from hubmerge.manifest import NAME, Manifest
from hubmerge.opening.integrity import check_sealed
from hubmerge.opening.opened_model import Pinned
from hubmerge.opening.publication import (
    add_figures,
    check_room,
    folder_publication,
    lock_beside,
    vouched_lock,
)
from hubmerge.opening.references import CARD, pin, pin_revision
from hubmerge.refs import ModelRef, Revision
from hubmerge.routing import NAME as ROUTING
from hubmerge.routing import Routing, parse_routing, routing_beside
from hubmerge.scores import ScoreLog


@dataclass(frozen=True)
class Card:
    """A card's text, its results in the Hub's own format if asked, its commit if pushed."""

    text: str
    results: str = ""
    commit: str | None = None


def card(
    hub: Hub,
    ref: ModelRef,
    log: ScoreLog,
    split: str,
    push: ModelRef | None = None,
    private: bool = False,
    with_results: bool = False,
) -> Card:
    """Tell the card of `ref`; write it into a local folder, push it where `push` says.

    `with_results` writes an .eval_results file as well; one that is there already is told anew
    with the card. A tag never moves: a new card of a published revision is a new commit on main.
    Raises IntegrityError for a folder whose files are not those its manifest vouches for, or whose
    lock is another.
    """
    pinned = pin(hub, ref)
    if pinned.manifest is None:
        raise UsageError(
            f"{pinned.revision.label} has no {NAME}, and a card is told from nothing else.",
            "Cards are for what hubmerge trained or merged.",
        )
    manifest = pinned.manifest
    told = CardInput(manifest, log.read(), split, lock=_lock(hub, pinned, manifest))
    if manifest.is_moe:
        told = dataclasses.replace(told, routing=_routing(hub, pinned))
    if not manifest.is_expert:
        told = dataclasses.replace(told, forgotten=_forgotten(hub, pinned, manifest))
    if ref.repo_id and not manifest.is_merge:
        told = dataclasses.replace(told, steps=_steps(hub, ref.repo_id))
    if ref.repo_id and manifest.is_expert:
        told = dataclasses.replace(told, used_by=merges_of(hub, ref.repo_id))
    before, results = _before(hub, pinned, CARD), ""
    if with_results or _before(hub, pinned, EVAL_RESULTS):
        results = _results(told, with_results, written=ref.is_local or push is not None)
    made = Card(render_card(told, before), results)
    if ref.path is not None:
        check_sealed(ref.path, manifest, pinned.revision.label)
        _write(ref.path, manifest, made)
    if push is None:
        return made
    check_room(hub, str(push.repo_id), manifest.kind)
    ensure_repo(hub, str(push.repo_id), private)
    return dataclasses.replace(made, commit=_pushed(hub, pinned, manifest, made, push))


def _pushed(hub: Hub, pinned: Pinned, manifest: Manifest, made: Card, push: ModelRef) -> str:
    ref = pinned.revision.ref
    if ref.path is not None:
        return publish(hub, folder_publication(ref.path, manifest, push))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "revision"
        shutil.copytree(fetch(hub, pinned.revision), folder)
        check_sealed(folder, manifest, pinned.revision.label)
        _write(folder, manifest, made)
        return publish(hub, folder_publication(folder, manifest, push))


def _write(folder: Path, manifest: Manifest, made: Card) -> None:
    """The card and what it shows, then the results."""
    if not manifest.is_expert:
        add_figures(folder, manifest)
    write_whole(folder / CARD, made.text.encode(), mode=0o644)
    if made.results:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_whole(folder / EVAL_RESULTS, made.results.encode(), mode=0o644)


def _results(told: CardInput, asked: bool, written: bool) -> str:
    """Raises UsageError if they were asked for and there are none, or nowhere to write them."""
    results = eval_results(told)
    if asked and not results:
        raise UsageError(
            f"No task with its data on a Hub was measured on {told.split}, and the Hub shows only "
            "results on data sets that it has.",
            "Run `hubmerge eval` on such a task first, or leave out --eval-results.",
        )
    if asked and not written:
        raise UsageError("--eval-results writes a file.", "Name a folder, or say --push.")
    return results


def _lock(hub: Hub, pinned: Pinned, manifest: Manifest) -> Lock | None:
    if manifest.lock is None:
        return None
    path = pinned.revision.ref.path
    if path is not None:
        return lock_beside(path, manifest)
    where = f"{LOCK} of {pinned.revision.label}"
    return vouched_lock(manifest, read_file(hub, pinned.revision, LOCK), where)


def _routing(hub: Hub, pinned: Pinned) -> Routing | None:
    """What was measured of a mixture, None where nothing was."""
    path = pinned.revision.ref.path
    if path is not None:
        return routing_beside(path)
    data = read_file(hub, pinned.revision, ROUTING)
    return None if data is None else parse_routing(data, f"{ROUTING} of {pinned.revision.label}")


def _forgotten(hub: Hub, pinned: Pinned, manifest: Manifest) -> Forgetting | None:
    """What `hubmerge explain` found of a merge or a mixture, None where it was not asked."""
    path, model = pinned.revision.ref.path, manifest.digest
    if path is not None:
        return forgetting_beside(path, model)
    data, where = read_file(hub, pinned.revision, FORGOTTEN), pinned.revision.label
    return None if data is None else parse_forgetting(data, f"{FORGOTTEN} of {where}", model)


def _steps(hub: Hub, repo_id: str) -> tuple[StepTag, ...]:
    """The steps of a repository, each with what its own manifest says of it."""
    return tuple(_step(pin_revision(hub, step), step) for step in list_steps(hub, repo_id))


def _step(pinned: Pinned, revision: Revision) -> StepTag:
    curve = pinned.manifest.validation if pinned.manifest else ()
    accuracy = curve[-1].accuracy if curve else None
    name = revision.ref.revision or revision.ref.subfolder or revision.sha[:12]
    return StepTag(revision.step or 0, name, revision.sha, accuracy)


def _before(hub: Hub, pinned: Pinned, name: str) -> str:
    """A file that is there now: what a human wrote around our part of the card must stay."""
    path = pinned.revision.ref.path
    if path is not None:
        return (path / name).read_text(encoding="utf-8") if (path / name).is_file() else ""
    return (read_file(hub, pinned.revision, name) or b"").decode(errors="replace")
