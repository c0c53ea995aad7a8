"""Resolve names (tag, branch, commit, step, folder) to SHAs, once; later code uses the SHA."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, join_with_or
from hubmerge.hub.client import Hub
from hubmerge.hub.commit_contents import read_contents
from hubmerge.hub.history import read_history
from hubmerge.hub.mining import commits_to_read, mine_revisions
from hubmerge.hub.step_names import (
    Refs,
    counted_checkpoints,
    is_plain_step_name,
    list_refs,
    named_steps,
    one_per_step,
    sort_key,
    step_folders,
)
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, is_sha, step_of

_SHORT_SHA = re.compile(r"[0-9a-f]{7,40}")
_PULL_REQUEST = re.compile(r"refs/pr/[1-9][0-9]{0,8}")
_MAX_SHOWN_STEPS = 12
# A step with less confidence is not found by its number, only by its commit.
_MIN_CONFIDENCE = 0.5


def list_steps(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """The step revisions of a repository by its tags, branches and checkpoint-N folders, rising.

    For the same step of the same series, a tag wins over a branch and a branch over a folder;
    stage1-step1000 and stage2-step1000 are different series. The history is not read.
    """
    refs = list_refs(hub, repo_id)
    return one_per_step(
        [*named_steps(repo_id, refs, hub.step_pattern), *step_folders(hub, repo_id, refs)]
    )


def find_steps(hub: Hub, repo_id: str, progress: Progress) -> tuple[Revision, ...]:
    """Every step revision of a repository: by its names, and mined from the history of main.

    Run after run, in rising order; revisions without a step come last: numbered checkpoints, epochs
    and ends of training. Contents are checked, weights are never downloaded. Raises NotOnHub.
    """
    refs = list_refs(hub, repo_id)
    named, mined = (
        named_steps(repo_id, refs, hub.step_pattern),
        _mine_main(hub, repo_id, refs, progress),
    )
    folders = [revision for revision in mined if revision.origin == "folder"]
    commits = [revision for revision in mined if revision.origin != "folder"]
    named_shas = {revision.sha for revision in named}
    unnamed = [
        revision for revision in commits if revision.ref.subfolder or revision.sha not in named_shas
    ]
    revisions = [
        *one_per_step([*named, *folders]),
        *counted_checkpoints(repo_id, refs, hub.step_pattern),
        *unnamed,
    ]
    if len({revision.run for revision in unnamed}) == 1:
        return tuple(sorted(revisions, key=sort_key))
    return tuple(sorted(revisions, key=lambda item: (item.run or 0, *sort_key(item))))


def resolve(hub: Hub, ref: ModelRef) -> Revision:
    """The commit that a Hub reference means now; raises NotOnHub with the steps that exist.

    A step that no tag, branch or folder names is searched in the history of main, and its
    `confidence` is below 1. Raises UsageError if several revisions have the step and none is named
    by the step alone. Offline, a full SHA is taken as it is, and nothing else is resolved.
    """
    repo_id, name = str(ref.repo_id), ref.revision or "main"
    if hub.is_offline and is_sha(name):
        return Revision(ref, name, None, "commit")
    refs = list_refs(hub, repo_id)
    for kind, names in (("tag", refs.tags), ("branch", refs.branches)):
        if name in names:
            return Revision(ref, names[name], step_of(name, hub.step_pattern), kind)
    if _SHORT_SHA.fullmatch(name) and (sha := _fetch_sha(hub, repo_id, name, name)):
        return Revision(ref, sha, None, "commit")
    if _PULL_REQUEST.fullmatch(name) and (sha := _fetch_sha(hub, repo_id, name)):
        return Revision(ref, sha, None, "branch")
    named = [*named_steps(repo_id, refs, hub.step_pattern), *step_folders(hub, repo_id, refs)]
    revision = _find_by_name(ref, name, named) or _find_in_history(hub, ref, name, refs, named)
    if ref.subfolder is None:
        return revision
    inner = "/".join(filter(None, (revision.ref.subfolder, ref.subfolder)))
    return dataclasses.replace(revision, ref=dataclasses.replace(revision.ref, subfolder=inner))


def pin_dataset(hub: Hub, dataset_id: str, revision: str) -> str:
    """The commit that a revision of a data set means now."""
    if hub.is_offline and is_sha(revision):
        return revision
    info = hub.call(
        f"reading data set {dataset_id}@{revision}",
        lambda api: api.dataset_info(dataset_id, revision=revision),
    )
    return _check_sha(str(info.sha), dataset_id)


def _mine_main(hub: Hub, repo_id: str, refs: Refs, progress: Progress) -> list[Revision]:
    """The revisions in main and its history, including its checkpoint folders."""
    head = refs.branches.get("main")
    if head is None:
        return []
    commits = read_history(hub, repo_id, head, progress)
    return mine_revisions(
        repo_id, commits, read_contents(hub, repo_id, head, commits_to_read(commits), progress)
    )


def _find_by_name(ref: ModelRef, name: str, named: Sequence[Revision]) -> Revision | None:
    """The folder or step of that name; a revision that is named by the step alone wins."""
    for revision in named:
        if name == revision.ref.subfolder:
            return revision
    step = step_of(name)
    matches = [item for item in one_per_step(named) if step is not None and item.step == step]
    return _only_match(ref, [item for item in matches if is_plain_step_name(item)] or matches)


def _find_in_history(
    hub: Hub, ref: ModelRef, name: str, refs: Refs, named: Sequence[Revision]
) -> Revision:
    """The step of that name in the history of main; raises NotOnHub."""
    repo_id, step, hint = str(ref.repo_id), step_of(name), ""
    mined = [] if step is None else _mine_main(hub, repo_id, refs, lambda what, done, total: None)
    matches = [item for item in mined if item.step == step]
    certain = [
        item for item in mined if item.step is not None and item.confidence >= _MIN_CONFIDENCE
    ]
    if match := _only_match(ref, [item for item in certain if item.step == step]):
        return match
    if matches:
        hint = (
            f"The title of {format_ref(matches[0])} names this step, but other titles of its run "
            "are wrong."
        )
    raise NotOnHub(
        f"{repo_id} has no revision {name!r}.",
        hint or _steps_hint(ref, one_per_step([*named, *certain])),
    )


def _only_match(ref: ModelRef, matches: Sequence[Revision]) -> Revision | None:
    if len(matches) < 2:
        return matches[0] if matches else None
    raise UsageError(
        f"{ref.repo_id} has several revisions of step {matches[0].step}.",
        f"Write {join_with_or([format_ref(match) for match in matches])}.",
    )


def _steps_hint(ref: ModelRef, steps: Sequence[Revision]) -> str:
    if not steps:
        return f"No name in it has a step; `hubmerge steps {ref.repo_id}` also reads its history."
    shown = [str(revision.step) for revision in steps]
    if len(shown) > _MAX_SHOWN_STEPS:
        shown[_MAX_SHOWN_STEPS - 2 : -1] = ["..."]
    asked = step_of(ref.revision or "")
    nearest = min(
        reversed(steps), key=lambda item: 0 if asked is None else abs((item.step or 0) - asked)
    )
    return f"It has the steps {', '.join(shown)}: write {format_ref(nearest)}."


def format_ref(revision: Revision) -> str:
    """The reference to type for a revision."""
    folder = revision.origin == "folder" and revision.ref.subfolder
    name = revision.ref.revision or folder or "main"
    if revision.ref.revision and is_sha(name):
        return str(dataclasses.replace(revision.ref, revision=revision.sha[:12]))
    return f"{revision.ref.repo_id}@{name}"


def _fetch_sha(hub: Hub, repo_id: str, revision: str, prefix: str = "") -> str | None:
    """The full SHA of a revision, if it exists and the SHA has the prefix; else None."""
    action = f"reading {repo_id}@{revision}"
    try:
        info = hub.call(action, lambda api: api.model_info(repo_id, revision=revision))
    except NotOnHub:
        return None
    sha = _check_sha(str(info.sha), repo_id)
    return sha if sha.startswith(prefix) else None


def _check_sha(sha: str, name: str) -> str:
    if not is_sha(sha):
        raise IntegrityError(f"The Hub returned an invalid commit for {name}: {sha[:40]!r}.")
    return sha
