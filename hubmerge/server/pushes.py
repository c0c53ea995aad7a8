"""What a `git push` may change: branches and tags, to commits whose files are all here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dulwich.errors import ObjectFormatException
from dulwich.objects import Blob, ShaFile, Tree

from hubmerge.server.card_rules import CARD, check_card
from hubmerge.server.content import parse_pointer
from hubmerge.server.git import Git
from hubmerge.server.http_errors import Conflict, HttpError
from hubmerge.server.names import check_path, check_ref

BRANCH, TAG = "refs/heads/", "refs/tags/"
# Of a push that copies what is published elsewhere (`hubmerge hub pull` and `push`).
MIRROR_HEADER = "Hubmerge-Mirror"

_SUBMODULE_MODE = 0o160000
# Whether the pusher may name a large file by its sha256.
HasContent = Callable[[str], bool]


@dataclass(frozen=True)
class RefUpdate:
    """A ref that is to be moved from an object to another one; None for a ref that is not there."""

    name: str
    old: str | None
    new: str | None


def find_problem(objects: Iterable[ShaFile], has_content: HasContent) -> str:
    """Why the objects of a push must not come into a repository, empty if they may."""
    try:
        for item in objects:
            _check_object(item, has_content)
    except HttpError as error:
        return error.message
    except ObjectFormatException as error:
        return f"an object is malformed: {error}"
    return ""


def apply_updates(git: Git, updates: Sequence[RefUpdate], is_mirror: bool = False) -> list[str]:
    """Move, create or delete refs, each if it is allowed; returns each problem, empty if done.

    A mirror brings what is published elsewhere, whose cards are not held to the rules here.
    """
    tips = [update.new for update in updates if update.new]
    try:
        _check_complete(git, tips)
        checked = True
    except HttpError:
        checked = False  # then each is checked alone, to say which is wrong
    return [_apply_update(git, update, checked, is_mirror) for update in updates]


def _apply_update(git: Git, update: RefUpdate, checked: bool, is_mirror: bool) -> str:
    try:
        _check_name(update)
        if update.new is None:
            git.delete_ref(update.name)
            return ""
        if not checked:
            _check_complete(git, [update.new])
        if not is_mirror:
            _check_card_of(git, update.new)
        _write_ref(git, update.name, update.old, update.new)
    except HttpError as error:
        return error.message
    return ""


def _check_name(update: RefUpdate) -> None:
    prefix = next((prefix for prefix in (BRANCH, TAG) if update.name.startswith(prefix)), None)
    if prefix is None:
        raise Conflict("only branches and tags can be pushed")
    check_ref(update.name.removeprefix(prefix))
    if update.name == BRANCH + "main" and update.new is None:
        raise Conflict("the main branch cannot be deleted")


def _check_complete(git: Git, tips: Sequence[str]) -> None:
    """Raise Conflict unless all objects of commits are here."""
    if not all(map(git.tree_at, tips)):
        raise Conflict("it is no commit, and no tag of one")
    if not git.is_complete(tips):
        raise Conflict("objects are missing")


def _check_object(item: ShaFile, has_content: HasContent) -> None:
    item.check()
    if isinstance(item, Tree):
        for name, mode, _ in item.iteritems():
            check_path(name.decode("utf-8", "surrogateescape"))
            if mode == _SUBMODULE_MODE:
                raise Conflict("submodules are not supported")
    elif isinstance(item, Blob):
        pointer = parse_pointer(item.data)
        if pointer and not has_content(pointer.oid):
            raise Conflict(f"the large file {pointer.oid} was not uploaded: push it by LFS first")


def _check_card_of(git: Git, tip: str) -> None:
    """Raise BadRequest if the card at a commit breaks the rules that commits by the API follow."""
    card = git.find(git.tree_at(tip) or "", CARD)
    if card is not None and not card.is_folder:
        check_card(git.read_blob(card.oid))


def _write_ref(git: Git, name: str, old: str | None, new: str) -> None:
    if not (git.move_ref(name, old, new) if old else git.add_ref(name, new)):
        raise Conflict("it has been changed meanwhile: fetch first")
