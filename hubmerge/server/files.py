"""Files of a revision: listed folder by folder, looked up by name, downloaded whole or in part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hubmerge.server.access import readable, repo_id
from hubmerge.server.git import Version
from hubmerge.server.info import large, stamp
from hubmerge.server.messages import REPO, WEB, Json, flag, is_true, page, with_form
from hubmerge.server.snapshot import File, Snapshot

_PAGE = 1000
_EXPANDED_PAGE = 50
_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def tree(request: Request) -> Response:
    """What lies in a folder; later pages are pinned to the commit of the first."""
    snapshot, id = readable(request).at(request.path_params["revision"]), repo_id(request)
    path, expand = request.path_params.get("path", "").strip("/"), flag(request, "expand")
    found = snapshot.entries(path, recursive=flag(request, "recursive"))
    here = f"/api/{id.kind}/{id}/tree/{snapshot.sha}" + (f"/{quote(path, safe='')}" if path else "")
    files, headers = page(request, found, _EXPANDED_PAGE if expand else _PAGE, here)
    return JSONResponse(_told(snapshot, files, expand), headers=headers)


def paths_info(request: Request, form: dict[str, list[str]]) -> Response:
    """The named paths; those that do not exist are left out."""
    snapshot = readable(request).at(request.path_params["revision"])
    found = snapshot.look_up(form.get("paths", []))
    return JSONResponse(_told(snapshot, found, is_true(form.get("expand", [""])[0])))


def resolve(request: Request) -> Response:
    """Send a file, or for HEAD only what there is to know about it."""
    snapshot = readable(request).at(request.path_params["revision"])
    file = snapshot.file(request.path_params["path"])
    headers = _headers(file, snapshot.sha)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range", "")
    # A range of a file that changed meanwhile would be glued to bytes of the old one.
    if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        wanted = ""
    span = parse_range(wanted, file.size)
    if span is None:
        headers |= {"Content-Range": f"bytes */{file.size}"}
        return Response(status_code=416, headers=headers)
    headers["Content-Length"] = str(len(span))
    status = 200
    if wanted and len(span) < file.size:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_pieces(snapshot.open(file), span), status, headers)


def parse_range(header: str, size: int) -> range | None:
    """The bytes that a Range header wants; all for one we need not heed; None if beyond."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not any(found.groups()):
        return range(size)
    first, last = found.groups()
    if not first:
        return range(max(size - int(last), 0), size) if int(last) else None
    return range(int(first), min(int(last) + 1, size) if last else size) or None


def _told(snapshot: Snapshot, files: list[File], expand: bool) -> list[Json]:
    changes = snapshot.last_changes(file.path for file in files) if expand else {}
    return [_told_file(file, changes.get(file.path)) for file in files]


def _told_file(file: File, change: Version | None) -> Json:
    kind = "directory" if file.is_folder else "file"
    told: Json = {"type": kind, "oid": file.oid, "size": file.size, "path": file.path}
    if file.lfs:
        told["lfs"] = large(file)
    if change:
        told["lastCommit"] = {"id": change.id, "title": change.title, "date": stamp(change.date)}
    return told


def _headers(file: File, sha: str) -> dict[str, str]:
    headers = {
        "X-Repo-Commit": sha,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.path.split('/')[-1])}",
        # A page out of a repository must not run as a page of the Hub.
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
    }
    if file.lfs:
        headers |= {"X-Linked-ETag": f'"{file.lfs.oid}"', "X-Linked-Size": str(file.lfs.size)}
    return headers


def _pieces(content: BinaryIO, span: range) -> Iterator[bytes]:
    with content:
        content.seek(span.start)
        left = len(span)
        while left and (piece := content.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


routes = [
    Route(REPO + "/tree/{revision:quoted}", tree),
    Route(REPO + "/tree/{revision:quoted}/{path:rest}", tree),
    Route(REPO + "/paths-info/{revision:quoted}", with_form(paths_info), methods=["POST"]),
    *(Route(web + "/resolve/{revision:quoted}/{path:rest}", resolve) for web in WEB),
]
