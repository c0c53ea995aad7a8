"""Large files on their way in: which ones are large, where to send them, and did they arrive."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import hub, repo_id, writable
from hubmerge.server.content import is_ignored, is_tracked, lfs_patterns
from hubmerge.server.http_errors import BadRequest, EntryMissing, Forbidden, TooLarge
from hubmerge.server.messages import REPO, WEB, Json, objects, origin, with_json
from hubmerge.server.snapshot import File

# Small files travel inside the commit itself, so they must stay small.
LARGEST_SMALL_FILE = 10 << 20

_PIECE = 1 << 20
_ACCEPT = "application/vnd.git-lfs+json"


def preupload(request: Request, body: Json) -> Response:
    """For each file: does it go by LFS, is it ignored, and what is there already."""
    snapshot = writable(request).at(request.path_params["revision"])
    files, gitignore = objects(body, "files"), str(body.get("gitIgnore") or "")
    there = {file.path: file for file in snapshot.look_up(str(f.get("path")) for f in files)}
    patterns = lfs_patterns(snapshot.read(".gitattributes"))
    return JSONResponse({"files": [_advice(f, there, patterns, gitignore) for f in files]})


def batch(request: Request, body: Json) -> Response:
    """Where to send each content; nowhere if it is here."""
    writable(request)
    if body.get("operation") != "upload":
        raise BadRequest("Only uploads go by LFS here: download files by /resolve/.")
    told = [_order(request, object) for object in objects(body, "objects")]
    return JSONResponse({"transfer": "basic", "objects": told}, media_type=_ACCEPT)


def verify(request: Request, body: Json) -> Response:
    """Whether a content arrived whole."""
    writable(request)
    blobs, oid = hub(request).store.blobs, str(body.get("oid"))
    if not blobs.has(oid) or blobs.size(oid) != body.get("size"):
        raise EntryMissing(f"The content {oid} did not arrive.")
    return JSONResponse({})


async def upload(request: Request) -> Response:
    """Take a content in, piece by piece; it counts only once its sha256 is what was promised."""
    oid, size = request.path_params["oid"], _signed_size(request)
    with hub(request).store.blobs.receive() as incoming:
        pending = bytearray()
        async for piece in request.stream():
            pending += piece
            if incoming.size + len(pending) > size:
                raise TooLarge(f"More than the {size} bytes that were announced.")
            if len(pending) >= _PIECE:
                await run_in_threadpool(incoming.write, pending)
                pending = bytearray()
        await run_in_threadpool(incoming.write, pending)
        await run_in_threadpool(incoming.keep, oid, size)
    return Response()


def _advice(file: Json, there: dict[str, File], patterns: list[str], gitignore: str) -> Json:
    path, size = str(file.get("path")), file.get("size")
    large = is_tracked(path, patterns) or (isinstance(size, int) and size > LARGEST_SMALL_FILE)
    told = {
        "path": path,
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": is_ignored(path, gitignore),
    }
    known = there.get(path)
    return {**told, "oid": known.etag} if known and not known.is_folder else told


def _order(request: Request, object: Json) -> Json:
    oid, size = str(object.get("oid")), object.get("size")
    if not isinstance(size, int) or size < 0:
        raise BadRequest(f"The content {oid[:80]} must have a size in bytes.")
    if hub(request).store.blobs.has(oid):
        return {"oid": oid, "size": size}
    query = urlencode(hub(request).signer.query(oid, size))
    repository = f"{origin(request)}/{repo_id(request).web_path}.git/info/lfs/objects"
    actions = {
        "upload": {"href": f"{origin(request)}/lfs/{oid}?{query}"},
        "verify": {"href": f"{repository}/verify"},
    }
    return {"oid": oid, "size": size, "authenticated": True, "actions": actions}


def _signed_size(request: Request) -> int:
    query = request.query_params
    size = query.get("size", "")
    signature = query.get("expires", ""), query.get("sig", "")
    if not hub(request).signer.admits(request.path_params["oid"], size, *signature):
        raise Forbidden("This upload address is not one of ours, or it has expired.")
    return int(size)


routes = [
    Route(REPO + "/preupload/{revision:quoted}", with_json(preupload), methods=["POST"]),
    Route("/lfs/{oid:quoted}", upload, methods=["PUT"]),
    *(
        Route(f"{web}.git/info/lfs/objects/{verb}", with_json(handler), methods=["POST"])
        for web in WEB
        for verb, handler in (("batch", batch), ("verify", verify))
    ),
]
