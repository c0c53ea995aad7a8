"""Publishing one immutable folder: one commit, checked, then the tag, which is the commit point.

Whatever a crash, a rival or a lost answer left behind, publishing the same folder again ends in
the same place: a commit is recognised by its trailer and its files, a tag is never moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_url,
)
from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

from hubmerge.errors import HubUnreachable, IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import no_token, wait_out
from hubmerge.hub.fetch import HubFile, list_files, same_bytes
from hubmerge.hub.step_names import list_refs
from hubmerge.refs import ModelRef, Revision, check_inner_path

T = TypeVar("T")

# Long enough for a dozen rivals on one branch, each of whom wins once.
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, *[3.0] * 7)
_LONGEST_PAUSE_S = 60.0
# One page: the commit that a crash left untagged is young.
_SEARCHED_COMMITS = 50
# The Hub makes it with the repository, and decides by it what goes to LFS.
_ATTRIBUTES = ".gitattributes"
# Hidden by the Hub's own convention.
_RESULTS = ".eval_results/"


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

    @property
    def files(self) -> dict[str, Path]:
        """The files of the folder by their path inside it; links stay behind, and what is hidden.

        The Hub's results do not, though they are hidden.
        """
        paths = sorted(path for path in self.folder.rglob("*") if not path.is_symlink())
        named = {path.relative_to(self.folder).as_posix(): path for path in paths if path.is_file()}
        files = {
            name: path
            for name, path in named.items()
            if not f"/{name.removeprefix(_RESULTS)}".count("/.")
        }
        if not files:
            raise UsageError(f"There is nothing to publish in {self.folder}.")
        return {check_inner_path(name): path for name, path in files.items()}


def ensure_repo(hub: Hub, repo_id: str, private: bool = False) -> None:
    """The repository exists and may be written to; raises NoAccess before any work is done.

    Raises UsageError if it should be private and is public already.
    """
    if not hub.token:
        raise no_token(f"opening {repo_id} for writing")
    try:
        # Asked first: creating what exists succeeds with a token that may only read.
        hub.ask(f"opening {repo_id} for writing", lambda api: api.auth_check(repo_id, write=True))
    except NotOnHub:
        hub.ask(
            f"creating {repo_id}",
            lambda api: api.create_repo(repo_id, exist_ok=True, private=private or None),
        )
    if private and not hub.ask(f"reading {repo_id}", lambda api: api.model_info(repo_id)).private:
        raise UsageError(
            f"{repo_id} exists already and is public.",
            "Make it private on its page, or choose another repository.",
        )


def publish(
    hub: Hub, publication: Publication, before_tag: Callable[[str], object] | None = None
) -> str:
    """Publish the folder and return its commit; doing so twice changes nothing.

    `before_tag` is given the commit and raises if it should not be tagged. Raises IntegrityError
    when the tag already stands for other bytes.
    """
    if standing := _tagged(hub, publication):
        return standing
    commit = settle(lambda: _landed(hub, publication), lambda: _commit(hub, publication))
    if before_tag is not None:
        before_tag(commit)
    if publication.tag is None:
        return commit
    return settle(lambda: _tagged(hub, publication), lambda: _tag(hub, publication, commit))


def manifest_digest(data: bytes) -> str:
    """The SHA-256 that a commit's trailer carries for a manifest."""
    return hashlib.sha256(data).hexdigest()


def settle(look: Callable[[], T | None], send: Callable[[], T]) -> T:
    """Bring about what must happen exactly once: look, send, and after any doubt look again."""
    for pause_s in _PAUSES_S:
        if found := look():
            return found
        try:
            return send()
        except HubUnreachable as error:
            wait_out(error, pause_s, _LONGEST_PAUSE_S)
    return look() or send()


def _tagged(hub: Hub, publication: Publication) -> str | None:
    """The commit that the tag stands for, if it stands."""
    if publication.tag is None:
        return None
    commit = list_refs(hub, publication.repo_id).tags.get(publication.tag)
    return checked(hub, publication, commit) if commit else None


def _tag(hub: Hub, publication: Publication, commit: str) -> str:
    tag, message = str(publication.tag), publication.tag_message or None
    hub.ask_once(
        f"tagging {publication.repo_id}@{tag}",
        lambda api: api.create_tag(
            publication.repo_id, tag=tag, tag_message=message, revision=commit
        ),
    )
    return commit


def _landed(hub: Hub, publication: Publication) -> str | None:
    """The young commit on main that is this publication already, after a crash or a lost answer.

    Without a tag, main is what a reader gets: then only its newest commit will do.
    """
    searched = _SEARCHED_COMMITS if publication.tag else 1
    for commit, said in newest(hub, publication.repo_id, "main", searched):
        same = said == publication.description and holds(hub, publication, commit)
        if same and _is_stored(hub, publication, commit):
            return commit
    return None


def _is_stored(hub: Hub, publication: Publication, commit: str) -> bool:
    """Whether what a commit lists can still be had: large files may have been deleted for good."""
    repo_id, listed = publication.repo_id, list_files(hub, _at(publication, commit))
    large = [path for path, file in listed.items() if file.sha256]
    urls = [hf_hub_url(repo_id, path, revision=commit, endpoint=hub.endpoint) for path in large]

    def question(api: HfApi) -> bool:
        return all(api.get_hf_file_metadata(url=url).size is not None for url in urls)

    try:
        return hub.ask(f"looking for the files of {repo_id}@{commit[:12]}", question)
    except NotOnHub:
        return False


def newest(hub: Hub, repo_id: str, revision: str, count: int) -> list[tuple[str, str]]:
    """The newest commits of a revision, each with what its message says below the title."""
    address = f"{hub.endpoint}/api/models/{repo_id}/commits/{quote(revision, safe='')}"
    headers = build_hf_headers(token=hub.token or False)
    # HfApi.list_repo_commits reads all pages, however long the history.
    commits = hub.ask_once(
        f"reading the commits of {repo_id}",
        lambda api: list(islice(paginate(address, {}, headers), count)),
    )
    return [(str(commit["id"]), str(commit["message"]).strip()) for commit in commits]


def _commit(hub: Hub, publication: Publication) -> str:
    """One commit that makes main the folder and nothing else, on top of what was read there."""
    head, listed = main_of(hub, publication)
    if head and same_files(listed, publication.files):
        return head
    info = send_commit(hub, publication, head, listed)
    return checked(hub, publication, str(info.oid))


def main_of(hub: Hub, publication: Publication) -> tuple[str | None, dict[str, HubFile]]:
    """The newest commit of main and its files."""
    head = list_refs(hub, publication.repo_id).branches.get("main")
    return head, list_files(hub, _at(publication, head)) if head else {}


def send_commit(
    hub: Hub,
    publication: Publication,
    head: str | None,
    listed: Mapping[str, HubFile],
    revision: str = "main",
    create_pr: bool = False,
) -> CommitInfo:
    """Turn the listed files of `head`, a revision's newest, into those of the folder, at once."""
    repo_id, files = publication.repo_id, publication.files
    # New in each try: an addition remembers what main held when it was uploaded.
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    deletions = [CommitOperationDelete(name) for name in listed.keys() - {_ATTRIBUTES, *files}]
    size = sum(path.stat().st_size for path in files.values())
    # Uploaded first: that the client may repeat, a commit nobody may.
    hub.ask_once(
        f"uploading {publication.title!r} to {repo_id}",
        lambda api: api.preupload_lfs_files(
            repo_id, additions, revision=revision, free_memory=False, create_pr=create_pr
        ),
        size=size,
    )
    return hub.ask_once(
        f"committing {publication.title!r} to {repo_id}",
        lambda api: api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=publication.title,
            commit_description=publication.description,
            revision=revision,
            parent_commit=head,
            create_pr=create_pr,
        ),
        size=size,
    )


def checked(hub: Hub, publication: Publication, commit: str) -> str:
    """The commit, if it holds the folder; raises IntegrityError."""
    if holds(hub, publication, commit):
        return commit
    where = f"{publication.repo_id}@{publication.tag or commit[:12]}"
    raise IntegrityError(
        f"{where} already stands for other bytes than {publication.folder} (commit {commit}).",
        "A published step never changes: choose another repository with --to or --push, or "
        "delete the tag yourself if it was a mistake.",
    )


def holds(hub: Hub, publication: Publication, commit: str) -> bool:
    """Whether the commit holds exactly the folder's files."""
    return same_files(list_files(hub, _at(publication, commit)), publication.files)


def same_files(listed: Mapping[str, HubFile], files: Mapping[str, Path]) -> bool:
    """Whether a Hub lists these files with these bytes, and no others but its own."""
    same_names = listed.keys() - {_ATTRIBUTES} == files.keys()
    return same_names and all(same_bytes(path, listed[name]) for name, path in files.items())


def _at(publication: Publication, commit: str) -> Revision:
    return Revision(ModelRef(publication.repo_id, revision=publication.tag), commit)
