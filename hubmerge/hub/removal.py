"""Taking away what a plan drops: tags and branches, and for good the contents that only they held.

Everything here may be done twice: what is gone already is as it should be.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.hf_api import LFSFileInfo

from hubmerge.errors import NotOnHub
from hubmerge.hub.client import Hub


def delete_name(hub: Hub, repo_id: str, kind: Literal["tag", "branch"], name: str) -> None:
    """Delete a tag or a branch; its commit stays for as long as something leads to it.

    A Hub cannot be asked to delete a name only where it still points: look right before.
    """

    def question(api: HfApi) -> None:
        if kind == "tag":
            api.delete_tag(repo_id, tag=name)
        else:
            api.delete_branch(repo_id, branch=name)

    try:
        hub.ask(f"deleting {kind} {repo_id}@{name}", question)
    except NotOnHub:
        return  # by whoever was quicker, or by ourselves before a lost answer


def list_every_ref(hub: Hub, repo_id: str) -> dict[str, str]:
    """Every ref by its full name (refs/tags/step64) -> commit.

    Also those of pull requests, and names that we would not work with: they hold files too.
    """
    refs = hub.ask(
        f"reading the refs of {repo_id}",
        lambda api: api.list_repo_refs(repo_id, include_pull_requests=True),
    )
    every = chain(refs.tags, refs.branches, refs.converts, refs.pull_requests or ())
    return {ref.ref: ref.target_commit for ref in every}


def purge(hub: Hub, repo_id: str, contents: Collection[str]) -> int:
    """Delete large files for good, by their SHA-256, and return the bytes that are freed by it.

    History is not rewritten: that would give every later commit another SHA, and break every lock.
    The commits that list these files stay, and can no longer be loaded.
    """
    wanted = [file for file in _stored(hub, repo_id) if file.file_oid in contents]
    if not wanted:
        return 0
    hub.ask(
        f"deleting large files of {repo_id}",
        lambda api: api.permanently_delete_lfs_files(repo_id, wanted, rewrite_history=False),
    )
    left = {file.file_oid for file in _stored(hub, repo_id)}
    return sum(file.size for file in wanted if file.file_oid not in left)


def _stored(hub: Hub, repo_id: str) -> list[LFSFileInfo]:
    return hub.ask_once(
        f"listing the large files of {repo_id}", lambda api: list(api.list_lfs_files(repo_id))
    )
