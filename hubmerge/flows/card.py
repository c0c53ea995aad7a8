"""hubmerge card: render the card of a folder or a revision from manifest, scores and lock."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubmerge.cards.card import CardInput, StepTag, render_card
from hubmerge.cards.metadata import EVAL_RESULTS, eval_results
from hubmerge.cards.usage import is_language_model
from hubmerge.durable import write_atomic
from hubmerge.errors import UsageError
from hubmerge.forgetting import FORGOTTEN_JSON as FORGOTTEN
from hubmerge.forgetting import Forgetting, parse_forgetting, read_forgetting
from hubmerge.hub.client import Hub
from hubmerge.hub.derived_models import find_merges
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.hub.resolve import list_steps
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.model_class import language_loader
from hubmerge.opening.integrity import check_manifest
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.publication import (
    add_figures,
    check_repository_kind,
    folder_publication,
    parse_matching_lock,
    read_folder_lock,
)
from hubmerge.opening.references import CARD, pin, pin_revisions
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef, Revision
from hubmerge.routing import ROUTING_JSON as ROUTING
from hubmerge.routing import Routing, parse_routing, read_routing
from hubmerge.scores import ScoreLog


@dataclass(frozen=True)
class CardResult:
    """The text of a card, its .eval_results file if requested, and its commit if pushed."""

    text: str
    results: str = ""
    commit: str | None = None


def update_card(
    hub: Hub,
    ref: ModelRef,
    log: ScoreLog,
    split: str,
    push: ModelRef | None = None,
    private: bool = False,
    with_results: bool = False,
) -> CardResult:
    """Render the card of `ref`, write it if that is a local folder, and push it to `push`.

    `with_results` writes an .eval_results file as well; one that exists is always updated with the
    card. A tag never moves: a new card of a published revision is a new commit on main. Raises
    IntegrityError if the files or the lock of a folder do not match its manifest.
    """
    pinned = pin(hub, ref)
    if pinned.manifest is None:
        raise UsageError(
            f"{pinned.revision.label} has no {MANIFEST_JSON}, from which a card is rendered.",
            "Name a model that hubmerge trained or merged.",
        )
    manifest = pinned.manifest
    card_input = CardInput(
        manifest,
        log.read(),
        split,
        lock=_read_lock(hub, pinned, manifest),
    )
    if is_language_model(manifest):
        loader = language_loader(partial(_read_existing, hub, pinned))
        card_input = dataclasses.replace(card_input, language_loader=loader)
    if manifest.is_moe:
        card_input = dataclasses.replace(card_input, routing=_read_routing(hub, pinned))
    if not manifest.is_expert:
        card_input = dataclasses.replace(
            card_input, forgotten=_read_forgetting(hub, pinned, manifest)
        )
    if ref.repo_id and not manifest.is_merge:
        card_input = dataclasses.replace(card_input, steps=_step_tags(hub, ref.repo_id))
    if ref.repo_id and manifest.is_expert:
        card_input = dataclasses.replace(card_input, used_by=find_merges(hub, ref.repo_id))
    existing, results = _read_existing(hub, pinned, CARD), ""
    if with_results or _read_existing(hub, pinned, EVAL_RESULTS):
        can_write = ref.is_local or push is not None
        results = _render_eval_results(card_input, with_results, can_write)
    result = CardResult(render_card(card_input, existing), results)
    if ref.path is not None:
        check_manifest(ref.path, manifest, pinned.revision.label)
        _write_card(ref.path, manifest, result)
    if push is None:
        return result
    check_repository_kind(hub, str(push.repo_id), manifest.kind)
    ensure_repo(hub, str(push.repo_id), private)
    return dataclasses.replace(result, commit=_push_card(hub, pinned, manifest, result, push))


def _push_card(
    hub: Hub, pinned: PinnedModel, manifest: Manifest, card: CardResult, push: ModelRef
) -> str:
    ref = pinned.revision.ref
    if ref.path is not None:
        return publish(hub, folder_publication(ref.path, manifest, push))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "revision"
        shutil.copytree(fetch(hub, pinned.revision), folder)
        check_manifest(folder, manifest, pinned.revision.label)
        _write_card(folder, manifest, card)
        return publish(hub, folder_publication(folder, manifest, push))


def _write_card(folder: Path, manifest: Manifest, card: CardResult) -> None:
    """Write the figures and the card, then the results."""
    if not manifest.is_expert:
        add_figures(folder, manifest)
    write_atomic(folder / CARD, card.text.encode(), mode=0o644)
    if card.results:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_atomic(folder / EVAL_RESULTS, card.results.encode(), mode=0o644)


def _render_eval_results(card_input: CardInput, requested: bool, can_write: bool) -> str:
    """Render the .eval_results file.

    Raises UsageError if it was requested, but has no results or cannot be written anywhere.
    """
    results = eval_results(card_input)
    if requested and not results:
        raise UsageError(
            f"No task whose data set is on a Hub was measured on {card_input.split}; the Hub "
            "shows no other results.",
            "Run `hubmerge eval` on such a task first, or leave out --eval-results.",
        )
    if requested and not can_write:
        raise UsageError("--eval-results writes a file.", "Name a folder, or add --push.")
    return results


def _read_lock(hub: Hub, pinned: PinnedModel, manifest: Manifest) -> Lock | None:
    if manifest.lock is None:
        return None
    path = pinned.revision.ref.path
    if path is not None:
        return read_folder_lock(path, manifest)
    where = f"{LOCK} of {pinned.revision.label}"
    return parse_matching_lock(manifest, read_file(hub, pinned.revision, LOCK), where)


def _read_routing(hub: Hub, pinned: PinnedModel) -> Routing | None:
    """Read the routing of a mixture of experts, None if it was not measured."""
    path = pinned.revision.ref.path
    if path is not None:
        return read_routing(path)
    data = read_file(hub, pinned.revision, ROUTING)
    return None if data is None else parse_routing(data, f"{ROUTING} of {pinned.revision.label}")


def _read_forgetting(hub: Hub, pinned: PinnedModel, manifest: Manifest) -> Forgetting | None:
    """Read what `hubmerge explain` found, None if it was not run."""
    path, model = pinned.revision.ref.path, manifest.digest
    if path is not None:
        return read_forgetting(path, model)
    data, where = read_file(hub, pinned.revision, FORGOTTEN), pinned.revision.label
    return None if data is None else parse_forgetting(data, f"{FORGOTTEN} of {where}", model)


def _step_tags(hub: Hub, repo_id: str) -> tuple[StepTag, ...]:
    """Return the steps of a repository, each with the accuracy in its manifest."""
    steps = list_steps(hub, repo_id)
    models = pin_revisions(hub, steps, no_progress)
    return tuple(_step_tag(model, step) for model, step in zip(models, steps, strict=True))


def _step_tag(pinned: PinnedModel, revision: Revision) -> StepTag:
    curve = pinned.manifest.validation if pinned.manifest else ()
    accuracy = curve[-1].accuracy if curve else None
    name = revision.ref.revision or revision.ref.subfolder or revision.sha[:12]
    return StepTag(revision.step or 0, name, revision.sha, accuracy)


def _read_existing(hub: Hub, pinned: PinnedModel, name: str) -> str:
    """Read a file as it is now: the author's text around the generated part is kept."""
    path = pinned.revision.ref.path
    if path is not None:
        return (path / name).read_text(encoding="utf-8") if (path / name).is_file() else ""
    return (read_file(hub, pinned.revision, name) or b"").decode(errors="replace")
