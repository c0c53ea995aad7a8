"""A pinned revision as a folder, every file checked against what the Hub says it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import RepoFile, hf_hub_download, snapshot_download

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.refs import Revision, check_inner_path

# Weights, configs and words; never code, never a pickle.
ALLOWED = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.gz", "*.model",
    "chat_template.jinja", "README.md", "hubmerge.lock",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A folder with such a file is a mixture, and its experts lie in folders of this folder.
_MIXTURE, _EXPERTS = "moe_config.json", "experts"
# A manifest is some kilobytes; whoever publishes more wants to fill our memory.
_LARGEST_READ = 16 << 20


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
    entries = hub.ask_once(
        f"listing {revision.label}",
        lambda api: list(api.list_repo_tree(repo_id, folder, revision=sha, recursive=True)),
    )
    return {
        entry.path: _hub_file(entry, revision.label)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def fetch(hub: Hub, revision: Revision) -> Path:
    """Download the `wanted` files of a revision's folder once, check each, return the folder.

    Raises NotOnHub if it holds none, IntegrityError when a file's bytes are not those the Hub
    lists: that file is gone then, so that the next try fetches it anew.
    """
    inner = revision.ref.subfolder or ""
    files = list_files(hub, revision)
    listed = {path: files[path] for path in wanted(files, inner)}
    beside = [path for path in files if path.rpartition("/")[0] == inner]
    weights = [path for path in listed if path.endswith(".safetensors")]
    if not weights and (pickles := [path for path in beside if path.endswith(_PICKLES)]):
        raise NotOnHub(
            f"{revision.label} holds its weights only as pickles ({pickles[0]}).",
            "A pickle can run code: name a revision with safetensors files.",
        )
    if not listed:
        raise NotOnHub(f"{revision.label} holds no model: none of {', '.join(ALLOWED)}.")
    root = hub.ask(
        f"downloading {revision.label}",
        lambda api: snapshot_download(
            str(revision.ref.repo_id),
            revision=revision.sha,
            allow_patterns=[escape(path) for path in listed],
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
        ),
        size=sum(file.size for file in listed.values()),
    )
    verify(Path(root), listed, revision.label)
    return Path(root) / inner


def wanted(paths: Iterable[str], folder: str = "") -> list[str]:
    """The allowed files among all that lie in a model's folder and below it.

    Those of the folder itself, and of a mixture those of each expert's folder. Nothing else below:
    a repository may hold every checkpoint-N there.
    """
    paths, above = list(paths), f"{folder}/" if folder else ""
    experts = f"{above}{_EXPERTS}" if f"{above}{_MIXTURE}" in paths else None

    def is_wanted(path: str) -> bool:
        parent, _, name = path.rpartition("/")
        allowed = any(fnmatch(name, pattern) for pattern in ALLOWED)
        return allowed and (parent == folder or parent.rpartition("/")[0] == experts)

    return [path for path in paths if is_wanted(path)]


def read_file(hub: Hub, revision: Revision, name: str) -> bytes | None:
    """The bytes of one small file of a revision, checked; None if it is not there."""
    repo_id, sha, folder = str(revision.ref.repo_id), revision.sha, revision.ref.subfolder
    path = f"{folder}/{name}" if folder else name
    what = f"reading {path} of {revision.label}"
    entries = hub.ask(what, lambda api: api.get_paths_info(repo_id, path, revision=sha))
    if not entries or not isinstance(entries[0], RepoFile):
        return None
    file = _hub_file(entries[0], revision.label)
    if file.path != path or file.size > _LARGEST_READ:
        raise IntegrityError(f"{path} of {revision.label} is no small file ({file.size} bytes).")
    here = hub.ask(
        what,
        lambda api: hf_hub_download(
            repo_id,
            path,
            revision=sha,
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
        ),
    )
    root = Path(here).parents[path.count("/")]
    verify(root, {path: file}, revision.label)
    return Path(here).read_bytes()


def verify(root: Path, listed: Mapping[str, HubFile], label: str) -> None:
    """Check that every listed file lies whole under `root`; remove and name those that do not.

    Raises IntegrityError.
    """
    wrong = [path for path, file in listed.items() if not _is_whole(root / path, file)]
    for path in wrong:
        _remove(root, path)
    raise_together(
        IntegrityError,
        [f"{path} of {label} is not what the Hub lists: its SHA differs." for path in wrong],
        "Run the command again to fetch it anew; if it differs again, trust neither.",
    )


def same_bytes(path: Path, file: HubFile) -> bool:
    """Whether the bytes at `path` are those of the listed file."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        return _digest(path, hashlib.sha256()) == file.sha256
    return _digest(path, hashlib.sha1(f"blob {file.size}\0".encode())) == file.blob


def _remove(root: Path, path: str) -> None:
    """Remove a file of a snapshot and what it links to, if that lies in the cache as well."""
    target, repository = (root / path).resolve(), root.resolve().parents[1]
    if target.is_relative_to(repository):
        target.unlink(missing_ok=True)
    (root / path).unlink(missing_ok=True)


def _is_whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and same_bytes(path, file)


def _hub_file(entry: RepoFile, label: str) -> HubFile:
    try:
        path = check_inner_path(entry.path)
    except UsageError as error:
        raise IntegrityError(f"{label} lists a file that no folder may hold: {error}") from error
    return HubFile(path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


def _digest(path: Path, hash_: hashlib._Hash) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hash_).hexdigest()
