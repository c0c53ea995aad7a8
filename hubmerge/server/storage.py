"""Endpoints to list the large files of a repository and to delete them for good."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import get_hub, requested_repo_id, writable_repo
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.info import format_time
from hubmerge.server.messages import REPO_PATH, Json, paginate, with_json

_PAGE_SIZE = 1000


def listing(request: Request) -> Response:
    """Every large file of any commit that still exists, whatever the refs are."""
    large_files, blobs, id = (
        writable_repo(request).large_files(),
        get_hub(request).store.blobs,
        requested_repo_id(request),
    )
    items: list[Json] = [
        {
            "fileOid": oid,
            "oid": oid,
            "filename": name,
            "size": pointer.size,
            "pushedAt": format_time(datetime.fromtimestamp(blobs.path(oid).stat().st_mtime, UTC)),
        }
        for oid, (name, pointer) in sorted(large_files.items())
        if blobs.has(oid)
    ]
    shown, headers = paginate(request, items, _PAGE_SIZE, f"/api/{id.kind}/{id}/lfs-files")
    return JSONResponse(shown, headers=headers)


def delete(request: Request, body: Json) -> Response:
    """Delete contents for good; commits that list them stay, but can no longer be loaded."""
    writable_repo(request)
    deletions = body.get("deletions")
    deletions = deletions if isinstance(deletions, dict) else {}
    oids = deletions.get("sha")
    if not isinstance(oids, list) or not all(isinstance(oid, str) for oid in oids):
        raise BadRequest('"deletions" must hold "sha", a list of contents.')
    if deletions.get("rewriteHistory"):
        raise BadRequest("This Hub never rewrites history: commits keep their SHA.")
    get_hub(request).store.delete_large_files(requested_repo_id(request), oids)
    return JSONResponse({})


routes = [
    Route(REPO_PATH + "/lfs-files", listing),
    Route(REPO_PATH + "/lfs-files/batch", with_json(delete), methods=["POST"]),
]
