"""The pull request in which the Hub's converter bot offers the weights as safetensors."""

from __future__ import annotations

from itertools import islice

from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.refs import ModelRef, Revision

_BOTS = ("SFconvertbot", "safetensors-bot")
_MAX_SEARCHED = 20


def find_converted(hub: Hub, repo_id: str) -> str | None:
    """The newest ref of the bot with safetensors, such as `refs/pr/1`; None if there is none."""
    refs = (ref for bot in _BOTS for ref in _refs_of(hub, repo_id, bot))
    return next((ref for ref in refs if _has_safetensors(hub, repo_id, ref)), None)


def _refs_of(hub: Hub, repo_id: str, author: str) -> list[str]:
    """The refs of an author's newest pull requests."""
    pulls = hub.call(
        f"reading the pull requests of {repo_id}",
        lambda api: list(
            islice(
                api.get_repo_discussions(repo_id, author=author, discussion_type="pull_request"),
                _MAX_SEARCHED,
            )
        ),
    )
    return [str(pull.git_reference) for pull in pulls if pull.git_reference]


def _has_safetensors(hub: Hub, repo_id: str, ref: str) -> bool:
    try:
        files = list_files(hub, Revision(ModelRef(repo_id, revision=ref), ref))
    except IntegrityError:
        return False
    return any(path.endswith(".safetensors") for path in files)
