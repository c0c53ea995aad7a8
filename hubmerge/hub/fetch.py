"""Download a pinned revision to a folder; every file is checked against the Hub's listing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from itertools import islice
from pathlib import Path

import huggingface_hub

from hubmerge.errors import HubError, IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.file_digests import file_digest, file_digests, remember
from hubmerge.hub.cached_listing import list_cached_files
from hubmerge.hub.client import Hub
from hubmerge.model_files import PICKLE_SUFFIXES, side_files
from hubmerge.refs import ModelRef, Revision, check_inner_path

# Weights, configurations and text; never code, never a pickle.
ALLOWED_PATTERNS = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.gz", "*.model",
    "chat_template.jinja", "README.md", "hubmerge.lock",
)  # fmt: skip
# A folder with this file is a mixture of experts; its experts are in subfolders of `experts`.
_MOE_CONFIG, _EXPERTS_FOLDER = "moe_config.json", "experts"
# The users who offer weights as safetensors in pull requests, and how many of these are looked at.
_BOTS = ("SFconvertbot", "safetensors-bot")
_MAX_SEARCHED = 20
# A manifest has some kilobytes; a much larger file is an attempt to fill the memory.
_MAX_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class HubFile:
    """A file of a revision as the Hub lists it: size in bytes, SHA-256 (LFS only), git blob id."""

    path: str
    size: int
    sha256: str | None
    blob_id: str


def list_files(hub: Hub, revision: Revision) -> dict[str, HubFile]:
    """Every file of a revision by its path; raises IntegrityError for a path outside the folder."""
    repo_id, sha, folder = str(revision.ref.repo_id), revision.sha, revision.ref.subfolder
    entries = (
        list_cached_files(hub, revision)
        if hub.is_offline
        else hub.call_once(
            f"listing {revision.label}",
            lambda api: list(api.list_repo_tree(repo_id, folder, revision=sha, recursive=True)),
        )
    )
    return {
        entry.path: _to_hub_file(entry, revision.label)
        for entry in entries
        if isinstance(entry, huggingface_hub.RepoFile)
    }


def fetch(hub: Hub, revision: Revision) -> Path:
    """Download `files_to_download` of a revision, check each file, and return the folder.

    Files that are in the cache already are not downloaded again. Raises NotOnHub if there is no
    model. Raises IntegrityError if the bytes of a file differ from the Hub's listing; that file is
    removed, so that the next call downloads it again.
    """
    inner = revision.ref.subfolder or ""
    files = list_files(hub, revision)
    listed = {path: files[path] for path in files_to_download(files, inner)}
    in_folder = [path for path in files if path.rpartition("/")[0] == inner]
    weights = [path for path in listed if path.endswith(".safetensors")]
    if not weights and (pickles := [path for path in in_folder if path.endswith(PICKLE_SUFFIXES)]):
        raise NotOnHub(
            f"{revision.label} has its weights only as pickles ({pickles[0]}), which can run code.",
            _pickles_hint(hub, str(revision.ref.repo_id)),
        )
    if not listed:
        raise NotOnHub(f"{revision.label} has no model: none of {', '.join(ALLOWED_PATTERNS)}.")
    return _download(hub, revision, listed) / inner


def fetch_pickles(hub: Hub, revision: Revision, paths: Iterable[str]) -> Path:
    """Download these files of a revision besides those of `fetch`, and return the folder.

    For `import`, which reads pickles without running them. Raises IntegrityError as `fetch` does.
    """
    inner = revision.ref.subfolder or ""
    files = list_files(hub, revision)
    wanted = {*files_to_download(files, inner), *paths}
    return _download(hub, revision, {path: files[path] for path in wanted}) / inner


def _download(hub: Hub, revision: Revision, listed: Mapping[str, HubFile]) -> Path:
    """Download files of a revision and check them; returns the folder of the snapshot."""
    root = hub.call(
        f"downloading {revision.label}",
        lambda api: huggingface_hub.snapshot_download(
            str(revision.ref.repo_id),
            revision=revision.sha,
            allow_patterns=[escape(path) for path in listed],
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
        ),
        size=sum(file.size for file in listed.values()),
    )
    verify_files(Path(root), listed, revision.label)
    return Path(root)


def _pickles_hint(hub: Hub, repo_id: str) -> str:
    if ref := find_converted(hub, repo_id):
        return f"Name {repo_id}@{ref}, where the Hub's converter has put them as safetensors."
    return (
        f"`hubmerge import {repo_id} --out DIR` takes the tensors out without running them; or "
        "name a revision with safetensors."
    )


def find_converted(hub: Hub, repo_id: str) -> str | None:
    """The newest ref of the bot with safetensors, such as `refs/pr/1`; None if there is none.

    It is a help and not a need: None too where the Hub does not list pull requests.
    """
    try:
        refs = (ref for bot in _BOTS for ref in _refs_of(hub, repo_id, bot))
        return next((ref for ref in refs if _has_safetensors(hub, repo_id, ref)), None)
    except HubError:
        return None


def _refs_of(hub: Hub, repo_id: str, author: str) -> list[str]:
    """The refs of an author's newest pull requests."""
    pulls = hub.call(
        f"reading the pull requests of {repo_id}",
        lambda api: list(
            islice(
                api.get_repo_discussions(repo_id, author=author, discussion_type="pull_request"),
                _MAX_SEARCHED,
            )
        ),
    )
    return [str(pull.git_reference) for pull in pulls if pull.git_reference]


def _has_safetensors(hub: Hub, repo_id: str, ref: str) -> bool:
    try:
        files = list_files(hub, Revision(ModelRef(repo_id, revision=ref), ref))
    except (IntegrityError, NotOnHub):
        return False
    return any(path.endswith(".safetensors") for path in files)


def files_to_download(paths: Iterable[str], folder: str = "") -> list[str]:
    """The paths of a model's folder that match ALLOWED_PATTERNS, or that a model needs besides.

    For a mixture of experts, also those in the folder of each expert. Subfolders with models of
    their own are left out: a repository may have every checkpoint-N there.
    """
    paths, prefix = list(paths), f"{folder}/" if folder else ""
    experts = f"{prefix}{_EXPERTS_FOLDER}" if f"{prefix}{_MOE_CONFIG}" in paths else None
    inside = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    needed = {f"{prefix}{path}" for path in side_files(inside)}

    def is_allowed(path: str) -> bool:
        parent, _, name = path.rpartition("/")
        matches = any(fnmatch(name, pattern) for pattern in ALLOWED_PATTERNS)
        return path in needed or (
            matches and (parent == folder or parent.rpartition("/")[0] == experts)
        )

    return [path for path in paths if is_allowed(path)]


def read_file(hub: Hub, revision: Revision, name: str) -> bytes | None:
    """The bytes of one small file of a revision, verified; None if the file does not exist."""
    repo_id, sha, folder = str(revision.ref.repo_id), revision.sha, revision.ref.subfolder
    path = f"{folder}/{name}" if folder else name
    action = f"reading {path} of {revision.label}"
    entries = (
        [entry for entry in list_cached_files(hub, revision) if entry.path == path]
        if hub.is_offline
        else hub.call(action, lambda api: api.get_paths_info(repo_id, path, revision=sha))
    )
    if not entries or not isinstance(entries[0], huggingface_hub.RepoFile):
        return None
    file = _to_hub_file(entries[0], revision.label)
    if file.path != path or file.size > _MAX_READ_BYTES:
        raise IntegrityError(
            f"{path} of {revision.label} is too large to read ({file.size} bytes)."
        )
    local_path = hub.call(
        action,
        lambda api: huggingface_hub.hf_hub_download(
            repo_id,
            path,
            revision=sha,
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
        ),
    )
    root = Path(local_path).parents[path.count("/")]
    verify_files(root, {path: file}, revision.label)
    return Path(local_path).read_bytes()


def verify_files(root: Path, listed: Mapping[str, HubFile], label: str) -> None:
    """Check every listed file under `root`; remove those that differ and raise IntegrityError."""
    files = {path: root / path for path, file in listed.items() if _has_size(root / path, file)}
    digests = file_digests(files[path] for path in files if listed[path].sha256)
    remember(digests)
    ids = {path: digests.get(file) or _blob_id(file) for path, file in files.items()}
    expected = {path: file.sha256 or file.blob_id for path, file in listed.items()}
    wrong = [path for path in listed if ids.get(path) != expected[path]]
    for path in wrong:
        _remove(root, path)
    raise_together(
        IntegrityError,
        [f"{path} of {label} is not what the Hub lists: its SHA differs." for path in wrong],
        "Run the command again; if the SHA still differs, do not trust this revision.",
    )


def same_bytes(path: Path, file: HubFile) -> bool:
    """Whether the file at `path` has the bytes of the listed one."""
    if path.stat().st_size != file.size:
        return False
    return file_digest(path) == file.sha256 if file.sha256 else _blob_id(path) == file.blob_id


def _blob_id(path: Path) -> str:
    """The id that git gives to a file of these bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _remove(root: Path, path: str) -> None:
    """Remove a file of a snapshot, and the file it links to if that is in the cache as well."""
    target, repository = (root / path).resolve(), root.resolve().parents[1]
    if target.is_relative_to(repository):
        target.unlink(missing_ok=True)
    (root / path).unlink(missing_ok=True)


def _has_size(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _to_hub_file(entry: huggingface_hub.RepoFile, label: str) -> HubFile:
    try:
        path = check_inner_path(entry.path)
    except UsageError as error:
        raise IntegrityError(f"{label} lists an unsafe file path: {error}") from error
    return HubFile(path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
