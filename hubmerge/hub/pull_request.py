"""A folder proposed as main of a repository: one pull request, however often it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from huggingface_hub import Discussion

from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import no_token
from hubmerge.hub.fetch import list_files
from hubmerge.hub.publish import (
    Publication,
    checked,
    holds,
    main_of,
    newest,
    same_files,
    send_commit,
    settle,
)
from hubmerge.refs import ModelRef, Revision

# Of those that are open, the youngest: more would be read for nothing.
_SEARCHED = 50


@dataclass(frozen=True)
class Proposal:
    """The commit that holds the folder, and the address of its pull request; None for main."""

    commit: str
    url: str | None


def check_proposable(hub: Hub, repo_id: str) -> None:
    """Raise NoAccess or NotOnHub unless there is a repository to open a pull request to."""
    what = f"opening a pull request to {repo_id}"
    if not hub.token:
        raise no_token(what)
    hub.ask(what, lambda api: api.auth_check(repo_id))


def propose(hub: Hub, publication: Publication) -> Proposal:
    """Open a pull request that makes main the folder and nothing else.

    Where main is just that already, or a pull request that is open would make it so, that is told
    and nothing sent. An open one of the same title and recipe, whose card or lock tell more or
    less, is brought up to date. A tag is not proposed: it is made of what was accepted.
    """
    return settle(lambda: _standing(hub, publication), lambda: _send(hub, publication))


def _standing(hub: Hub, publication: Publication) -> Proposal | None:
    """Whatever holds just these files: main, or an open pull request."""
    head, listed = main_of(hub, publication)
    if head and same_files(listed, publication.files):
        return Proposal(head, None)
    for pull, commit in _opened(hub, publication.repo_id):
        if holds(hub, publication, commit):
            return Proposal(commit, pull.url)
    return None


def _send(hub: Hub, publication: Publication) -> Proposal:
    recipe = f"hubmerge-recipe: {publication.trailer.get('recipe')}"
    for pull, commit in _opened(hub, publication.repo_id):
        ref = str(pull.git_reference)
        ((_, said),) = newest(hub, publication.repo_id, ref, 1)
        if pull.title == publication.title and recipe in said.splitlines():
            listed = list_files(hub, Revision(ModelRef(publication.repo_id), commit))
            info = send_commit(hub, publication, commit, listed, revision=ref)
            return Proposal(checked(hub, publication, str(info.oid)), pull.url)
    head, listed = main_of(hub, publication)
    info = send_commit(hub, publication, head, listed, create_pr=True)
    return Proposal(checked(hub, publication, str(info.oid)), info.pr_url)


def _opened(hub: Hub, repo_id: str) -> list[tuple[Discussion, str]]:
    """The open pull requests, the youngest first, each with its newest commit."""
    what = f"reading the pull requests of {repo_id}"
    refs = hub.ask(what, lambda api: api.list_repo_refs(repo_id, include_pull_requests=True))
    heads = {pull.ref: pull.target_commit for pull in refs.pull_requests or ()}
    found = hub.ask(
        what,
        lambda api: list(
            islice(
                api.get_repo_discussions(
                    repo_id, discussion_type="pull_request", discussion_status="open"
                ),
                _SEARCHED,
            )
        ),
    )
    return [(pull, heads[str(pull.git_reference)]) for pull in found if pull.git_reference in heads]
