"""Names become SHAs, once: tag, branch, commit, step, folder; everything after uses the SHA."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, either
from hubmerge.hub.client import Hub
from hubmerge.hub.commit_contents import examine
from hubmerge.hub.history import read_history
from hubmerge.hub.mining import mine, wanted
from hubmerge.hub.step_names import (
    Refs,
    by_rank,
    counted_checkpoints,
    is_plain,
    list_refs,
    named_steps,
    place,
    step_folders,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, is_sha, step_of

_SHORT_SHA = re.compile(r"[0-9a-f]{7,40}")
_PULL_REQUEST = re.compile(r"refs/pr/[1-9][0-9]{0,8}")
_SHOWN = 12
# What is less sure than this must be asked for by its commit.
_SURE_ENOUGH = 0.5


def list_steps(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """The step revisions of a repository by its tags, branches and checkpoint-N folders, rising.

    A tag counts before a branch, a branch before a folder, where they speak of the same step of the
    same series; stage1-step1000 and stage2-step1000 are two. Names alone are read, no history.
    """
    refs = list_refs(hub, repo_id)
    return by_rank([*named_steps(repo_id, refs), *step_folders(hub, repo_id, refs)])


def find_steps(hub: Hub, repo_id: str, progress: Progress) -> tuple[Revision, ...]:
    """Every step revision of a repository: by its names, and mined from the history of main.

    Run after run, rising; what has no step comes last: numbers that count checkpoints, epochs and
    ends of training. Contents are checked, weights are never fetched. Raises NotOnHub.
    """
    refs = list_refs(hub, repo_id)
    named, mined = named_steps(repo_id, refs), _mined(hub, repo_id, refs, progress)
    folders = [one for one in mined if one.found == "folder"]
    commits = [one for one in mined if one.found != "folder"]
    at = {one.sha for one in named}
    unnamed = [one for one in commits if one.ref.subfolder or one.sha not in at]
    found = [*by_rank([*named, *folders]), *counted_checkpoints(repo_id, refs), *unnamed]
    if len({one.run for one in unnamed}) == 1:
        return tuple(sorted(found, key=place))
    return tuple(sorted(found, key=lambda one: (one.run or 0, *place(one))))


def resolve(hub: Hub, ref: ModelRef) -> Revision:
    """The commit a Hub reference means now; raises NotOnHub that says which steps exist.

    A step that no tag, branch or folder names is looked for in the history of main; how sure it is
    its confidence says. Raises UsageError when a step is found in several places and none is the
    plain one.
    """
    repo_id, asked = str(ref.repo_id), ref.revision or "main"
    refs = list_refs(hub, repo_id)
    for found, names in (("tag", refs.tags), ("branch", refs.branches)):
        if asked in names:
            return Revision(ref, names[asked], step_of(asked), found)
    if _SHORT_SHA.fullmatch(asked) and (sha := _commit(hub, repo_id, asked, asked)):
        return Revision(ref, sha, None, "commit")
    if _PULL_REQUEST.fullmatch(asked) and (sha := _commit(hub, repo_id, asked)):
        return Revision(ref, sha, None, "branch")
    named = [*named_steps(repo_id, refs), *step_folders(hub, repo_id, refs)]
    revision = _by_name(ref, asked, named) or _by_history(hub, ref, asked, refs, named)
    if ref.subfolder is None:
        return revision
    inner = "/".join(filter(None, (revision.ref.subfolder, ref.subfolder)))
    return dataclasses.replace(revision, ref=dataclasses.replace(revision.ref, subfolder=inner))


def pin_dataset(hub: Hub, dataset_id: str, revision: str) -> str:
    """The commit of a data set's revision now."""
    info = hub.ask(
        f"reading data set {dataset_id}@{revision}",
        lambda api: api.dataset_info(dataset_id, revision=revision),
    )
    return _checked_sha(str(info.sha), dataset_id)


def _mined(hub: Hub, repo_id: str, refs: Refs, progress: Progress) -> list[Revision]:
    """What main and its history hold, its checkpoint folders included."""
    head = refs.branches.get("main")
    if head is None:
        return []
    commits = read_history(hub, repo_id, head, progress)
    return mine(repo_id, commits, examine(hub, repo_id, head, wanted(commits), progress))


def _by_name(ref: ModelRef, asked: str, named: Sequence[Revision]) -> Revision | None:
    """The folder or step of that name; a name that is nothing but the step wins over others."""
    for revision in named:
        if asked == revision.ref.subfolder:
            return revision
    step = step_of(asked)
    near = [one for one in by_rank(named) if step is not None and one.step == step]
    return _only(ref, [one for one in near if is_plain(one)] or near)


def _by_history(
    hub: Hub, ref: ModelRef, asked: str, refs: Refs, named: Sequence[Revision]
) -> Revision:
    """The step of that name in the history of main; raises NotOnHub."""
    repo_id, step, hint = str(ref.repo_id), step_of(asked), ""
    mined = [] if step is None else _mined(hub, repo_id, refs, lambda what, done, total: None)
    near = [one for one in mined if one.step == step]
    if found := _only(ref, [one for one in near if one.confidence >= _SURE_ENOUGH]):
        return found
    if near:
        hint = f"{typed(near[0])} is titled so, but other titles of its run are wrong."
    sure = [one for one in mined if one.step is not None and one.confidence >= _SURE_ENOUGH]
    raise NotOnHub(
        f"{repo_id} has no revision {asked!r}.", hint or _way_out(ref, by_rank([*named, *sure]))
    )


def _only(ref: ModelRef, near: Sequence[Revision]) -> Revision | None:
    if len(near) < 2:
        return near[0] if near else None
    raise UsageError(
        f"{ref.repo_id} has step {near[0].step} in several places.",
        f"Write {either([typed(one) for one in near])}.",
    )


def _way_out(ref: ModelRef, steps: Sequence[Revision]) -> str:
    if not steps:
        return f"It has no step revisions at all; `hubmerge steps {ref.repo_id}` looks for them."
    known = [str(revision.step) for revision in steps]
    if len(known) > _SHOWN:
        known[_SHOWN - 2 : -1] = ["..."]
    return f"It has the steps {', '.join(known)}: write {typed(steps[-1])}."


def typed(one: Revision) -> str:
    """What to type for a revision."""
    folder = one.found == "folder" and one.ref.subfolder
    named = one.ref.revision or folder or "main"
    if one.ref.revision and is_sha(named):
        return str(dataclasses.replace(one.ref, revision=one.sha[:12]))
    return f"{one.ref.repo_id}@{named}"


def _commit(hub: Hub, repo_id: str, asked: str, start: str = "") -> str | None:
    """The whole SHA of a commit, which has this `start`; None if there is no such commit."""
    what = f"reading {repo_id}@{asked}"
    try:
        info = hub.ask(what, lambda api: api.model_info(repo_id, revision=asked))
    except NotOnHub:
        return None
    sha = _checked_sha(str(info.sha), repo_id)
    return sha if sha.startswith(start) else None


def _checked_sha(sha: str, name: str) -> str:
    if not is_sha(sha):
        raise IntegrityError(f"The Hub names no commit for {name}: {sha[:40]!r}.")
    return sha
