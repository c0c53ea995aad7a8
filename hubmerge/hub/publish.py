"""Publishing one immutable folder: one commit, checked, then the tag, which is the commit point.

Whatever a crash or a lost answer left behind, publishing the same folder again ends in the same
place: a commit is recognised by its trailer and its files, a tag is never moved.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from hubmerge.errors import HubError, HubUnreachable, IntegrityError
from hubmerge.hub.client import PAUSES_S, Hub, seconds_for
from hubmerge.hub.fetch import HubFile, list_files, same_bytes
from hubmerge.hub.resolve import list_refs
from hubmerge.refs import ModelRef, Revision

_TRIES = 6
_SEARCHED_COMMITS = 200


@dataclass(frozen=True)
class Publication:
    """A folder to become a revision of `repo_id`: its title, its trailer, its tag if it has one.

    The trailer (key -> value) ends the commit's message and identifies the commit: the same
    folder published again carries the same one.
    """

    repo_id: str
    folder: Path
    title: str
    trailer: Mapping[str, str]
    tag: str | None = None
    tag_message: str = ""

    @property
    def description(self) -> str:
        return "\n".join(f"hubmerge-{key}: {value}" for key, value in sorted(self.trailer.items()))


def ensure_repo(hub: Hub, repo_id: str, private: bool = False) -> None:
    """The repository exists and may be written to; raises NoAccess before any work is done."""
    hub.ask(
        f"creating {repo_id}",
        lambda api: api.create_repo(repo_id, exist_ok=True, private=private or None),
    )


def publish(hub: Hub, publication: Publication) -> str:
    """Publish the folder and return its commit; doing so twice changes nothing.

    Raises IntegrityError when the tag already stands for other bytes.
    """
    standing = _standing_tag(hub, publication)
    if standing:
        return _checked(hub, publication, standing)
    commit = _landed(hub, publication) or _commit(hub, publication)
    _checked(hub, publication, commit)
    if publication.tag:
        _tag(hub, publication, commit)
    return commit


def holds(hub: Hub, publication: Publication, commit: str) -> bool:
    """Whether the commit holds exactly the folder's files."""
    listed = list_files(hub, _at(publication, commit))
    listed.pop(".gitattributes", None)
    files = _files(publication.folder)
    return listed.keys() == files.keys() and all(
        same_bytes(path, listed[name]) for name, path in files.items()
    )


def _standing_tag(hub: Hub, publication: Publication) -> str | None:
    if publication.tag is None:
        return None
    return list_refs(hub, publication.repo_id).tags.get(publication.tag)


def _checked(hub: Hub, publication: Publication, commit: str) -> str:
    if holds(hub, publication, commit):
        return commit
    where = f"{publication.repo_id}@{publication.tag or commit[:12]}"
    raise IntegrityError(
        f"{where} already stands for other bytes than {publication.folder} (commit {commit}).",
        "A published step never changes: choose another repository with --to or --push, or "
        "delete the tag yourself if it was a mistake.",
    )


def _landed(hub: Hub, publication: Publication) -> str | None:
    """The commit that already carries this folder, after a crash or a lost answer; newest first."""
    commits = hub.ask(
        f"reading the commits of {publication.repo_id}",
        lambda api: [
            (commit.commit_id, commit.message)
            for commit, _ in zip(
                api.list_repo_commits(publication.repo_id), range(_SEARCHED_COMMITS), strict=False
            )
        ],
    )
    for commit, message in commits:
        if message.strip() == publication.description and holds(hub, publication, commit):
            return commit
    return None


def _commit(hub: Hub, publication: Publication) -> str:
    """One commit on main with the whole folder, on top of whatever is there.

    The commit itself is never sent again blindly: after a refusal or a silence we look first.
    """
    what = f"committing {publication.title!r} to {publication.repo_id}"
    last: HubError | None = None
    for attempt in range(_TRIES):
        head = list_refs(hub, publication.repo_id).branches.get("main")
        additions = _additions(hub, publication)
        operations = [*additions, *_deletions(hub, publication, head)]
        try:
            info = hub.ask_once(
                what,
                lambda api, head=head, operations=operations: api.create_commit(  # type: ignore[misc]
                    publication.repo_id,
                    operations,
                    commit_message=publication.title,
                    commit_description=publication.description,
                    parent_commit=head,
                ),
                deadline_s=seconds_for(0),
            )
            return str(info.oid)
        except HubError as error:
            if not (isinstance(error, HubUnreachable) or _lost_the_race(error)):
                raise
            last = error
        if landed := _landed(hub, publication):
            return landed
        time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
    raise last or HubUnreachable(f"{hub.name} does not answer, {what}.")


def _lost_the_race(error: HubError) -> bool:
    """412: the branch moved since we read it; 409: another commit is under way."""
    return re.search(r"HTTP (409|412)", error.message) is not None


def _additions(hub: Hub, publication: Publication) -> list[CommitOperationAdd]:
    """The folder's files, large ones uploaded already: an upload may be repeated, a commit not."""
    files = _files(publication.folder)
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    hub.ask(
        f"uploading {publication.title!r} to {publication.repo_id}",
        lambda api: api.preupload_lfs_files(publication.repo_id, additions, free_memory=False),
        deadline_s=seconds_for(sum(path.stat().st_size for path in files.values())),
    )
    return additions


def _deletions(hub: Hub, publication: Publication, head: str | None) -> list[CommitOperationDelete]:
    """Whatever main holds that the folder does not: a revision is the folder and nothing else."""
    if head is None:
        return []
    listed = list_files(hub, _at(publication, head))
    kept = {".gitattributes", *_files(publication.folder)}
    return [CommitOperationDelete(name) for name in sorted(listed.keys() - kept)]


def _tag(hub: Hub, publication: Publication, commit: str) -> None:
    tag = str(publication.tag)
    what = f"tagging {publication.repo_id}@{tag}"
    create: Callable[..., None] = lambda api: api.create_tag(  # noqa: E731
        publication.repo_id, tag=tag, tag_message=publication.tag_message or None, revision=commit
    )
    try:
        hub.ask(what, create)
    except HubError as error:
        # 409 after a lost answer is our own tag; anybody else's on another commit is a conflict.
        target = list_refs(hub, publication.repo_id).tags.get(tag)
        if target is None:
            raise
        if target != commit:
            _checked(hub, publication, target)
        del error


def _at(publication: Publication, commit: str) -> Revision:
    return Revision(ModelRef(repo_id=publication.repo_id, revision=publication.tag), commit)


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path inside it; hidden files and links stay behind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path for name, path in named.items() if not _hidden(name)}


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def manifest_digest(data: bytes) -> str:
    """The SHA-256 that a commit's trailer carries for a manifest."""
    return hashlib.sha256(data).hexdigest()


__all__ = ["HubFile", "Publication", "ensure_repo", "holds", "manifest_digest", "publish"]
