"""Models that others made from a repository."""

from __future__ import annotations

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import check_repo_id

# Enough for a card, and one page of the Hub's list.
_MAX_MERGES = 100


def find_merges(hub: Hub, repo_id: str) -> tuple[str, ...]:
    """The repositories whose cards name this one as a base of their merge, sorted by name.

    The cards are not verified. Invalid repository names are left out.
    """
    tag = f"base_model:merge:{repo_id}"
    names = hub.call_once(
        f"looking for merges of {repo_id}",
        lambda api: [str(model.id) for model in api.list_models(filter=tag, limit=_MAX_MERGES)],
    )
    return tuple(sorted(name for name in names if _is_repo_id(name)))


def _is_repo_id(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
