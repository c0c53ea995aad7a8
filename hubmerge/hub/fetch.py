"""A pinned revision as a folder, every file checked against what the Hub says it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import RepoFile, hf_hub_download, snapshot_download

from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.hub.client import Hub, seconds_for
from hubmerge.refs import Revision, check_inner_path

# Weights, configs and words; never code, never a pickle.
ALLOWED = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.txt.gz", "*.model",
    "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class HubFile:
    """A file of a revision as the Hub lists it: size in bytes, SHA-256 if LFS, else git's SHA-1."""

    path: str
    size: int
    sha256: str | None
    blob: str


def list_files(hub: Hub, revision: Revision) -> dict[str, HubFile]:
    """Every file of a revision by its path; a path that leaves the repository is refused."""
    repo_id, sha, folder = str(revision.ref.repo_id), revision.sha, revision.ref.subfolder
    entries = hub.ask(
        f"listing {revision.label}",
        lambda api: list(api.list_repo_tree(repo_id, folder, revision=sha, recursive=True)),
    )
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {
        check_inner_path(file.path): HubFile(
            file.path, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id
        )
        for file in files
    }


def fetch(hub: Hub, revision: Revision) -> Path:
    """Download the allowed files of a revision once, check each, return their folder.

    Raises IntegrityError when a file's bytes are not those the Hub lists.
    """
    repo_id, inner = str(revision.ref.repo_id), revision.ref.subfolder
    listed = {
        path: file for path, file in list_files(hub, revision).items() if _wanted(path, inner)
    }
    size = sum(file.size for file in listed.values())
    snapshot = hub.ask(
        f"downloading {revision.label}",
        lambda api: snapshot_download(
            repo_id,
            revision=revision.sha,
            allow_patterns=[escape(path) for path in listed],
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
        ),
        deadline_s=seconds_for(size),
    )
    root = Path(str(snapshot))
    verify(root, listed, revision.label)
    return root / inner if inner else root


def _wanted(path: str, folder: str | None) -> bool:
    """Files of the folder itself only: a repository may hold every checkpoint-N below it."""
    parent, _, name = path.rpartition("/")
    return parent == (folder or "") and any(fnmatch(name, pattern) for pattern in ALLOWED)


def verify(root: Path, listed: Mapping[str, HubFile], label: str) -> None:
    """Check every listed file that lies under root; IntegrityError for the first wrong one."""
    for path, file in listed.items():
        here = root / path
        if here.is_file() and not same_bytes(here, file):
            # Gone, so that the next try fetches it anew: a wrong file is not worth keeping.
            here.resolve().unlink()
            here.unlink(missing_ok=True)
            raise IntegrityError(
                f"{path} of {label} is not what the Hub lists: its SHA differs.",
                "Run the command again to fetch it anew; if it differs again, trust neither.",
            )


def same_bytes(path: Path, file: HubFile) -> bool:
    """Whether the bytes at `path` are those of the listed file."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        return _digest(path, hashlib.sha256()) == file.sha256
    return _digest(path, hashlib.sha1(f"blob {file.size}\0".encode())) == file.blob


def read_file(hub: Hub, revision: Revision, name: str) -> bytes | None:
    """The bytes of one small file of a revision, None if it is not there."""
    inner = f"{revision.ref.subfolder}/{name}" if revision.ref.subfolder else name
    try:
        path = hub.ask(
            f"reading {inner} of {revision.label}",
            lambda api: hf_hub_download(
                str(revision.ref.repo_id),
                inner,
                revision=revision.sha,
                endpoint=hub.endpoint,
                token=hub.token or False,
                cache_dir=hub.cache,
            ),
        )
    except NotOnHub:
        return None
    return Path(str(path)).read_bytes()


def _digest(path: Path, hash_: hashlib._Hash) -> str:
    for block in _blocks(path):
        hash_.update(block)
    return hash_.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
