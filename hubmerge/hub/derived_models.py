"""Models that others made from a repository."""

from __future__ import annotations

from dataclasses import dataclass

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import check_repo_id

# Enough for a card, and one page of the Hub's list.
_MAX_MERGES = 100
_MAX_DERIVED = 2000


@dataclass(frozen=True)
class DerivedModels:
    """Repositories made from another one; `is_cut` is true if the Hub may list more of them."""

    names: tuple[str, ...]
    is_cut: bool


def find_merges(hub: Hub, repo_id: str) -> tuple[str, ...]:
    """The repositories whose cards name this one as a base of their merge, sorted by name.

    The cards are not verified. Invalid repository names are left out.
    """
    return _repo_ids(_list_tagged(hub, repo_id, f"base_model:merge:{repo_id}", _MAX_MERGES))


def find_derived(hub: Hub, repo_id: str) -> DerivedModels:
    """The repositories whose cards name this one as a base in any relation, without itself."""
    names = _list_tagged(hub, repo_id, f"base_model:{repo_id}", _MAX_DERIVED)
    others = tuple(name for name in _repo_ids(names) if name != repo_id)
    return DerivedModels(others, len(names) >= _MAX_DERIVED)


def _list_tagged(hub: Hub, repo_id: str, tag: str, limit: int) -> list[str]:
    return hub.call_once(
        f"looking for merges of {repo_id}",
        lambda api: [str(model.id) for model in api.list_models(filter=tag, limit=limit)],
    )


def _repo_ids(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if _is_repo_id(name)))


def _is_repo_id(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
