"""What a repository was made from, and which repositories of this Hub were made from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from hubmerge.manifest import Manifest
from hubmerge.server.http_errors import HttpError
from hubmerge.server.names import RepoId
from hubmerge.server.pages.cards import read_summary
from hubmerge.server.pages.steps import read_manifest
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import Snapshot
from hubmerge.source import Source

_MAX_SEARCHED = 2000
_MAX_SHOWN = 50


@dataclass(frozen=True)
class Parent:
    """A model that a repository was made from; `id` is None if it is a folder somewhere."""

    role: str
    label: str
    id: RepoId | None
    revision: str
    weight: float | None = None
    task: str = ""


@dataclass(frozen=True)
class Child:
    """A repository that was made from this one: in which way, and from which of its steps."""

    id: RepoId
    relation: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Children:
    """The repositories made from one; `is_cut` if there may be more."""

    items: tuple[Child, ...]
    is_cut: bool


def parents_of(manifest: Manifest | None, bases: Iterable[str]) -> list[Parent]:
    """The base and the experts of a manifest, or else the bases that the card names."""
    if manifest is None:
        return [Parent("base", name, _repo_id(name), "main") for name in bases]
    base = _parent("base", manifest.base)
    experts = [_parent("expert", e) for e in manifest.experts]
    return [base, *experts]


def find_children(repository: Repository, others: Iterable[Repository]) -> Children:
    """The repositories whose cards name this one as a base, of the first 2,000.

    Cards are not verified; those that cannot be read name nothing.
    """
    name, found = str(repository.id), list[Child]()
    for searched, other in enumerate(others):
        if searched == _MAX_SEARCHED or len(found) == _MAX_SHOWN:
            return Children(tuple(found), is_cut=True)
        snapshot = _main(other) if other.id != repository.id else None
        if snapshot and name in read_summary(snapshot).bases:
            found.append(_child(name, other.id, snapshot))
    return Children(tuple(found), is_cut=False)


@lru_cache(maxsize=1024)
def _child(name: str, id: RepoId, snapshot: Snapshot) -> Child:
    manifest, _ = read_manifest(snapshot)
    sources = [manifest.base, *manifest.experts] if manifest else []
    steps = [source.steps_text for source in sources if source.name == name and _has_step(source)]
    relation = manifest.noun if manifest else read_summary(snapshot).relation or "derived model"
    return Child(id, relation, tuple(dict.fromkeys(steps)))


def _has_step(source: Source) -> bool:
    return all(member.step is not None for member in source.members)


def _main(repository: Repository) -> Snapshot | None:
    try:
        return repository.snapshot("main")
    except HttpError:
        return None


def _parent(role: str, source: Source) -> Parent:
    label = source.label if not source.averaged else f"{source.name}, steps {source.steps_text}"
    id = None if source.is_local else _repo_id(source.name)
    weight = source.weight if role == "expert" else None
    # A commit never moves, while the label may name a branch.
    return Parent(role, label, id, source.sha, weight, source.task_name or "")


def _repo_id(name: str) -> RepoId | None:
    owner, _, rest = name.partition("/")
    id = RepoId("models", owner, rest)
    return None if id.problem else id
