"""The names in a repository that speak of steps: tags, branches, checkpoint folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from huggingface_hub import RepoFolder

from hubmerge.errors import UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import (
    ModelRef,
    Revision,
    check_revision,
    is_sha,
    ordinal_of,
    series_of,
    step_of,
    step_tag,
)

# What Trainer's hub_strategy="all_checkpoints" leaves on main.
_CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,12}")


@dataclass(frozen=True)
class Refs:
    """The tags and branches of a repository, name -> commit."""

    tags: dict[str, str]
    branches: dict[str, str]


def list_refs(hub: Hub, repo_id: str) -> Refs:
    """Tags and branches of a repository; raises NotOnHub.

    A name or a commit that is not safe in URLs and paths is as good as not there.
    """
    refs = hub.ask(f"reading the tags of {repo_id}", lambda api: api.list_repo_refs(repo_id))
    return Refs(
        _sound((tag.name, tag.target_commit) for tag in refs.tags),
        _sound((branch.name, branch.target_commit) for branch in refs.branches),
    )


def named_steps(repo_id: str, refs: Refs) -> list[Revision]:
    """What tags and branches say of steps, tags first."""
    return [
        Revision(ModelRef(repo_id, revision=name), sha, step_of(name), found)
        for found, names in (("tag", refs.tags), ("branch", refs.branches))
        for name, sha in names.items()
        if step_of(name) is not None
    ]


def step_folders(hub: Hub, repo_id: str, refs: Refs) -> list[Revision]:
    """The checkpoint-N folders on main."""
    sha = refs.branches.get("main")
    if sha is None:
        return []
    entries = hub.ask_once(
        f"listing {repo_id}", lambda api: list(api.list_repo_tree(repo_id, revision=sha))
    )
    folders = [entry.path for entry in entries if isinstance(entry, RepoFolder)]
    return [
        Revision(ModelRef(repo_id, subfolder=name), sha, step_of(name), "folder", 0.9)
        for name in folders
        if _CHECKPOINT.fullmatch(name)
    ]


def counted_checkpoints(repo_id: str, refs: Refs) -> list[Revision]:
    """Tags and branches with the number of a checkpoint, which is not its step."""
    return [
        Revision(
            ModelRef(repo_id, revision=name), sha, None, found,
            note=f"the number {ordinal_of(name)} counts checkpoints: it need not be the step",
        )
        for found, names in (("tag", refs.tags), ("branch", refs.branches))
        for name, sha in names.items()
        if ordinal_of(name) is not None
    ]  # fmt: skip


def by_rank(found: Sequence[Revision]) -> tuple[Revision, ...]:
    """One revision per step of a series, or several of one kind, rising.

    `found` has the kinds by their rank: where two speak of one step, the first counts.
    """
    kinds: dict[tuple[str, int | None], str] = {}
    for one in found:
        kinds.setdefault(_step_of_series(one), one.found)
    kept = [one for one in found if kinds[_step_of_series(one)] == one.found]
    return tuple(sorted(kept, key=place))


def place(one: Revision) -> tuple[bool, int, str]:
    """Where a revision stands in the order of steps, what has none last."""
    name = str(one.ref.revision) if one.run is None else ""  # commits of a run are in order
    return one.step is None, one.step or ordinal_of(name) or 0, name


def is_plain(one: Revision) -> bool:
    """Whether the name says nothing but the step: step-000125 and global_step100 do."""
    name = str(one.ref.revision).removeprefix("global_")
    return re.sub(r"[-_]?0*(?=\d+$)", "", name) == step_tag(one.step or 0)


def _step_of_series(one: Revision) -> tuple[str, int | None]:
    name = one.ref.revision or ""
    return ("" if is_sha(name) else series_of(name)), one.step


def _sound(refs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: sha for name, sha in refs if is_sha(sha) and _is_sound(name)}


def _is_sound(name: str) -> bool:
    try:
        return bool(check_revision(name))
    except UsageError:
        return False
