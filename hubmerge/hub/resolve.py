"""Names become SHAs, once: tag, branch, commit, step, folder; everything after uses the SHA."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from huggingface_hub import RepoFolder

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, either
from hubmerge.hub.client import Hub
from hubmerge.refs import ModelRef, Revision, check_revision, is_sha, step_of, step_tag

# What Trainer's hub_strategy="all_checkpoints" leaves on main.
_CHECKPOINT = re.compile(r"checkpoint-\d{1,12}")
_SHORT_SHA = re.compile(r"[0-9a-f]{7,40}")
_SHOWN = 12


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


def list_steps(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """The step revisions of a repository by its tags, branches and checkpoint-N folders, rising.

    A tag counts before a branch, a branch before a folder, where they speak of the same step. Two
    branches may: stage1-step1000 and stage2-step1000.
    """
    return _steps(_all_steps(hub, repo_id, list_refs(hub, repo_id)))


def resolve(hub: Hub, ref: ModelRef) -> Revision:
    """The commit a Hub reference means now; raises NotOnHub that says which steps exist.

    Raises UsageError when a step is found under several names and none is the plain one.
    """
    repo_id, asked = str(ref.repo_id), ref.revision or "main"
    refs = list_refs(hub, repo_id)
    for found, names in (("tag", refs.tags), ("branch", refs.branches)):
        if asked in names:
            return Revision(ref, names[asked], step_of(asked), found)
    if _SHORT_SHA.fullmatch(asked) and (sha := _commit(hub, repo_id, asked)):
        return Revision(ref, sha, None, "commit")
    steps = _all_steps(hub, repo_id, refs)
    revision = _by_step(ref, asked, steps)
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


def _by_step(ref: ModelRef, asked: str, steps: list[Revision]) -> Revision:
    """The folder or step of that name; a name that is nothing but the step wins over others."""
    for revision in steps:
        if asked == revision.ref.subfolder:
            return revision
    wanted = step_of(asked)
    near = [one for one in _steps(steps) if wanted is not None and one.step == wanted]
    plain = [one for one in near if _is_plain(one)]
    if len(plain or near) == 1:
        return (plain or near)[0]
    if near:
        names = [f"{ref.repo_id}@{one.ref.revision}" for one in near]
        raise UsageError(
            f"{ref.repo_id} has step {wanted} in several places.", f"Write {either(names)}."
        )
    raise NotOnHub(f"{ref.repo_id} has no revision {asked!r}.", _way_out(ref, _steps(steps)))


def _way_out(ref: ModelRef, steps: tuple[Revision, ...]) -> str:
    if not steps:
        return f"It has no step revisions at all; `hubmerge steps {ref.repo_id}` looks for them."
    known = [str(revision.step) for revision in steps]
    if len(known) > _SHOWN:
        known[_SHOWN - 2 : -1] = ["..."]
    name = steps[-1].ref.revision or steps[-1].ref.subfolder
    return f"It has the steps {', '.join(known)}: write {ref.repo_id}@{name}."


def _is_plain(revision: Revision) -> bool:
    """Whether the name says nothing but the step: step-000125 and global_step100 do."""
    name = str(revision.ref.revision).removeprefix("global_")
    return re.sub(r"[-_]?0*(?=\d+$)", "", name) == step_tag(revision.step or 0)


def _steps(found: list[Revision]) -> tuple[Revision, ...]:
    """One revision per step, or several of one kind; `found` has the kinds by their rank."""
    kinds: dict[int, str] = {}
    for revision in found:
        kinds.setdefault(revision.step or 0, revision.found)
    kept = [one for one in found if kinds[one.step or 0] == one.found]
    return tuple(sorted(kept, key=lambda one: (one.step or 0, str(one.ref.revision))))


def _all_steps(hub: Hub, repo_id: str, refs: Refs) -> list[Revision]:
    tags = _named(repo_id, refs.tags, "tag")
    branches = _named(repo_id, refs.branches, "branch")
    return [*tags, *branches, *_folders(hub, repo_id, refs)]


def _named(repo_id: str, names: Mapping[str, str], found: str) -> list[Revision]:
    return [
        Revision(ModelRef(repo_id, revision=name), sha, step_of(name), found)
        for name, sha in names.items()
        if step_of(name) is not None
    ]


def _folders(hub: Hub, repo_id: str, refs: Refs) -> list[Revision]:
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


def _commit(hub: Hub, repo_id: str, asked: str) -> str | None:
    """The whole SHA of a commit, None if the repository has no such commit."""
    what = f"reading {repo_id}@{asked}"
    try:
        info = hub.ask(what, lambda api: api.model_info(repo_id, revision=asked))
    except NotOnHub:
        return None
    sha = _checked_sha(str(info.sha), repo_id)
    return sha if sha.startswith(asked) else None


def _checked_sha(sha: str, name: str) -> str:
    if not is_sha(sha):
        raise IntegrityError(f"The Hub names no commit for {name}: {sha[:40]!r}.")
    return sha


def _sound(refs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: sha for name, sha in refs if is_sha(sha) and _is_sound(name)}


def _is_sound(name: str) -> bool:
    try:
        return bool(check_revision(name))
    except UsageError:
        return False
