"""Publish one immutable folder: one commit, which is checked, then the tag (the commit point).

After a crash, a race or a lost response, publishing the same folder again gives the same result: a
commit is recognised by its trailer and its files, and a tag is never moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import huggingface_hub

from hubmerge.errors import HubUnreachable, IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import no_token_error, wait_before_retry
from hubmerge.hub.fetch import HubFile, list_files, same_bytes
from hubmerge.hub.step_names import list_refs, read_commit_of
from hubmerge.refs import ModelRef, Revision, check_inner_path

T = TypeVar("T")

_RETRY_DELAYS_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.0)
_MAX_DELAY_S = 60.0
# Retries while main does not move, and attempts in all. A rival who commits first moves main, so
# many rivals all succeed in turn, however slow the Hub is.
_MAX_RETRIES, _MAX_ATTEMPTS = 12, 200
# One page: a commit that a crash left without its tag is recent.
_SEARCHED_COMMITS = 50
# The Hub creates it with the repository; it says which files go to LFS.
_GITATTRIBUTES = ".gitattributes"
# Hidden by a convention of the Hub.
_RESULTS_FOLDER = ".eval_results/"


@dataclass(frozen=True)
class Publication:
    """A folder to publish as a revision of `repo_id`: title, trailer, and a tag if it has one.

    The trailer (key -> value) ends the message of the commit and identifies it: the same folder
    has the same trailer when it is published again.
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
        """The files of the folder by their path inside it, without links and hidden files.

        The folder of evaluation results is included, although its name is hidden.
        """
        paths = sorted(path for path in self.folder.rglob("*") if not path.is_symlink())
        by_name = {
            path.relative_to(self.folder).as_posix(): path for path in paths if path.is_file()
        }
        files = {
            name: path
            for name, path in by_name.items()
            if not f"/{name.removeprefix(_RESULTS_FOLDER)}".count("/.")
        }
        if not files:
            raise UsageError(f"There is nothing to publish in {self.folder}.")
        return {check_inner_path(name): path for name, path in files.items()}


def ensure_repo(hub: Hub, repo_id: str, private: bool = False) -> None:
    """Create the repository unless it exists; raises NoAccess if the token may not write to it.

    Raises UsageError if it should be private but exists and is public.
    """
    if not hub.token:
        raise no_token_error(f"opening {repo_id} for writing")
    try:
        # Checked first: creating an existing repository succeeds even with a read-only token.
        hub.call(f"opening {repo_id} for writing", lambda api: api.auth_check(repo_id, write=True))
    except NotOnHub:
        hub.call(
            f"creating {repo_id}",
            lambda api: api.create_repo(repo_id, exist_ok=True, private=private or None),
        )
    if private and not hub.call(f"reading {repo_id}", lambda api: api.model_info(repo_id)).private:
        raise UsageError(
            f"{repo_id} exists already and is public.",
            "Make it private on its page, or choose another repository.",
        )


def publish(
    hub: Hub,
    publication: Publication,
    before_tag: Callable[[str], object] | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> str:
    """Publish the folder and return its commit; publishing it again changes nothing.

    `before_tag` gets the commit and raises if it must not be tagged. Nothing is tried again once
    `is_over`. Raises IntegrityError if the tag exists and has other bytes.
    """
    if tagged := _find_tagged(hub, publication):
        return tagged
    head = partial(read_head, hub, publication.repo_id)
    commit = ensure_once(
        lambda: _find_commit(hub, publication),
        lambda: _commit_folder(hub, publication),
        head,
        is_over,
    )
    if before_tag is not None:
        before_tag(commit)
    if publication.tag is None:
        return commit
    return ensure_once(
        lambda: _find_tagged(hub, publication),
        lambda: _create_tag(hub, publication, commit),
        head,
        is_over,
    )


def manifest_digest(data: bytes) -> str:
    """The SHA-256 of a manifest, as the trailer of a commit has it."""
    return hashlib.sha256(data).hexdigest()


def ensure_once(
    find: Callable[[], T | None],
    send: Callable[[], T],
    read_head: Callable[[], object],
    is_over: Callable[[], bool] = lambda: False,
) -> T:
    """Do what must happen exactly once: find it, else send it; after a failure find it again.

    `read_head` is read after each failure. Gives up after 12 retries during which it stayed the
    same, after 200 attempts in any case, and at a failure once `is_over`; raises the last
    HubUnreachable.
    """
    delays = chain(_RETRY_DELAYS_S, repeat(_RETRY_DELAYS_S[-1]))
    retries, head = 0, None
    for delay_s in islice(delays, _MAX_ATTEMPTS - 1):
        try:
            return find() or send()
        except HubUnreachable as error:
            if retries == _MAX_RETRIES or is_over():
                raise
            wait_before_retry(error, delay_s, _MAX_DELAY_S)
        old_head, head = head, read_head()
        retries = retries + 1 if head == old_head else 1
    return find() or send()


def _find_tagged(hub: Hub, publication: Publication) -> str | None:
    """The commit of the tag, if the tag exists; raises IntegrityError if it has other bytes."""
    if publication.tag is None:
        return None
    # All refs are read only if there may be such a tag: a new step costs the same among thousands.
    if read_commit_of(hub, publication.repo_id, publication.tag) is None:
        return None
    commit = list_refs(hub, publication.repo_id).tags.get(publication.tag)
    return check_commit(hub, publication, commit) if commit else None


def _create_tag(hub: Hub, publication: Publication, commit: str) -> str:
    tag, message = str(publication.tag), publication.tag_message or None
    hub.call_once(
        f"tagging {publication.repo_id}@{tag}",
        lambda api: api.create_tag(
            publication.repo_id, tag=tag, tag_message=message, revision=commit
        ),
    )
    return commit


def _find_commit(hub: Hub, publication: Publication) -> str | None:
    """A recent commit on main that is this publication, left by a crash or a lost response.

    Without a tag, a reader gets main: then only the newest commit counts.
    """
    searched = _SEARCHED_COMMITS if publication.tag else 1
    for commit, description in newest_commits(hub, publication.repo_id, "main", searched):
        if description != publication.description or not commit_matches(hub, publication, commit):
            continue
        if _is_stored(hub, publication, commit):
            return commit
    return None


def _is_stored(hub: Hub, publication: Publication, commit: str) -> bool:
    """Whether all large files of a commit still exist: they may have been deleted for good."""
    repo_id, listed = publication.repo_id, list_files(hub, _revision_of(publication, commit))
    large = [path for path, file in listed.items() if file.sha256]
    urls = [
        huggingface_hub.hf_hub_url(repo_id, path, revision=commit, endpoint=hub.endpoint)
        for path in large
    ]

    def exist(api: huggingface_hub.HfApi) -> bool:
        return all(api.get_hf_file_metadata(url=url).size is not None for url in urls)

    try:
        return hub.call(f"looking for the files of {repo_id}@{commit[:12]}", exist)
    except NotOnHub:
        return False


def newest_commits(hub: Hub, repo_id: str, revision: str, count: int) -> list[tuple[str, str]]:
    """The newest commits of a revision, each with its message below the title."""
    # HfApi.list_repo_commits reads all pages, however long the history.
    listed = hub.list_pages(f"models/{repo_id}/commits/{quote(revision, safe='')}", {})
    commits = hub.call_once(
        f"reading the commits of {repo_id}", lambda api: list(islice(listed, count))
    )
    return [(str(commit["id"]), str(commit["message"]).strip()) for commit in commits]


def _commit_folder(hub: Hub, publication: Publication) -> str:
    """Make one commit on main, after which main has exactly the files of the folder."""
    head, listed = read_main(hub, publication)
    if head and same_files(listed, publication.files):
        return head
    info = send_commit(hub, publication, head, listed)
    return check_commit(hub, publication, str(info.oid))


def read_head(hub: Hub, repo_id: str) -> str | None:
    """The newest commit of main; None in an empty repository."""
    return read_commit_of(hub, repo_id, "main")


def read_main(hub: Hub, publication: Publication) -> tuple[str | None, dict[str, HubFile]]:
    """The newest commit of main and its files."""
    head = read_head(hub, publication.repo_id)
    return head, list_files(hub, _revision_of(publication, head)) if head else {}


def send_commit(
    hub: Hub,
    publication: Publication,
    head: str | None,
    listed: Mapping[str, HubFile],
    revision: str = "main",
    create_pr: bool = False,
) -> huggingface_hub.CommitInfo:
    """Replace the `listed` files of `head`, the newest commit of a revision, by the folder's."""
    repo_id, files = publication.repo_id, publication.files
    # New for each attempt: an addition stores the state of main at its upload.
    additions = [
        huggingface_hub.CommitOperationAdd(name, str(path)) for name, path in files.items()
    ]
    deletions = [
        huggingface_hub.CommitOperationDelete(name)
        for name in listed.keys() - {_GITATTRIBUTES, *files}
    ]
    size = sum(path.stat().st_size for path in files.values())
    # Uploaded first: an upload may be repeated by the client, a commit may not.
    hub.call_once(
        f"uploading {publication.title!r} to {repo_id}",
        lambda api: api.preupload_lfs_files(
            repo_id, additions, revision=revision, free_memory=False, create_pr=create_pr
        ),
        size=size,
    )
    return hub.call_once(
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


def check_commit(hub: Hub, publication: Publication, commit: str) -> str:
    """Return the commit if it has the files of the folder, else raise IntegrityError."""
    if commit_matches(hub, publication, commit):
        return commit
    where = f"{publication.repo_id}@{publication.tag or commit[:12]}"
    raise IntegrityError(
        f"{where} already exists and has other bytes than {publication.folder} (commit {commit}).",
        "A published step never changes: choose another repository with --to or --push, or "
        "delete the tag yourself if it was a mistake.",
    )


def commit_matches(hub: Hub, publication: Publication, commit: str) -> bool:
    """Whether the commit has exactly the files of the folder."""
    return same_files(list_files(hub, _revision_of(publication, commit)), publication.files)


def same_files(listed: Mapping[str, HubFile], files: Mapping[str, Path]) -> bool:
    """Whether the listing has exactly these files and bytes, apart from .gitattributes."""
    same_names = listed.keys() - {_GITATTRIBUTES} == files.keys()
    return same_names and all(same_bytes(path, listed[name]) for name, path in files.items())


def _revision_of(publication: Publication, commit: str) -> Revision:
    return Revision(ModelRef(publication.repo_id, revision=publication.tag), commit)
