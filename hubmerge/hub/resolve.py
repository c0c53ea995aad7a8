"""Names become SHAs, once: tag, branch, step, folder; everything after uses the SHA."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hubmerge.errors import NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import ModelRef, Revision, is_sha, step_of, step_tag


@dataclass(frozen=True)
class Refs:
    """The tags and branches of a repository, name -> commit."""

    tags: dict[str, str]
    branches: dict[str, str]


def list_refs(hub: Hub, repo_id: str) -> Refs:
    """Tags and branches of a repository; raises NotOnHub."""
    refs = hub.ask(f"reading the tags of {repo_id}", lambda api: api.list_repo_refs(repo_id))
    return Refs(
        {tag.name: tag.target_commit for tag in refs.tags},
        {branch.name: branch.target_commit for branch in refs.branches},
    )


def list_steps(hub: Hub, repo_id: str) -> tuple[Revision, ...]:
    """The step revisions of a repository by its tags, branches and checkpoint-N folders, rising.

    A tag counts before a branch, a branch before a folder, where they speak of the same step.
    """
    refs = list_refs(hub, repo_id)
    found: dict[int, Revision] = {}
    for revision in (*_folders(hub, repo_id, refs), *_named(repo_id, refs)):
        if revision.step is not None:
            found[revision.step] = revision
    last = max(found, default=None)
    return tuple(dataclasses.replace(found[step], last_step=last) for step in sorted(found))


def resolve(hub: Hub, ref: ModelRef) -> Revision:
    """The commit a Hub reference means now; raises NotOnHub that says which steps exist."""
    repo_id, asked = str(ref.repo_id), ref.revision or "main"
    refs = list_refs(hub, repo_id)
    for found, names in (("tag", refs.tags), ("branch", refs.branches)):
        if asked in names:
            return Revision(ref, names[asked], step_of(asked), found)
    if is_sha(asked):
        info = hub.ask(f"reading {ref}", lambda api: api.model_info(repo_id, revision=asked))
        return Revision(ref, str(info.sha), None, "commit")
    return _by_step(hub, ref, asked, list_steps(hub, repo_id))


def pin_dataset(hub: Hub, dataset_id: str, revision: str) -> str:
    """The commit of a data set's revision now."""
    info = hub.ask(
        f"reading data set {dataset_id}@{revision}",
        lambda api: api.dataset_info(dataset_id, revision=revision),
    )
    return str(info.sha)


def _by_step(hub: Hub, ref: ModelRef, asked: str, steps: tuple[Revision, ...]) -> Revision:
    wanted = step_of(asked)
    for revision in steps:
        if wanted is not None and revision.step == wanted:
            return revision
    known = [str(revision.step) for revision in steps]
    raise NotOnHub(
        f"{ref.repo_id} has no revision {asked!r}.",
        f"It has the steps {', '.join(known)}: write {ref.repo_id}@{step_tag(int(known[-1]))}."
        if known
        else f"It has no step revisions at all; `hubmerge steps {ref.repo_id}` looks for them.",
    )


def _named(repo_id: str, refs: Refs) -> list[Revision]:
    """Branches first, so that a tag of the same step replaces them."""
    revisions = []
    for found, names in (("branch", refs.branches), ("tag", refs.tags)):
        for name, sha in names.items():
            ref = ModelRef(repo_id=repo_id, revision=name)
            revisions.append(Revision(ref, sha, step_of(name), found))
    return revisions


def _folders(hub: Hub, repo_id: str, refs: Refs) -> list[Revision]:
    """checkpoint-N folders on main, as Trainer's hub_strategy="all_checkpoints" leaves them."""
    if "main" not in refs.branches:
        return []
    sha = refs.branches["main"]
    entries = hub.ask(
        f"listing {repo_id}", lambda api: list(api.list_repo_tree(repo_id, revision=sha))
    )
    names = [entry.path for entry in entries if entry.path.startswith("checkpoint-")]
    return [
        Revision(ModelRef(repo_id=repo_id, subfolder=name), sha, step_of(name), "folder", 0.9)
        for name in names
    ]


def only_hub(ref: ModelRef) -> str:
    """The repository id of a Hub reference; raises UsageError for a local folder."""
    if ref.repo_id is None:
        raise UsageError(f"{ref} is a folder, not a repository.", "Write owner/name.")
    return ref.repo_id
