"""What others made of a repository."""

from __future__ import annotations

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import check_repo_id

# Enough for a card, and one page of the Hub's.
_MOST = 100


def merges_of(hub: Hub, repo_id: str) -> tuple[str, ...]:
    """The repositories whose cards name this one as what they were merged from, by name.

    What they say is not proof. A name that is none is as good as not there.
    """
    wanted = f"base_model:merge:{repo_id}"
    names = hub.ask_once(
        f"looking for merges of {repo_id}",
        lambda api: [str(model.id) for model in api.list_models(filter=wanted, limit=_MOST)],
    )
    return tuple(sorted(name for name in names if _is_sound(name)))


def _is_sound(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
