"""The commits of a repository, newest first: read in pages and cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hubmerge.durable import write_atomic
from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.progress import Progress
from hubmerge.refs import is_sha

# The largest page of a Hub, and its default, which is enough for the commits since the last call.
_MAX_PAGE_SIZE, _UPDATE_PAGE_SIZE = 1000, 50
_MAX_TITLE_CHARS = 300


@dataclass(frozen=True)
class Commit:
    """A commit: its SHA, and its title, which anybody may have written, cut at 300 characters."""

    sha: str
    title: str


def read_history(hub: Hub, repo_id: str, head: str, progress: Progress) -> tuple[Commit, ...]:
    """The commit `head` and all its ancestors, newest first.

    The ancestors of a commit never change, so only commits that are newer than the cache are read.
    """
    cache = cache_folder(hub, repo_id) / "commits.json"
    known = _read_cached(cache)
    if known and known[0].sha == head:
        return known
    commits = tuple(
        _join_known(_read_pages(hub, repo_id, head, bool(known)), known, repo_id, progress)
    )
    if not commits or commits[0].sha != head:
        raise IntegrityError(f"The Hub's history of {repo_id} does not start at {head}.")
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cache, json.dumps([[commit.sha, commit.title] for commit in commits]).encode())
    return commits


def cache_folder(hub: Hub, repo_id: str) -> Path:
    """The folder that caches the commits of a repository, one for each Hub."""
    name = hashlib.sha256(f"{hub.name}\n{repo_id}".encode()).hexdigest()[:24]
    return hub.cache / "hubmerge" / name


def _join_known(
    pages: Iterable[Sequence[Commit]], known: Sequence[Commit], repo_id: str, progress: Progress
) -> Iterator[Commit]:
    """The commits of the pages up to a known commit, then the known commits from there."""
    positions, count = {commit.sha: index for index, commit in enumerate(known)}, 0
    for page in pages:
        for index, commit in enumerate(page):
            position = positions.get(commit.sha)
            # In a history with merges, a known commit may come before new ones.
            if position is not None and _continues_with(page[index:], known[position:]):
                yield from known[position:]
                return
            yield commit
        count += len(page)
        progress(f"{repo_id}: commits", count, 0)


def _continues_with(page: Sequence[Commit], known: Sequence[Commit]) -> bool:
    return [commit.sha for commit in page] == [commit.sha for commit in known[: len(page)]]


def _read_pages(hub: Hub, repo_id: str, head: str, is_update: bool) -> Iterator[list[Commit]]:
    size = _UPDATE_PAGE_SIZE if is_update else _MAX_PAGE_SIZE
    items = hub.list_pages(f"models/{repo_id}/commits/{head}", {"limit": size})
    while page := hub.call_once(
        f"reading the commits of {repo_id}", lambda api: list(islice(items, size))
    ):
        yield [_parse_commit(item, repo_id) for item in page]


def _parse_commit(item: Any, repo_id: str) -> Commit:
    fields = item if isinstance(item, dict) else {}
    sha, title = str(fields.get("id")), str(fields.get("title") or "")
    if not is_sha(sha):
        raise IntegrityError(f"The Hub lists an invalid commit of {repo_id}: {sha[:40]!r}.")
    return Commit(sha, title[:_MAX_TITLE_CHARS])


def _read_cached(path: Path) -> tuple[Commit, ...]:
    """The commits in a cache file; none if it is missing or invalid."""
    with suppress(OSError, ValueError, TypeError):
        commits = tuple(Commit(sha, title) for sha, title in json.loads(path.read_bytes()))
        if all(is_sha(commit.sha) and isinstance(commit.title, str) for commit in commits):
            return commits
    return ()
