"""The names in a repository that contain a step: tags, branches, checkpoint folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import huggingface_hub

from hubmerge.errors import NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import (
    ModelRef,
    Revision,
    check_revision,
    counted_in,
    is_sha,
    ordinal_of,
    series_of,
    step_of,
    step_tag,
)

# The folders that Trainer pushes with hub_strategy="all_checkpoints".
_CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,12}")


@dataclass(frozen=True)
class Refs:
    """The tags and branches of a repository, name -> commit."""

    tags: dict[str, str]
    branches: dict[str, str]


def list_refs(hub: Hub, repo_id: str) -> Refs:
    """Tags and branches of a repository; raises NotOnHub.

    Names and commits that are not safe in URLs and paths are left out.
    """
    refs = hub.call(f"reading the tags of {repo_id}", lambda api: api.list_repo_refs(repo_id))
    return Refs(
        _safe_refs((tag.name, tag.target_commit) for tag in refs.tags),
        _safe_refs((branch.name, branch.target_commit) for branch in refs.branches),
    )


def read_commit_of(hub: Hub, repo_id: str, name: str) -> str | None:
    """The commit of a branch or a tag, None if there is none; raises NotOnHub without repository.

    One small request, however many refs there are.
    """
    action = f"reading {repo_id}@{name}"
    try:
        info = hub.call(action, lambda api: api.model_info(repo_id, revision=name, expand=["sha"]))
    except NotOnHub as error:
        if isinstance(error.__cause__, huggingface_hub.errors.RevisionNotFoundError):
            return None
        raise
    return str(info.sha) if is_sha(str(info.sha)) else None


def named_steps(repo_id: str, refs: Refs, pattern: re.Pattern[str] | None = None) -> list[Revision]:
    """The tags and branches whose name contains a step, tags first.

    Different steps of one commit have a note: at most one of the names can be right.
    """
    found = [
        (name, sha, step, kind)
        for kind, names in (("tag", refs.tags), ("branch", refs.branches))
        for name, sha in names.items()
        if (step := step_of(name, pattern)) is not None
    ]
    steps_of: dict[str, set[int]] = {}
    for _, sha, step, _ in found:
        steps_of.setdefault(sha, set()).add(step)
    return [
        Revision(
            ModelRef(repo_id, revision=name),
            sha,
            step,
            kind,
            note=_same_commit(step, steps_of[sha]),
        )
        for name, sha, step, kind in found
    ]


def _same_commit(step: int, steps: set[int]) -> str:
    others = ", ".join(str(other) for other in sorted(steps - {step}))
    return f"its commit is also named as step {others}" if others else ""


def step_folders(hub: Hub, repo_id: str, refs: Refs) -> list[Revision]:
    """The checkpoint-N folders on main."""
    sha = refs.branches.get("main")
    if sha is None:
        return []
    entries = hub.call_once(
        f"listing {repo_id}", lambda api: list(api.list_repo_tree(repo_id, revision=sha))
    )
    folders = [entry.path for entry in entries if isinstance(entry, huggingface_hub.RepoFolder)]
    return [
        Revision(ModelRef(repo_id, subfolder=name), sha, step, "folder", 0.9)
        for name in folders
        if (step := step_of(name, hub.step_pattern)) is not None
        and (_CHECKPOINT.fullmatch(name) or (hub.step_pattern and hub.step_pattern.search(name)))
    ]


def counted_checkpoints(
    repo_id: str, refs: Refs, pattern: re.Pattern[str] | None = None
) -> list[Revision]:
    """The tags and branches whose name numbers checkpoints, epochs or tokens instead of steps."""
    return [
        Revision(
            ModelRef(repo_id, revision=name), sha, None, kind,
            note=f"the number {ordinal_of(name)} counts {counted_in(name)} and may differ from the "
            "step",
        )
        for kind, names in (("tag", refs.tags), ("branch", refs.branches))
        for name, sha in names.items()
        if step_of(name, pattern) is None and ordinal_of(name) is not None
    ]  # fmt: skip


def one_per_step(revisions: Sequence[Revision]) -> tuple[Revision, ...]:
    """One revision for each step of a series, in rising order; several of the same kind all stay.

    `revisions` has the kinds (`found`) by priority: for one step, the first kind wins.
    """
    kinds: dict[tuple[str, int | None], str] = {}
    for revision in revisions:
        kinds.setdefault(_series_and_step(revision), revision.origin)
    chosen = [item for item in revisions if kinds[_series_and_step(item)] == item.origin]
    return tuple(sorted(chosen, key=sort_key))


def sort_key(revision: Revision) -> tuple[bool, int, str]:
    """Sorts revisions by step; those without a step come last."""
    # The commits of a mined run are in order already: no name for them.
    name = str(revision.ref.revision) if revision.run is None else ""
    return revision.step is None, revision.step or ordinal_of(name) or 0, name


def is_plain_step_name(revision: Revision) -> bool:
    """Whether the name contains only the step, as step-000125 and global_step100 do."""
    name = str(revision.ref.revision).removeprefix("global_")
    return re.sub(r"[-_]?0*(?=\d+$)", "", name) == step_tag(revision.step or 0)


def _series_and_step(revision: Revision) -> tuple[str, int | None]:
    name = revision.ref.revision or ""
    return ("" if is_sha(name) else series_of(name)), revision.step


def _safe_refs(refs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: sha for name, sha in refs if is_sha(sha) and _is_safe_name(name)}


def _is_safe_name(name: str) -> bool:
    try:
        return bool(check_revision(name))
    except UsageError:
        return False
