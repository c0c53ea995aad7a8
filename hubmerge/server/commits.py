"""Commits as clients send them: one JSON object a line, a header first, then the changes."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from collections.abc import Iterator
from typing import IO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import hub, writable, writer
from hubmerge.server.content import AddFile, AddLarge, Change, Delete
from hubmerge.server.discussions import web_address
from hubmerge.server.http_errors import BadRequest, TooLarge
from hubmerge.server.lfs import LARGEST_SMALL_FILE
from hubmerge.server.messages import REPO, Json, flag, origin

_IN_MEMORY = 4 << 20
_LARGEST_BODY = 1 << 30
# A small file in base64, and room for its path.
_LONGEST_LINE = LARGEST_SMALL_FILE * 4 // 3 + (64 << 10)


async def commit(request: Request) -> Response:
    """Commit to a branch or to a new pull request.

    The lines are spooled to disk, so the body may be long.
    """
    # Asked before the body is read, so that a stranger cannot fill the disk.
    await run_in_threadpool(writable, request)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(hub(request).store.tmp)) as spool:
        async for piece in request.stream():
            spool.write(piece)
            if spool.tell() > _LARGEST_BODY:
                raise TooLarge(f"More than {_LARGEST_BODY} bytes in one commit: use LFS.")
        spool.seek(0)
        return await run_in_threadpool(_commit, request, spool)


def _commit(request: Request, body: IO[bytes]) -> Response:
    repository, lines, author = writable(request), _lines(body), writer(request).name
    message, parent = _header(*next(lines, ("", {})))
    changes, branch = (_change(key, value) for key, value in lines), request.path_params["revision"]
    told = {"success": True, "hookOutput": ""}
    if flag(request, "create_pr"):
        if branch != "main":
            raise BadRequest("A pull request goes to main.")
        pull, sha = repository.propose(changes, message, author=author, parent=parent)
        told["pullRequestUrl"] = web_address(request, repository, pull.number)
    else:
        sha = repository.commit(branch, changes, message, author=author, parent=parent)
    url = f"{origin(request)}/{repository.id.web_path}/commit/{sha}"
    return JSONResponse({**told, "commitOid": sha, "commitUrl": url})


def _lines(body: IO[bytes]) -> Iterator[tuple[str, Json]]:
    while line := body.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            limit = f"{LARGEST_SMALL_FILE >> 20} MiB"
            raise TooLarge(f"A file of more than {limit} was sent inside a commit: use LFS.")
        if line.strip():
            yield _parsed(line)


def _parsed(line: bytes) -> tuple[str, Json]:
    try:
        item = json.loads(line)
        key, value = item["key"], item["value"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRequest("Each line of a commit must be an object with key and value.") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The value of {str(key)[:40]!r} must be an object.")
    return str(key), value


def _header(key: str, value: Json) -> tuple[str, str]:
    """What the commit is called, and the commit that it must follow."""
    if key != "header":
        raise BadRequest("The first line of a commit must be its header.")
    title = str(value.get("summary") or "").strip()
    if not title:
        raise BadRequest("A commit needs a summary.")
    body = str(value.get("description") or "").strip()
    return f"{title}\n\n{body}" if body else title, str(value.get("parentCommit") or "")


def _change(key: str, value: Json) -> Change:
    path = str(value.get("path") or "")
    match key:
        case "file":
            return AddFile(path, _content(path, value))
        case "lfsFile":
            return AddLarge(path, str(value.get("oid")), _size(path, value))
        case "deletedFile" | "deletedFolder":
            return Delete(path.rstrip("/"))
    raise BadRequest(f"A commit cannot do {key[:40]!r}.")


def _size(path: str, value: Json) -> int | None:
    """The size of a large file; clients that copy one do not tell it."""
    size = value.get("size")
    if size is not None and not isinstance(size, int):
        raise BadRequest(f"The size of {path[:120]!r} must be a whole number.")
    return size


def _content(path: str, value: Json) -> bytes:
    text = str(value.get("content") or "")
    if value.get("encoding", "utf-8") != "base64":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"The content of {path[:120]!r} is not base64.") from error


routes = [Route(REPO + "/commit/{revision:quoted}", commit, methods=["POST"])]
