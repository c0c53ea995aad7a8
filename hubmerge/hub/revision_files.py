"""One small file at many revisions, for example the manifest of every step of a repository.

A commit never changes, so what was read of it is cached on disk, and the embedded Hub is asked for
hundreds of revisions at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Any

import huggingface_hub.utils

from hubmerge.durable import append_lines
from hubmerge.errors import NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import read_file
from hubmerge.hub.history import cache_folder
from hubmerge.progress import Progress
from hubmerge.refs import Revision

# Larger files are read one by one, and not cached here.
_MAX_BYTES = 1 << 20
_THREADS, _BATCH_SIZE, _EMBEDDED_BATCH_SIZE = 8, 64, 500


def read_at_revisions(
    hub: Hub, revisions: Sequence[Revision], name: str, progress: Progress
) -> list[bytes | None]:
    """The bytes of a file at each revision, verified; None where it does not exist."""
    contents: dict[tuple[str, str, str], bytes | None] = {}
    by_repo = sorted(revisions, key=lambda revision: str(revision.ref.repo_id))
    for repo_id, group in groupby(by_repo, key=lambda revision: str(revision.ref.repo_id)):
        files = _CachedFiles(hub, repo_id, name)
        for key, content in files.read({_key(r): r for r in group}, progress).items():
            contents[repo_id, *key] = content
    return [contents[str(r.ref.repo_id), *_key(r)] for r in revisions]


def _key(revision: Revision) -> tuple[str, str]:
    return revision.sha, revision.ref.subfolder or ""


class _CachedFiles:
    """A file of one repository at the revisions at which it was read."""

    def __init__(self, hub: Hub, repo_id: str, name: str) -> None:
        self._hub, self._repo_id, self._name = hub, repo_id, name
        self._cache = cache_folder(hub, repo_id) / f"{name}.jsonl"

    def read(
        self, revisions: dict[tuple[str, str], Revision], progress: Progress
    ) -> dict[tuple[str, str], bytes | None]:
        contents = {key: value for key, value in self._cached() if key in revisions}
        missing = [key for key in revisions if key not in contents]
        size = _EMBEDDED_BATCH_SIZE if self._hub.is_embedded else _BATCH_SIZE
        done = 0
        for start in range(0, len(missing), size):
            keys = missing[start : start + size]
            fetched = self._fetch({key: revisions[key] for key in keys})
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self._cache, "".join(map(_to_line, fetched.items())))
            contents |= fetched
            done += len(keys)
            progress(f"{self._repo_id}: {self._name}", done, len(missing))
        return contents

    def _fetch(self, wanted: dict[tuple[str, str], Revision]) -> dict[Any, bytes | None]:
        fetched = self._fetch_batch(wanted) if self._hub.is_embedded else {}
        rest = [revision for key, revision in wanted.items() if key not in fetched]
        with ThreadPoolExecutor(_THREADS) as pool:
            contents = pool.map(lambda r: _fetch_one(self._hub, r, self._name), rest)
            return {**fetched, **dict(zip(map(_key, rest), contents, strict=True))}

    def _fetch_batch(self, wanted: Iterable[tuple[str, str]]) -> dict[Any, bytes | None]:
        """What the embedded Hub answers at once; the rest, of large files, is not in it."""
        paths = [[sha, f"{folder}/{self._name}".lstrip("/")] for sha, folder in wanted]
        url = f"{self._hub.endpoint}/api/hubmerge/files/models/{self._repo_id}"

        def post(_: huggingface_hub.HfApi) -> list[Any]:
            session, headers = huggingface_hub.get_session(), self._hub.headers
            response = session.post(url, json={"paths": paths}, headers=headers)
            huggingface_hub.utils.hf_raise_for_status(response)  # type: ignore[attr-defined]
            return list(response.json()["files"])

        try:
            files = self._hub.call(f"reading {self._name} of {self._repo_id}", post)
        except NotOnHub:
            return {}  # a server of an earlier version does not know the question
        fetched: dict[Any, bytes | None] = {}
        for key, file in zip(wanted, files, strict=True):
            if file is None:
                continue
            content = None if file["content"] is None else base64.b64decode(file["content"])
            if content is None or git_blob_id(content) == file["oid"]:
                fetched[key] = content
        return fetched

    def _cached(self) -> Iterator[tuple[tuple[str, str], bytes | None]]:
        for line in self._cache.read_bytes().splitlines() if self._cache.is_file() else []:
            with suppress(ValueError, TypeError):  # an incomplete line, after a crash
                sha, folder, oid, text = json.loads(line)
                if text is None or git_blob_id(text.encode()) == oid:
                    yield (sha, folder), None if text is None else text.encode()


def _fetch_one(hub: Hub, revision: Revision, name: str) -> bytes | None:
    """The file by one request, if the response proves its bytes; else as `read_file` does it."""
    folder = revision.ref.subfolder
    url = huggingface_hub.hf_hub_url(
        str(revision.ref.repo_id),
        f"{folder}/{name}" if folder else name,
        revision=revision.sha,
        endpoint=hub.endpoint,
    )

    def read(_: huggingface_hub.HfApi) -> tuple[bytes, str]:
        headers, content = {**hub.headers, "Accept-Encoding": "identity"}, b""
        with huggingface_hub.get_session().stream("GET", url, headers=headers) as response:
            huggingface_hub.utils.hf_raise_for_status(response)  # type: ignore[attr-defined]
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_BYTES:
                    break
            return content, response.headers.get("etag", "").removeprefix("W/").strip('"')

    try:
        content, etag = hub.call(f"reading {name} of {revision.label}", read)
    except NotOnHub as error:
        if isinstance(error.__cause__, huggingface_hub.errors.EntryNotFoundError):
            return None
        raise
    return content if git_blob_id(content) == etag else read_file(hub, revision, name)


def git_blob_id(content: bytes) -> str:
    """The id that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _to_line(item: tuple[Any, bytes | None]) -> str:
    """A line of the cache; what is no text is left out, because JSON cannot hold it."""
    (sha, folder), content = item
    if content is None:
        return json.dumps([sha, folder, None, None]) + "\n"
    try:
        fields = [sha, folder, git_blob_id(content), content.decode()]
    except UnicodeDecodeError:
        return ""
    return json.dumps(fields) + "\n" if len(content) <= _MAX_BYTES else ""
