"""Delete tags and branches, and for good the large files that only they had.

Every function may be called again: it is no error if the tag, branch or file is gone already.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.hf_api import LFSFileInfo

from hubmerge.errors import NotOnHub
from hubmerge.hub.client import Hub


def delete_ref(hub: Hub, repo_id: str, kind: Literal["tag", "branch"], name: str) -> None:
    """Delete a tag or a branch; its commit stays as long as another ref reaches it.

    The Hub cannot delete a ref on the condition that it still points to a given commit: read it
    directly before the call.
    """

    def delete(api: HfApi) -> None:
        if kind == "tag":
            api.delete_tag(repo_id, tag=name)
        else:
            api.delete_branch(repo_id, branch=name)

    try:
        hub.call(f"deleting {kind} {repo_id}@{name}", delete)
    except NotOnHub:
        return  # by somebody else, or by this process before a lost response


def list_all_refs(hub: Hub, repo_id: str) -> dict[str, str]:
    """Every ref by its full name (refs/tags/step64) -> commit.

    Includes pull requests and names that hubmerge does not accept: they keep files alive too.
    """
    refs = hub.call(
        f"reading the refs of {repo_id}",
        lambda api: api.list_repo_refs(repo_id, include_pull_requests=True),
    )
    all_refs = chain(refs.tags, refs.branches, refs.converts, refs.pull_requests or ())
    return {ref.ref: ref.target_commit for ref in all_refs}


def purge(hub: Hub, repo_id: str, contents: Collection[str]) -> int:
    """Delete large files for good, by their SHA-256, and return the number of bytes freed.

    History is not rewritten: every later commit would get another SHA, which breaks locks. The
    commits that list these files stay, but they can no longer be loaded.
    """
    files = [file for file in _list_lfs_files(hub, repo_id) if file.file_oid in contents]
    if not files:
        return 0
    hub.call(
        f"deleting large files of {repo_id}",
        lambda api: api.permanently_delete_lfs_files(repo_id, files, rewrite_history=False),
    )
    remaining = {file.file_oid for file in _list_lfs_files(hub, repo_id)}
    return sum(file.size for file in files if file.file_oid not in remaining)


def _list_lfs_files(hub: Hub, repo_id: str) -> list[LFSFileInfo]:
    return hub.call_once(
        f"listing the large files of {repo_id}", lambda api: list(api.list_lfs_files(repo_id))
    )
