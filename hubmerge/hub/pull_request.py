"""Propose a folder as main of a repository: one pull request, however often it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice

import huggingface_hub

from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import no_token_error
from hubmerge.hub.fetch import list_files
from hubmerge.hub.publish import (
    Publication,
    check_commit,
    commit_matches,
    ensure_once,
    newest_commits,
    read_head,
    read_main,
    same_files,
    send_commit,
)
from hubmerge.refs import ModelRef, Revision

# The newest open pull requests that are compared with the folder.
_MAX_SEARCHED = 50


@dataclass(frozen=True)
class PullRequest:
    """The commit that has the folder, and the URL of its pull request, None if it is on main."""

    commit: str
    url: str | None


def check_can_open_pull_request(hub: Hub, repo_id: str) -> None:
    """Raise NoAccess or NotOnHub if no pull request can be opened to the repository."""
    action = f"opening a pull request to {repo_id}"
    if not hub.token:
        raise no_token_error(action)
    hub.call(action, lambda api: api.auth_check(repo_id))


def open_pull_request(hub: Hub, publication: Publication) -> PullRequest:
    """Open a pull request after which main has exactly the files of the folder.

    If main or an open pull request has these files already, it is returned and nothing is sent. An
    open pull request with the same title and recipe but another card or lock is updated. Tags are
    not part of it: they are set when it has been merged.
    """
    return ensure_once(
        lambda: _find_existing(hub, publication),
        lambda: _open_or_update(hub, publication),
        partial(read_head, hub, publication.repo_id),
    )


def _find_existing(hub: Hub, publication: Publication) -> PullRequest | None:
    """Main or an open pull request, if it has exactly these files."""
    head, listed = read_main(hub, publication)
    if head and same_files(listed, publication.files):
        return PullRequest(head, None)
    for pull, commit in _list_open(hub, publication.repo_id):
        if commit_matches(hub, publication, commit):
            return PullRequest(commit, pull.url)
    return None


def _open_or_update(hub: Hub, publication: Publication) -> PullRequest:
    recipe = f"hubmerge-recipe: {publication.trailer.get('recipe')}"
    for pull, commit in _list_open(hub, publication.repo_id):
        ref = str(pull.git_reference)
        ((_, description),) = newest_commits(hub, publication.repo_id, ref, 1)
        if pull.title == publication.title and recipe in description.splitlines():
            listed = list_files(hub, Revision(ModelRef(publication.repo_id), commit))
            info = send_commit(hub, publication, commit, listed, revision=ref)
            return PullRequest(check_commit(hub, publication, str(info.oid)), pull.url)
    head, listed = read_main(hub, publication)
    info = send_commit(hub, publication, head, listed, create_pr=True)
    return PullRequest(check_commit(hub, publication, str(info.oid)), info.pr_url)


def _list_open(hub: Hub, repo_id: str) -> list[tuple[huggingface_hub.Discussion, str]]:
    """The open pull requests, newest first, each with its newest commit."""
    action = f"reading the pull requests of {repo_id}"
    refs = hub.call(action, lambda api: api.list_repo_refs(repo_id, include_pull_requests=True))
    heads = {pull.ref: pull.target_commit for pull in refs.pull_requests or ()}
    pulls = hub.call(
        action,
        lambda api: list(
            islice(
                api.get_repo_discussions(
                    repo_id, discussion_type="pull_request", discussion_status="open"
                ),
                _MAX_SEARCHED,
            )
        ),
    )
    return [(pull, heads[str(pull.git_reference)]) for pull in pulls if pull.git_reference in heads]
