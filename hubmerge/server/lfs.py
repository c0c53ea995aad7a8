"""Endpoints to upload large files: which files are large, where to send them, verification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import (
    contributable_repo,
    current_user,
    get_hub,
    may_read,
    readable_repo,
    requested_repo_id,
)
from hubmerge.server.content import is_ignored, is_lfs_path, lfs_patterns
from hubmerge.server.disk import check_space
from hubmerge.server.http_errors import BadRequest, EntryMissing
from hubmerge.server.large_file_access import LargeFileAccess
from hubmerge.server.messages import (
    REPO_PATH,
    WEB_PATHS,
    Json,
    base_url,
    json_objects,
    receive_body,
    with_json,
)
from hubmerge.server.multipart import (
    MAX_SINGLE_BYTES,
    check_upload,
    part_actions,
    signed_size,
    upload_url,
)
from hubmerge.server.snapshot import File

# Regular files are sent inside the commit itself, so they must be small.
MAX_REGULAR_BYTES = 10 << 20

_LFS_MEDIA_TYPE = "application/vnd.git-lfs+json"
# What a download is signed for, so that an URL to upload a content does not read it.
_DOWNLOAD = "download "


def preupload(request: Request, body: Json) -> Response:
    """For each file: whether to use LFS, whether it is ignored, and the id of an existing one."""
    repository = contributable_repo(request)
    snapshot = repository.snapshot(request.path_params["revision"])
    # The first request of every upload: a full disk is known before anything is sent.
    check_space(get_hub(request).store.data)
    files, gitignore = json_objects(body, "files"), body.get("gitIgnore")
    # The client sends the one that it uploads too; else that of the repository holds.
    gitignore = gitignore or snapshot.read(".gitignore").decode(errors="replace")
    # Who may only propose changes to a gated repository does not learn what is in it.
    is_readable = may_read(request, current_user(request), repository)
    paths = [str(file.get("path")) for file in files] if is_readable else []
    existing = {file.path: file for file in snapshot.find_files(paths)}
    patterns = lfs_patterns(snapshot.read(".gitattributes"))
    return JSONResponse(
        {"files": [_upload_mode(f, existing, patterns, str(gitignore)) for f in files]}
    )


def batch(request: Request, body: Json) -> Response:
    """The URL of each content: to download it, or to upload it unless the user has it here."""
    if body.get("operation") == "download":
        answers = [*_download_actions(request, body)]
        return JSONResponse({"transfer": "basic", "objects": answers}, media_type=_LFS_MEDIA_TYPE)
    access = LargeFileAccess(request, contributable_repo(request))
    if body.get("operation") != "upload":
        raise BadRequest('"operation" must be "upload" or "download".')
    objects = json_objects(body, "objects")
    transfer = _choose_transfer(body.get("transfers"), objects)
    answers = [_upload_actions(request, access, object, transfer) for object in objects]
    return JSONResponse({"transfer": transfer, "objects": answers}, media_type=_LFS_MEDIA_TYPE)


def verify(request: Request, body: Json) -> Response:
    """Check that a content arrived completely."""
    access = LargeFileAccess(request, contributable_repo(request))
    blobs, oid = get_hub(request).store.blobs, str(body.get("oid"))
    if not access.allows(oid) or blobs.size(oid) != body.get("size"):
        raise EntryMissing(f"The content {oid} did not arrive.")
    return JSONResponse({})


async def upload(request: Request) -> Response:
    """Receive a content in chunks; it is stored only if its sha256 is as announced."""
    oid = request.path_params["oid"]
    size, user = check_upload(request, oid)
    store = get_hub(request).store
    with store.blobs.receive() as incoming:
        await receive_body(
            request, incoming.write, size, f"More than the {size} bytes that were announced."
        )
        await run_in_threadpool(incoming.store, oid, size)
    store.uploads.record(user, oid)
    return Response()


def download(request: Request) -> Response:
    """A content whose URL was signed for a download."""
    oid = request.path_params["oid"]
    signed_size(request, _DOWNLOAD + oid)
    blobs = get_hub(request).store.blobs
    if not blobs.has(oid):
        raise EntryMissing(f"The content {oid} has been deleted.")
    return FileResponse(blobs.path(oid))


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


def _choose_transfer(offered: Any, objects: list[Json]) -> str:
    """Parts for very large files, and for clients that can do nothing else."""
    sizes = [size for object in objects if isinstance(size := object.get("size"), int)]
    if not isinstance(offered, list) or "multipart" not in offered:
        return "basic"
    is_large = max(sizes, default=0) > MAX_SINGLE_BYTES
    return "multipart" if is_large or "basic" not in offered else "basic"


def _download_actions(request: Request, body: Json) -> Iterator[Json]:
    """Yield the URL of each content that is in this repository, not only in another one."""
    repository = readable_repo(request)
    files = repository.large_files()
    for object in json_objects(body, "objects"):
        oid, size = str(object.get("oid")), object.get("size")
        if oid not in files:
            error = {"code": 404, "message": f"{repository.id} has no large file {oid[:80]}."}
            yield {"oid": oid, "size": size, "error": error}
            continue
        query = urlencode(get_hub(request).signer.sign(_DOWNLOAD + oid, files[oid][1].size))
        action = {"href": f"{base_url(request)}/lfs/{oid}?{query}"}
        yield {
            "oid": oid, "size": size, "authenticated": True, "actions": {"download": action},
        }  # fmt: skip


def _upload_actions(request: Request, access: LargeFileAccess, object: Json, transfer: str) -> Json:
    oid, size = str(object.get("oid")), object.get("size")
    if not isinstance(size, int) or size < 0:
        raise BadRequest(f"The content {oid[:80]} must have a size in bytes.")
    store = get_hub(request).store
    if access.touch(oid):
        return {"oid": oid, "size": size}
    check_space(store.data, size)
    if transfer == "multipart" and size:
        upload = part_actions(request, oid, size, access.user)
    else:
        upload = {"href": upload_url(request, oid, size, access.user)}
    repository = f"{base_url(request)}/{requested_repo_id(request).web_path}.git/info/lfs/objects"
    actions = {
        "upload": upload,
        "verify": {"href": f"{repository}/verify"},
    }
    # Not "authenticated": git-lfs would verify without its token.
    return {"oid": oid, "size": size, "actions": actions}


routes = [
    Route(REPO_PATH + "/preupload/{revision:quoted}", with_json(preupload), methods=["POST"]),
    Route("/lfs/{oid:quoted}", upload, methods=["PUT"]),
    Route("/lfs/{oid:quoted}", download),
    *(
        Route(f"{web}.git/info/lfs/objects/{verb}", with_json(handler), methods=["POST"])
        for web in WEB_PATHS
        for verb, handler in (("batch", batch), ("verify", verify))
    ),
]
