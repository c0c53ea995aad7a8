"""Downloads: one file of a revision, whole or in part, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from hubmerge.server.access import readable
from hubmerge.server.convertors import WEB
from hubmerge.server.snapshot import File

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Span:
    """Bytes of a file, from start up to but not including end."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.end - self.start


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
    headers["Content-Length"] = str(span.length)
    status = 200
    if wanted and span.length < file.size:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{file.size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    content = _pieces(snapshot.open(file), span)
    return StreamingResponse(content, status, headers, media_type="application/octet-stream")


def parse_range(header: str, size: int) -> Span | None:
    """The one span that a Range header wants; all for a header we need not heed; None if beyond."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not any(found.groups()):
        return Span(0, size)
    first, last = found.groups()
    if not first:
        return Span(max(size - int(last), 0), size) if int(last) else None
    end = min(int(last) + 1, size) if last else size
    return Span(int(first), end) if int(first) < end else None


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


def _pieces(content: BinaryIO, span: Span) -> Iterator[bytes]:
    with content:
        content.seek(span.start)
        left = span.length
        while left and (piece := content.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


routes = [Route(web + "/resolve/{revision:quoted}/{path:rest}", resolve) for web in WEB]
