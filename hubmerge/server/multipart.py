"""Endpoints to upload a very large file in parts, so that a lost connection costs one part."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hubmerge.server.access import HubState, get_hub
from hubmerge.server.http_errors import BadRequest, Forbidden
from hubmerge.server.messages import Json, base_url, receive_body, with_json

# Files that are larger go in parts if the client can do that.
MAX_SINGLE_BYTES = 1 << 30

_MIN_PART_BYTES, _MAX_PARTS = 16 << 20, 1000
_UPLOAD = re.compile(r"[0-9a-f]{32}")


def part_actions(request: Request, oid: str, size: int, user: str) -> Json:
    """The URL of each part by its number, and the URL that completes the upload."""
    upload, part_bytes = secrets.token_hex(16), max(_MIN_PART_BYTES, -(-size // _MAX_PARTS))
    header = {"chunk_size": str(part_bytes)}
    for number, start in enumerate(range(0, size, part_bytes), 1):
        length = min(part_bytes, size - start)
        header[f"{number:05}"] = upload_url(request, f"{oid}/{upload}/{start}", length, user)
    return {"href": upload_url(request, f"{oid}/{upload}", size, user), "header": header}


async def receive_part(request: Request) -> Response:
    """Write a part to its place; clients need an ETag in the response."""
    names = request.path_params
    subject = f"{names['oid']}/{names['upload']}/{names['start']}"
    (size, _), start, digest = check_upload(request, subject), int(names["start"]), hashlib.sha256()
    file = os.open(_part_file(get_hub(request), names["upload"]), os.O_WRONLY | os.O_CREAT, 0o600)
    written = 0

    def write(chunk: bytearray) -> None:
        nonlocal written
        view = memoryview(chunk)
        while view:
            count = os.pwrite(file, view, start + written)
            written, view = written + count, view[count:]
        digest.update(chunk)

    try:
        await receive_body(request, write, size, f"More than the {size} bytes of this part.")
    finally:
        os.close(file)
    if written != size:
        raise BadRequest(f"Received {written} bytes of a part of {size} bytes.")
    return Response(headers={"ETag": f'"{digest.hexdigest()}"'})


def complete(request: Request, body: Json) -> Response:
    """Store the content if all parts together have the announced sha256."""
    names, hub = request.path_params, get_hub(request)
    size, user = check_upload(request, f"{names['oid']}/{names['upload']}")
    file = _part_file(hub, names["upload"])
    # A client that lost the response asks again.
    if not hub.store.uploads.has(user, names["oid"]):
        if not file.is_file():
            raise BadRequest("No part of this upload has arrived: upload the file again.")
        hub.store.blobs.move_in(file, names["oid"], size)
        hub.store.uploads.record(user, names["oid"])
    return Response()


def upload_url(request: Request, path: str, size: int, user: str) -> str:
    """The URL to upload so many bytes to a path below /lfs, for the user of that `user_key`."""
    query = get_hub(request).signer.sign(_subject(path, user), size)
    return f"{base_url(request)}/lfs/{path}?{urlencode({**query, 'user': user})}"


def check_upload(request: Request, path: str) -> tuple[int, str]:
    """The bytes and the user of an `upload_url`; raises Forbidden."""
    user = request.query_params.get("user", "")
    return signed_size(request, _subject(path, user)), user


def _subject(path: str, user: str) -> str:
    return f"upload {path} {user}"


def signed_size(request: Request, subject: str) -> int:
    """The number of bytes for which a URL was signed; raises Forbidden."""
    query = request.query_params
    size = query.get("size", "")
    signature = query.get("expires", ""), query.get("sig", "")
    if not get_hub(request).signer.verify(subject, size, *signature):
        raise Forbidden("This URL was not signed by this Hub, or it has expired.")
    return int(size)


def _part_file(hub: HubState, upload: str) -> Path:
    if not _UPLOAD.fullmatch(upload):
        raise BadRequest("This is not the id of an upload.")
    hub.store.parts.mkdir(mode=0o700, exist_ok=True)
    return hub.store.parts / upload


_UPLOAD_PATH = "/lfs/{oid:quoted}/{upload:quoted}"

routes = [
    Route(_UPLOAD_PATH, with_json(complete), methods=["POST"]),
    Route(_UPLOAD_PATH + "/{start:quoted}", receive_part, methods=["PUT"]),
]
