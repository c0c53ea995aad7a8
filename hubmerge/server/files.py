"""Endpoints for the files of a revision: list a folder, look up paths, download files or ranges."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hubmerge.server.access import readable_repo, requested_repo_id
from hubmerge.server.git import GitCommit
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.info import format_time, lfs_to_json
from hubmerge.server.messages import (
    REPO_PATH,
    WEB_PATHS,
    Json,
    is_true,
    paginate,
    query_flag,
    with_form,
    with_json,
)
from hubmerge.server.snapshot import File, Snapshot, read_at_commits

_PAGE_SIZE = 1000
_EXPANDED_PAGE_SIZE = 50
_CHUNK_BYTES = 1 << 20
_MAX_COMMITS, _MAX_SMALL_BYTES = 1000, 64 << 10
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def tree(request: Request) -> Response:
    """List a folder; later pages are pinned to the commit of the first."""
    snapshot, id = (
        readable_repo(request).snapshot(request.path_params["revision"]),
        requested_repo_id(request),
    )
    path, expand = request.path_params.get("path", "").strip("/"), query_flag(request, "expand")
    entries = snapshot.list_folder(path, recursive=query_flag(request, "recursive"))
    page_path = f"/api/{id.kind}/{id}/tree/{snapshot.sha}" + (
        f"/{quote(path, safe='')}" if path else ""
    )
    files, headers = paginate(
        request, entries, _EXPANDED_PAGE_SIZE if expand else _PAGE_SIZE, page_path
    )
    return JSONResponse(_files_to_json(snapshot, files, expand), headers=headers)


def paths_info(request: Request, form: dict[str, list[str]]) -> Response:
    """Details of the given paths; those that do not exist are left out."""
    snapshot = readable_repo(request).snapshot(request.path_params["revision"])
    files = snapshot.find_files(form.get("paths", []))
    return JSONResponse(_files_to_json(snapshot, files, is_true(form.get("expand", [""])[0])))


def at_commits(request: Request, body: Json) -> Response:
    """The contents of small files at many commits; null for others, which a client reads one by
    one. Only commands of hubmerge ask this.
    """
    paths = body.get("paths")
    if not isinstance(paths, list) or len(paths) > _MAX_COMMITS:
        raise BadRequest(f'"paths" must be a list of up to {_MAX_COMMITS} commits and paths.')
    if not all(isinstance(item, list) and [*map(type, item)] == [str, str] for item in paths):
        raise BadRequest("Each path must be a list of a commit and a path.")
    wanted = [(sha, path) for sha, path in paths]
    read = read_at_commits(readable_repo(request).folder, wanted, _MAX_SMALL_BYTES)
    return JSONResponse({"files": [_small_file_to_json(file) for file in read]})


def resolve(request: Request) -> Response:
    """Send a file or a range of it; for HEAD, only the headers."""
    snapshot = readable_repo(request).snapshot(request.path_params["revision"])
    file = snapshot.file(request.path_params["path"])
    headers = _headers(file, snapshot.sha)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    range_header = request.headers.get("range", "")
    # A client would append a range of the new file to bytes of the old one.
    if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        range_header = ""
    byte_range = parse_range(range_header, file.size)
    if byte_range is None:
        headers |= {"Content-Range": f"bytes */{file.size}"}
        return Response(status_code=416, headers=headers)
    headers["Content-Length"] = str(len(byte_range))
    status = 200
    if range_header and len(byte_range) < file.size:
        status = 206
        headers["Content-Range"] = f"bytes {byte_range.start}-{byte_range.stop - 1}/{file.size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_read_chunks(snapshot.open(file), byte_range), status, headers)


def parse_range(header: str, size: int) -> range | None:
    """The bytes of a Range header: all for an unsupported one, None outside the file."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return range(size)
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size) if int(last) else None
    return range(int(first), min(int(last) + 1, size) if last else size) or None


def _files_to_json(snapshot: Snapshot, files: list[File], expand: bool) -> list[Json]:
    changes = snapshot.last_changes(file.path for file in files) if expand else {}
    return [_file_to_json(file, changes.get(file.path)) for file in files]


def _small_file_to_json(file: tuple[str, bytes] | None) -> Json | None:
    if file is None:
        return None
    oid, content = file
    return {"oid": oid, "content": base64.b64encode(content).decode() if oid else None}


def _file_to_json(file: File, change: GitCommit | None) -> Json:
    kind = "directory" if file.is_folder else "file"
    fields: Json = {"type": kind, "oid": file.oid, "size": file.size, "path": file.path}
    if file.lfs:
        fields["lfs"] = lfs_to_json(file)
    if change:
        fields["lastCommit"] = {
            "id": change.id,
            "title": change.title,
            "date": format_time(change.date),
        }
    return fields


def _headers(file: File, sha: str) -> dict[str, str]:
    headers = {
        "X-Repo-Commit": sha,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.path.split('/')[-1])}",
        # An HTML file of a repository must not run as a page of the Hub.
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
    }
    if file.lfs:
        headers |= {"X-Linked-ETag": f'"{file.lfs.oid}"', "X-Linked-Size": str(file.lfs.size)}
    return headers


def _read_chunks(content: BinaryIO, byte_range: range) -> Iterator[bytes]:
    with content:
        content.seek(byte_range.start)
        left = len(byte_range)
        while left and (chunk := content.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


routes = [
    Route(REPO_PATH + "/tree/{revision:quoted}", tree),
    Route(REPO_PATH + "/tree/{revision:quoted}/{path:rest}", tree),
    Route(REPO_PATH + "/paths-info/{revision:quoted}", with_form(paths_info), methods=["POST"]),
    Route(
        "/api/hubmerge/files/{kind:kind}/{owner:quoted}/{name:quoted}",
        with_json(at_commits),
        methods=["POST"],
    ),
    *(Route(web + "/resolve/{revision:quoted}/{path:rest}", resolve) for web in WEB_PATHS),
]
