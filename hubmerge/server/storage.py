"""The large files that a repository stores: listed, and deleted for good."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import hub, repo_id, writable
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.info import stamp
from hubmerge.server.messages import REPO, Json, page, with_json

_PAGE = 1000


def listing(request: Request) -> Response:
    """Every large file that some commit lists and that is still here, whatever refs there are."""
    found, blobs, id = writable(request).large_files(), hub(request).store.blobs, repo_id(request)
    told: list[Json] = [
        {
            "fileOid": oid,
            "oid": oid,
            "filename": name,
            "size": pointer.size,
            "pushedAt": stamp(datetime.fromtimestamp(blobs.path(oid).stat().st_mtime, UTC)),
        }
        for oid, (name, pointer) in sorted(found.items())
        if blobs.has(oid)
    ]
    some, headers = page(request, told, _PAGE, f"/api/{id.kind}/{id}/lfs-files")
    return JSONResponse(some, headers=headers)


def delete(request: Request, body: Json) -> Response:
    """Delete contents for good; the commits that list them stay, and can no longer be loaded."""
    writable(request)
    wanted = body.get("deletions")
    wanted = wanted if isinstance(wanted, dict) else {}
    oids = wanted.get("sha")
    if not isinstance(oids, list) or not all(isinstance(oid, str) for oid in oids):
        raise BadRequest('"deletions" must hold "sha", a list of contents.')
    if wanted.get("rewriteHistory"):
        raise BadRequest("This Hub never rewrites history: commits keep their SHA.")
    hub(request).store.forget(repo_id(request), oids)
    return JSONResponse({})


routes = [
    Route(REPO + "/lfs-files", listing),
    Route(REPO + "/lfs-files/batch", with_json(delete), methods=["POST"]),
]
