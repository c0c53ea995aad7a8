"""What commits hold, by their listings and trainer states; no weights are fetched.

A git object never changes, so what was learned of one is kept on disk under its id.
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

from huggingface_hub import HfApi, RepoFile, RepoFolder, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)
from pydantic import TypeAdapter, ValidationError

from hubmerge.durable import append_lines
from hubmerge.hub.client import Hub
from hubmerge.hub.history import kept_folder
from hubmerge.progress import Progress

STATE = "trainer_state.json"
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
# Its keys are sorted and "log_history", which grows without end, comes after the one we want.
STATE_BYTES = 64 << 10
_GLOBAL_STEP = re.compile(rb'"global_step"\s*:\s*([0-9]{1,12})\b')
_AT_ONCE, _BATCH = 8, 64


@dataclass(frozen=True)
class Saved:
    """A model in one folder of a commit, as Trainer saves it.

    `weights` is a digest of its weight files, None if there are none; `state` is the git id of its
    trainer_state.json and `step` the global step written there, both None without.
    """

    weights: str | None = None
    is_pickled: bool = False
    state: str | None = None
    step: int | None = None


# Folder of a commit ("" is its root) -> what is saved there.
Contents = Mapping[str, Saved]


@dataclass(frozen=True)
class Listing:
    """One folder as the Hub lists it: Saved without the step, and the folders below by git id."""

    weights: str | None
    is_pickled: bool
    state: str | None
    folders: dict[str, str]


# A commit, and a path in it.
Place = tuple[str, str]
T = TypeVar("T")
_LINE: TypeAdapter[tuple[str, Listing | int | None]] = TypeAdapter(tuple[str, Listing | int | None])


def examine(
    hub: Hub, repo_id: str, head: str, wanted: Mapping[str, Iterable[str]], progress: Progress
) -> dict[str, Contents]:
    """What each wanted commit holds at its root and in its named folders, where it has them.

    Of the head every checkpoint folder is told.
    """
    memory = Memory(kept_folder(hub, repo_id) / "contents.jsonl", repo_id, progress)
    roots = memory.learn(
        {sha: (sha, "") for sha in wanted},
        lambda sha, _: _kept_part(list_folder(hub, repo_id, sha, ""), wanted[sha]),
    )
    listed = {(sha, ""): roots[sha] for sha in wanted}
    listed[head, ""] = list_folder(hub, repo_id, head, "")
    listed |= _below(hub, repo_id, memory, listed)
    steps = _steps(hub, repo_id, memory, listed)
    contents: dict[str, dict[str, Saved]] = {}
    for (sha, folder), one in listed.items():
        step = steps.get(one.state) if one.state else None
        contents.setdefault(sha, {})[folder] = Saved(one.weights, one.is_pickled, one.state, step)
    return dict(contents)


def list_folder(hub: Hub, repo_id: str, sha: str, folder: str) -> Listing:
    """One folder of a commit, by one request for each page of its listing."""
    entries = hub.ask_once(
        f"listing {repo_id}@{sha[:12]}",
        lambda api: list(api.list_repo_tree(repo_id, folder or None, revision=sha)),
    )
    files = {
        entry.path.rpartition("/")[2]: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    safe = {name: id for name, id in files.items() if name.endswith(".safetensors")}
    pickled = {
        name: id for name, id in files.items() if any(fnmatchcase(name, p) for p in _PICKLES)
    }
    return Listing(
        weights=_digest(safe or pickled),
        is_pickled=bool(pickled and not safe),
        state=files.get(STATE),
        folders={
            entry.path: entry.tree_id
            for entry in entries
            if isinstance(entry, RepoFolder) and is_checkpoint(entry.path)
        },
    )


def is_checkpoint(folder: str) -> bool:
    """Whether a folder is one that Trainer pushes checkpoints to."""
    return re.fullmatch(r"last-checkpoint|checkpoint-[0-9]{1,12}", folder) is not None


class Memory:
    """Listings and steps by the id of their git object, with a file that remembers them."""

    def __init__(self, path: Path, repo_id: str, progress: Progress) -> None:
        self._path, self._repo_id, self._progress = path, repo_id, progress
        self._known: dict[str, Any] = dict(_remembered(path))

    def learn(self, objects: Mapping[str, Place], ask: Callable[[str, str], T]) -> dict[str, T]:
        """What is known of each object; the Hub is asked, by commit and path, for the others."""
        missing = [(id, place) for id, place in objects.items() if id not in self._known]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                answers = pool.map(lambda one: ask(*one[1]), batch)
                learned = [(id, answer) for (id, _), answer in zip(batch, answers, strict=True)]
                append_lines(self._path, "".join(_line(*one) for one in learned))
                self._known.update(learned)
                done = start + len(batch)
                self._progress(f"{self._repo_id}: what commits hold", done, len(missing))
        return {id: self._known[id] for id in objects}


def _remembered(path: Path) -> Iterator[tuple[str, Listing | int | None]]:
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValidationError):  # half a line that a crash left
            yield _LINE.validate_json(line)


def _line(id: str, answer: Any) -> str:
    return _LINE.dump_json((id, answer)).decode() + "\n"


def _kept_part(root: Listing, folders: Iterable[str]) -> Listing:
    """Of a thousand checkpoint folders, each commit needs its own."""
    named = {name: root.folders[name] for name in folders if name in root.folders}
    return Listing(root.weights, root.is_pickled, root.state, named)


def _below(
    hub: Hub, repo_id: str, memory: Memory, roots: Mapping[Place, Listing]
) -> dict[Place, Listing]:
    """The checkpoint folders of the roots; the same folder in many commits is asked for once."""
    places = {
        (sha, name): tree for (sha, _), root in roots.items() for name, tree in root.folders.items()
    }
    trees = {tree: place for place, tree in places.items()}
    known = memory.learn(trees, lambda sha, name: list_folder(hub, repo_id, sha, name))
    return {place: known[tree] for place, tree in places.items()}


def _steps(
    hub: Hub, repo_id: str, memory: Memory, listed: Mapping[Place, Listing]
) -> dict[str, int | None]:
    """Each trainer state by its git id, and the step it says."""
    states = {
        one.state: (sha, f"{folder}/{STATE}".lstrip("/"))
        for (sha, folder), one in listed.items()
        if one.state
    }
    return memory.learn(states, lambda sha, path: _global_step(hub, repo_id, sha, path))


def _global_step(hub: Hub, repo_id: str, sha: str, path: str) -> int | None:
    """The step in a trainer_state.json, None if it does not say; its long log is not read."""
    url = hf_hub_url(repo_id, path, revision=sha, endpoint=hub.endpoint)
    headers = {
        **build_hf_headers(token=hub.token or False),
        "Range": f"bytes=0-{STATE_BYTES - 1}",
        "Accept-Encoding": "identity",
    }

    def read(_: HfApi) -> bytes:
        text = b""
        with get_session().stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            for piece in response.iter_bytes():
                text += piece
                if len(text) >= STATE_BYTES:
                    break
        return text[:STATE_BYTES]

    return step_in_state(hub.ask(f"reading {path} of {repo_id}@{sha[:12]}", read))


def step_in_state(text: bytes) -> int | None:
    """The global step that the beginning of a trainer_state.json says, None without."""
    found = _GLOBAL_STEP.search(text[:STATE_BYTES])
    return int(found[1]) if found else None


def _digest(files: Mapping[str, str]) -> str | None:
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest() if files else None
