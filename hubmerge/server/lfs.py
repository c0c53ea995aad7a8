"""Endpoints to upload large files: which files are large, where to send them, verification."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import get_hub, requested_repo_id, writable_repo
from hubmerge.server.content import is_ignored, is_lfs_path, lfs_patterns
from hubmerge.server.http_errors import BadRequest, EntryMissing, Forbidden, TooLarge
from hubmerge.server.messages import REPO_PATH, WEB_PATHS, Json, base_url, json_objects, with_json
from hubmerge.server.snapshot import File

# Regular files are sent inside the commit itself, so they must be small.
MAX_REGULAR_BYTES = 10 << 20

_CHUNK_BYTES = 1 << 20
_LFS_MEDIA_TYPE = "application/vnd.git-lfs+json"


def preupload(request: Request, body: Json) -> Response:
    """For each file: whether to use LFS, whether it is ignored, and the id of an existing one."""
    snapshot = writable_repo(request).snapshot(request.path_params["revision"])
    files, gitignore = json_objects(body, "files"), str(body.get("gitIgnore") or "")
    existing = {file.path: file for file in snapshot.find_files(str(f.get("path")) for f in files)}
    patterns = lfs_patterns(snapshot.read(".gitattributes"))
    return JSONResponse({"files": [_upload_mode(f, existing, patterns, gitignore) for f in files]})


def batch(request: Request, body: Json) -> Response:
    """The upload URL of each content; none for a content that exists already."""
    writable_repo(request)
    if body.get("operation") != "upload":
        raise BadRequest("Only uploads go by LFS here: download files by /resolve/.")
    answers = [_upload_actions(request, object) for object in json_objects(body, "objects")]
    return JSONResponse({"transfer": "basic", "objects": answers}, media_type=_LFS_MEDIA_TYPE)


def verify(request: Request, body: Json) -> Response:
    """Check that a content arrived completely."""
    writable_repo(request)
    blobs, oid = get_hub(request).store.blobs, str(body.get("oid"))
    if not blobs.has(oid) or blobs.size(oid) != body.get("size"):
        raise EntryMissing(f"The content {oid} did not arrive.")
    return JSONResponse({})


async def upload(request: Request) -> Response:
    """Receive a content in chunks; it is stored only if its sha256 is as announced."""
    oid, size = request.path_params["oid"], _signed_size(request)
    with get_hub(request).store.blobs.receive() as incoming:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if incoming.size + len(pending) > size:
                raise TooLarge(f"More than the {size} bytes that were announced.")
            if len(pending) >= _CHUNK_BYTES:
                await run_in_threadpool(incoming.write, pending)
                pending = bytearray()
        await run_in_threadpool(incoming.write, pending)
        await run_in_threadpool(incoming.store, oid, size)
    return Response()


def _upload_mode(
    file: Json, existing: dict[str, File], patterns: list[str], gitignore: str
) -> Json:
    path, size = str(file.get("path")), file.get("size")
    large = is_lfs_path(path, patterns) or (isinstance(size, int) and size > MAX_REGULAR_BYTES)
    answer = {
        "path": path,
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": is_ignored(path, gitignore),
    }
    known = existing.get(path)
    return {**answer, "oid": known.etag} if known and not known.is_folder else answer


def _upload_actions(request: Request, object: Json) -> Json:
    oid, size = str(object.get("oid")), object.get("size")
    if not isinstance(size, int) or size < 0:
        raise BadRequest(f"The content {oid[:80]} must have a size in bytes.")
    if get_hub(request).store.blobs.has(oid):
        return {"oid": oid, "size": size}
    query = urlencode(get_hub(request).signer.sign(oid, size))
    repository = f"{base_url(request)}/{requested_repo_id(request).web_path}.git/info/lfs/objects"
    actions = {
        "upload": {"href": f"{base_url(request)}/lfs/{oid}?{query}"},
        "verify": {"href": f"{repository}/verify"},
    }
    return {"oid": oid, "size": size, "authenticated": True, "actions": actions}


def _signed_size(request: Request) -> int:
    query = request.query_params
    size = query.get("size", "")
    signature = query.get("expires", ""), query.get("sig", "")
    if not get_hub(request).signer.verify(request.path_params["oid"], size, *signature):
        raise Forbidden("This upload URL was not signed by this Hub, or it has expired.")
    return int(size)


routes = [
    Route(REPO_PATH + "/preupload/{revision:quoted}", with_json(preupload), methods=["POST"]),
    Route("/lfs/{oid:quoted}", upload, methods=["PUT"]),
    *(
        Route(f"{web}.git/info/lfs/objects/{verb}", with_json(handler), methods=["POST"])
        for web in WEB_PATHS
        for verb, handler in (("batch", batch), ("verify", verify))
    ),
]
