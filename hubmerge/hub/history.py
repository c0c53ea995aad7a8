"""The commits of a repository, youngest first: read in pages, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

from hubmerge.durable import write_whole
from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.progress import Progress
from hubmerge.refs import is_sha

# The most that a Hub puts on one page, and its own choice, enough for what is new since last time.
_LARGEST_PAGE, _PAGE = 1000, 50
_LONGEST_TITLE = 300


@dataclass(frozen=True)
class Commit:
    """A commit by its SHA, and its title: what anybody wrote, cut at 300 characters."""

    sha: str
    title: str


def read_history(hub: Hub, repo_id: str, head: str, progress: Progress) -> tuple[Commit, ...]:
    """A commit and all before it, youngest first.

    What lies behind a commit never changes: only what is newer than the last time is read.
    """
    kept_in = kept_folder(hub, repo_id) / "commits.json"
    known = _kept(kept_in)
    if known and known[0].sha == head:
        return known
    commits = tuple(_joined(_pages(hub, repo_id, head, bool(known)), known, repo_id, progress))
    if not commits or commits[0].sha != head:
        raise IntegrityError(f"The history of {repo_id} does not begin at {head}.")
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept_in, json.dumps([[one.sha, one.title] for one in commits]).encode())
    return commits


def kept_folder(hub: Hub, repo_id: str) -> Path:
    """Where what was learned of a repository's commits is kept, apart for each Hub."""
    name = hashlib.sha256(f"{hub.name}\n{repo_id}".encode()).hexdigest()[:24]
    return hub.cache / "hubmerge" / name


def _joined(
    pages: Iterable[Sequence[Commit]], known: Sequence[Commit], repo_id: str, progress: Progress
) -> Iterator[Commit]:
    """The pages up to a commit that is known, and from there on what is known."""
    places, count = {commit.sha: place for place, commit in enumerate(known)}, 0
    for page in pages:
        for number, commit in enumerate(page):
            place = places.get(commit.sha)
            # Of a history that is no line, a known commit may come before others that are new.
            if place is not None and _goes_on(page[number:], known[place:]):
                yield from known[place:]
                return
            yield commit
        count += len(page)
        progress(f"{repo_id}: commits", count, count)


def _goes_on(page: Sequence[Commit], known: Sequence[Commit]) -> bool:
    return [commit.sha for commit in page] == [commit.sha for commit in known[: len(page)]]


def _pages(hub: Hub, repo_id: str, head: str, is_update: bool) -> Iterator[list[Commit]]:
    size = _PAGE if is_update else _LARGEST_PAGE
    address = f"{hub.endpoint}/api/models/{repo_id}/commits/{head}"
    headers = build_hf_headers(token=hub.token or False)
    told = paginate(address, {"limit": size}, headers)
    while page := hub.ask_once(
        f"reading the commits of {repo_id}", lambda api: list(islice(told, size))
    ):
        yield [_commit(item, repo_id) for item in page]


def _commit(item: Any, repo_id: str) -> Commit:
    said = item if isinstance(item, dict) else {}
    sha, title = str(said.get("id")), str(said.get("title") or "")
    if not is_sha(sha):
        raise IntegrityError(f"The Hub lists no commit for {repo_id}: {sha[:40]!r}.")
    return Commit(sha, title[:_LONGEST_TITLE])


def _kept(path: Path) -> tuple[Commit, ...]:
    """The commits kept in a file; none if there is no sound one."""
    with suppress(OSError, ValueError, TypeError):
        commits = tuple(Commit(sha, title) for sha, title in json.loads(path.read_bytes()))
        if all(is_sha(one.sha) and isinstance(one.title, str) for one in commits):
            return commits
    return ()
