"""Large files of a repository: downloaded to a folder, uploaded from it, always by their SHA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub

from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.hub.mirror_folder import LargeFile, MirrorFolder
from hubmerge.progress import ByteProgress, Progress
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.names import RepoId

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FILES_AT_ONCE = 32


def download_large_file(hub: Hub, id: RepoId, file: LargeFile, mirror: MirrorFolder) -> None:
    """Download a file into the folder; raises IntegrityError if its size or SHA differs."""
    path = hub.call(
        f"downloading {file.path} of {id}",
        lambda api: huggingface_hub.hf_hub_download(
            str(id),
            file.path,
            revision=file.commit,
            repo_type=id.kind.removesuffix("s"),
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=mirror.folder / "tmp" / "cache",
        ),
        size=file.size,
    )
    try:
        mirror.blobs.move_in(Path(path).resolve(), file.oid, file.size)
    except BadRequest as error:
        raise IntegrityError(
            f"{file.path} of {id} is not what commit {file.commit[:7]} names: its SHA differs.",
            "Run the command again; if the SHA still differs, do not trust this repository.",
        ) from error
    finally:
        Path(path).unlink(missing_ok=True)


def upload_large_files(
    hub: Hub, id: RepoId, files: Sequence[LargeFile], mirror: MirrorFolder, progress: Progress
) -> None:
    """Upload files of the folder; the client leaves out those that the Hub has."""
    bar = ByteProgress(progress, f"uploading {id}", sum(file.size for file in files))
    for start in range(0, len(files), _FILES_AT_ONCE):
        group = files[start : start + _FILES_AT_ONCE]
        paths = {file.oid: mirror.blobs.path(file.oid) for file in group}
        size = sum(file.size for file in group)
        hub.call(f"uploading large files of {id}", partial(_upload, id, paths), size=size)
        bar.add(size)


def _upload(id: RepoId, paths: dict[str, Path], api: HfApi) -> None:
    # Under names that every repository stores by LFS: nothing is committed, only contents count.
    additions = [
        huggingface_hub.CommitOperationAdd(f"{oid}.bin", str(path)) for oid, path in paths.items()
    ]
    api.preupload_lfs_files(str(id), additions, repo_type=id.kind.removesuffix("s"))
