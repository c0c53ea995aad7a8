"""What the files of a commit are, without asking the Hub: the client library's own record of it."""

from __future__ import annotations

import huggingface_hub

from hubmerge.errors import HubOffline
from hubmerge.hub.client import Hub
from hubmerge.refs import Revision


def list_cached_files(hub: Hub, revision: Revision) -> list[huggingface_hub.RepoFile]:
    """The files of a revision as they were listed when it was downloaded, by the full SHA.

    Raises HubOffline if it was never downloaded to this cache. All Hubs may share one, because a
    SHA names its content.
    """
    from huggingface_hub._tree_cache import read_tree_cache
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=str(revision.ref.repo_id), repo_type="model")
    listed = read_tree_cache(str(hub.cache / name), revision.sha)
    if listed is None:
        raise HubOffline(
            f"HF_HUB_OFFLINE is set, and {revision.label} is not in the cache {hub.cache}.",
            "Run the command once without HF_HUB_OFFLINE, which downloads it.",
        )
    prefix = f"{revision.ref.subfolder}/" if revision.ref.subfolder else ""
    return [
        huggingface_hub.RepoFile(  # type: ignore[no-untyped-call]
            path=path,
            size=entry.size,
            oid=entry.blob_id,
            lfs=entry.lfs_sha256
            and {"oid": entry.lfs_sha256, "size": entry.lfs_size, "pointerSize": 0},
        )
        for path, entry in listed.items()
        if path.startswith(prefix)
    ]
