"""The contents of commits, from their listings and trainer states; no weights are downloaded.

A git object never changes, so what was read of it is cached on disk under its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub.utils
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hubmerge.durable import append_lines
from hubmerge.hub.client import Hub
from hubmerge.hub.history import cache_folder
from hubmerge.progress import Progress

TRAINER_STATE = "trainer_state.json"
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
# Its keys are sorted, and "log_history", which can be very long, comes after "global_step".
TRAINER_STATE_BYTES = 64 << 10
_GLOBAL_STEP = re.compile(rb'"global_step"\s*:\s*([0-9]{1,12})\b')
_THREADS, _BATCH_SIZE = 8, 64


@dataclass(frozen=True)
class SavedModel:
    """A model in one folder of a commit, as Trainer saves it.

    `weights` is a digest of its weight files, None if there are none. `state` is the git id of its
    trainer_state.json and `step` the global step in it, both None without that file.
    """

    weights: str | None = None
    is_pickled: bool = False
    state: str | None = None
    step: int | None = None


# Folder of a commit ("" is its root) -> the model saved there.
Contents = Mapping[str, SavedModel]


@dataclass(frozen=True)
class FolderListing:
    """One folder as the Hub lists it: a SavedModel without its step, and subfolders by git id."""

    weights: str | None
    is_pickled: bool
    state: str | None
    folders: dict[str, str]


# A commit, and a path in it.
CommitPath = tuple[str, str]
T = TypeVar("T")
_CACHE_LINE: TypeAdapter[tuple[str, FolderListing | int | None]] = TypeAdapter(
    tuple[str, FolderListing | int | None], config=ConfigDict(defer_build=True)
)


def read_contents(
    hub: Hub, repo_id: str, head: str, folders_of: Mapping[str, Iterable[str]], progress: Progress
) -> dict[str, Contents]:
    """The models at the root of each commit and in the folders named for it, where they exist.

    For the head, all its checkpoint folders are read.
    """
    cache = ContentsCache(cache_folder(hub, repo_id) / "contents.jsonl", repo_id, progress)
    roots = cache.lookup(
        {sha: (sha, "") for sha in folders_of},
        lambda sha, _: _select_folders(list_folder(hub, repo_id, sha, ""), folders_of[sha]),
    )
    listings = {(sha, ""): roots[sha] for sha in folders_of}
    listings[head, ""] = list_folder(hub, repo_id, head, "")
    listings |= _list_checkpoint_folders(hub, repo_id, cache, listings)
    steps = _read_steps(hub, repo_id, cache, listings)
    contents: dict[str, dict[str, SavedModel]] = {}
    for (sha, folder), listing in listings.items():
        step = steps.get(listing.state) if listing.state else None
        contents.setdefault(sha, {})[folder] = SavedModel(
            listing.weights, listing.is_pickled, listing.state, step
        )
    return dict(contents)


def list_folder(hub: Hub, repo_id: str, sha: str, folder: str) -> FolderListing:
    """List one folder of a commit, with one request for each page of the listing."""
    entries = hub.call_once(
        f"listing {repo_id}@{sha[:12]}",
        lambda api: list(api.list_repo_tree(repo_id, folder or None, revision=sha)),
    )
    files = {
        entry.path.rpartition("/")[2]: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, huggingface_hub.RepoFile)
    }
    safe = {name: id for name, id in files.items() if name.endswith(".safetensors")}
    pickled = {
        name: id for name, id in files.items() if any(fnmatchcase(name, p) for p in _PICKLES)
    }
    return FolderListing(
        weights=_digest(safe or pickled),
        is_pickled=bool(pickled and not safe),
        state=files.get(TRAINER_STATE),
        folders={
            entry.path: entry.tree_id
            for entry in entries
            if isinstance(entry, huggingface_hub.RepoFolder) and is_checkpoint_folder(entry.path)
        },
    )


def is_checkpoint_folder(folder: str) -> bool:
    """Whether Trainer pushes checkpoints to a folder of this name."""
    return re.fullmatch(r"last-checkpoint|checkpoint-[0-9]{1,12}", folder) is not None


class ContentsCache:
    """Listings and steps by the id of their git object, kept in a file."""

    def __init__(self, path: Path, repo_id: str, progress: Progress) -> None:
        self._path, self._repo_id, self._progress = path, repo_id, progress
        self._known: dict[str, Any] = dict(_read_cache(path))

    def lookup(
        self, objects: Mapping[str, CommitPath], fetch: Callable[[str, str], T]
    ) -> dict[str, T]:
        """The value of each object: from the cache, else fetched by commit and path and cached."""
        missing = [(id, path) for id, path in objects.items() if id not in self._known]
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(missing), _BATCH_SIZE):
                batch = missing[start : start + _BATCH_SIZE]
                values = pool.map(lambda item: fetch(*item[1]), batch)
                fetched = [(id, value) for (id, _), value in zip(batch, values, strict=True)]
                append_lines(self._path, "".join(_cache_line(*item) for item in fetched))
                self._known.update(fetched)
                done = start + len(batch)
                self._progress(f"{self._repo_id}: contents of commits", done, len(missing))
        return {id: self._known[id] for id in objects}


def _read_cache(path: Path) -> Iterator[tuple[str, FolderListing | int | None]]:
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValidationError):  # an incomplete line, after a crash
            yield _CACHE_LINE.validate_json(line)


def _cache_line(id: str, value: Any) -> str:
    return _CACHE_LINE.dump_json((id, value)).decode() + "\n"


def _select_folders(root: FolderListing, folders: Iterable[str]) -> FolderListing:
    """The listing with only these folders: a root may list a thousand checkpoints."""
    named = {name: root.folders[name] for name in folders if name in root.folders}
    return FolderListing(root.weights, root.is_pickled, root.state, named)


def _list_checkpoint_folders(
    hub: Hub, repo_id: str, cache: ContentsCache, roots: Mapping[CommitPath, FolderListing]
) -> dict[CommitPath, FolderListing]:
    """List the checkpoint folders of the roots; a folder that many commits share is listed once."""
    tree_ids = {
        (sha, name): tree for (sha, _), root in roots.items() for name, tree in root.folders.items()
    }
    paths = {tree: path for path, tree in tree_ids.items()}
    listings = cache.lookup(paths, lambda sha, name: list_folder(hub, repo_id, sha, name))
    return {path: listings[tree] for path, tree in tree_ids.items()}


def _read_steps(
    hub: Hub, repo_id: str, cache: ContentsCache, listings: Mapping[CommitPath, FolderListing]
) -> dict[str, int | None]:
    """The step in each trainer state, by the git id of its file."""
    states = {
        listing.state: (sha, f"{folder}/{TRAINER_STATE}".lstrip("/"))
        for (sha, folder), listing in listings.items()
        if listing.state
    }
    return cache.lookup(states, lambda sha, path: _fetch_global_step(hub, repo_id, sha, path))


def _fetch_global_step(hub: Hub, repo_id: str, sha: str, path: str) -> int | None:
    """The step in a trainer_state.json, None if it has none; only the start of the file is read."""
    url = huggingface_hub.hf_hub_url(repo_id, path, revision=sha, endpoint=hub.endpoint)
    headers = {
        **hub.headers,
        "Range": f"bytes=0-{TRAINER_STATE_BYTES - 1}",
        "Accept-Encoding": "identity",
    }

    def read(_: huggingface_hub.HfApi) -> bytes:
        text = b""
        with huggingface_hub.get_session().stream("GET", url, headers=headers) as response:
            huggingface_hub.utils.hf_raise_for_status(response)  # type: ignore[attr-defined]
            for chunk in response.iter_bytes():
                text += chunk
                if len(text) >= TRAINER_STATE_BYTES:
                    break
        return text[:TRAINER_STATE_BYTES]

    return parse_global_step(hub.call(f"reading {path} of {repo_id}@{sha[:12]}", read))


def parse_global_step(text: bytes) -> int | None:
    """The global step in the first bytes of a trainer_state.json; None if they have none."""
    match = _GLOBAL_STEP.search(text[:TRAINER_STATE_BYTES])
    return int(match[1]) if match else None


def _digest(files: Mapping[str, str]) -> str | None:
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest() if files else None
