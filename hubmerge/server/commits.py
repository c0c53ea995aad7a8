"""Commits as clients send them: one JSON object per line, first a header, then the changes."""

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

from hubmerge.server.access import contributable_repo, get_hub, require_writer, writable_repo
from hubmerge.server.card_rules import CARD, check_card
from hubmerge.server.content import AddFile, AddLargeFile, Change, Delete, parse_pointer
from hubmerge.server.discussion_store import PULL
from hubmerge.server.discussions import pull_request_url
from hubmerge.server.http_errors import BadRequest, TooLarge
from hubmerge.server.large_file_access import LargeFileAccess
from hubmerge.server.lfs import MAX_REGULAR_BYTES
from hubmerge.server.messages import REPO_PATH, Json, base_url, query_flag, receive_body
from hubmerge.server.repository import Repository

_MAX_BYTES_IN_MEMORY = 4 << 20
_MAX_BODY_BYTES = 1 << 30
# A regular file in base64, and space for its path.
_MAX_LINE_BYTES = MAX_REGULAR_BYTES * 4 // 3 + (64 << 10)


async def commit(request: Request) -> Response:
    """Commit to a branch or to a new pull request.

    The lines are spooled to disk, so the body may be large.
    """
    # Checked before the body is read, so that a stranger cannot fill the disk.
    await run_in_threadpool(_target_repo, request)
    with tempfile.SpooledTemporaryFile(
        _MAX_BYTES_IN_MEMORY, dir=str(get_hub(request).store.tmp)
    ) as spool:
        await receive_body(
            request,
            spool.write,
            _MAX_BODY_BYTES,
            f"More than {_MAX_BODY_BYTES} bytes in one commit: use LFS.",
        )
        spool.seek(0)
        return await run_in_threadpool(_commit, request, spool)


def _commit(request: Request, body: IO[bytes]) -> Response:
    repository, lines, author = (
        _target_repo(request),
        _read_lines(body),
        require_writer(request).name,
    )
    message, parent = _parse_header(*next(lines, ("", {})))
    access, branch = LargeFileAccess(request, repository), request.path_params["revision"]
    changes = (_check_content(_parse_change(key, value), access) for key, value in lines)
    result = {"success": True, "hookOutput": ""}
    if query_flag(request, "create_pr"):
        if branch != "main":
            raise BadRequest("A pull request goes to main.")
        pull, sha = repository.open_pull(changes, message, author=author, parent=parent)
        result["pullRequestUrl"] = pull_request_url(request, repository, pull.number)
    else:
        sha = repository.commit(branch, changes, message, author=author, parent=parent)
    url = f"{base_url(request)}/{repository.id.web_path}/commit/{sha}"
    return JSONResponse({**result, "commitOid": sha, "commitUrl": url})


def _target_repo(request: Request) -> Repository:
    """The repository, if the user may commit there: to their own pull request, or anywhere."""
    branch = request.path_params["revision"]
    if query_flag(request, "create_pr"):
        return contributable_repo(request)
    if branch.startswith(PULL):
        repository, user = contributable_repo(request), require_writer(request)
        pulls = {pull.ref: pull for pull in repository.discussions()}
        if branch in pulls and pulls[branch].author == user.name:
            return repository
    return writable_repo(request)


def _read_lines(body: IO[bytes]) -> Iterator[tuple[str, Json]]:
    while line := body.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            limit = f"{MAX_REGULAR_BYTES >> 20} MiB"
            raise TooLarge(f"A file of more than {limit} was sent inside a commit: use LFS.")
        if line.strip():
            yield _parse_line(line)


def _parse_line(line: bytes) -> tuple[str, Json]:
    try:
        item = json.loads(line)
        key, value = item["key"], item["value"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRequest("Each line of a commit must be an object with key and value.") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The value of {str(key)[:40]!r} must be an object.")
    return str(key), value


def _parse_header(key: str, value: Json) -> tuple[str, str]:
    """The message of the commit, and the commit that must be its parent."""
    if key != "header":
        raise BadRequest("The first line of a commit must be its header.")
    title = str(value.get("summary") or "").strip()
    if not title:
        raise BadRequest("A commit needs a summary.")
    body = str(value.get("description") or "").strip()
    return f"{title}\n\n{body}" if body else title, str(value.get("parentCommit") or "")


def _parse_change(key: str, value: Json) -> Change:
    path = str(value.get("path") or "")
    match key:
        case "file":
            content = _decode_content(path, value)
            if path == CARD:
                check_card(content)
            return AddFile(path, content)
        case "lfsFile":
            return AddLargeFile(path, str(value.get("oid")), _parse_size(path, value))
        case "deletedFile" | "deletedFolder":
            return Delete(path.rstrip("/"))
    raise BadRequest(f"A commit cannot do {key[:40]!r}.")


def _check_content(change: Change, access: LargeFileAccess) -> Change:
    """Return a change; raises BadRequest for a large file that the user has not."""
    match change:
        case AddLargeFile(oid=oid):
            pass
        case AddFile(content=content) if pointer := parse_pointer(content):
            oid = pointer.oid
        case _:
            return change
    if not access.allows(oid):
        raise BadRequest(
            f"LFS pointer points to a file that does not exist: {oid}. Upload it first."
        )
    return change


def _parse_size(path: str, value: Json) -> int | None:
    """The size of a large file, None from clients that copy one."""
    size = value.get("size")
    if size is not None and not isinstance(size, int):
        raise BadRequest(f"The size of {path[:120]!r} must be a whole number.")
    return size


def _decode_content(path: str, value: Json) -> bytes:
    text = str(value.get("content") or "")
    if value.get("encoding", "utf-8") != "base64":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"The content of {path[:120]!r} is not base64.") from error


routes = [Route(REPO_PATH + "/commit/{revision:quoted}", commit, methods=["POST"])]
