"""Files of a revision: listed folder by folder, or looked up by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import readable, repo_id
from hubmerge.server.convertors import REPO
from hubmerge.server.exchange import Json, flag, is_true, link_to, number, with_form
from hubmerge.server.git import Version
from hubmerge.server.info import large, stamp
from hubmerge.server.snapshot import File, Snapshot

_PAGE = 1000
_EXPANDED_PAGE = 50


def tree(request: Request) -> Response:
    """What lies in a folder; later pages are pinned to the commit of the first."""
    snapshot = readable(request).at(request.path_params["revision"])
    path, expand = request.path_params.get("path", "").strip("/"), flag(request, "expand")
    found = snapshot.entries(path, recursive=flag(request, "recursive"))
    start = number(request, "cursor", 1, most=1 << 30) - 1
    most = _EXPANDED_PAGE if expand else _PAGE
    end = start + number(request, "limit", most, most=most)
    headers = _next(request, snapshot, path, end + 1) if len(found) > end else {}
    return JSONResponse(_told(snapshot, found[start:end], expand), headers=headers)


def paths_info(request: Request, form: dict[str, list[str]]) -> Response:
    """The named paths; those that do not exist are left out."""
    snapshot = readable(request).at(request.path_params["revision"])
    found = snapshot.look_up(form.get("paths", []))
    return JSONResponse(_told(snapshot, found, is_true(form.get("expand", [""])[0])))


def _next(request: Request, snapshot: Snapshot, path: str, cursor: int) -> Mapping[str, str]:
    id = repo_id(request)
    below = f"/{quote(path, safe='')}" if path else ""
    address = f"/api/{id.kind}/{id}/tree/{snapshot.sha}{below}"
    return link_to(request, address, cursor=str(cursor))


def _told(snapshot: Snapshot, files: Iterable[File], expand: bool) -> list[Json]:
    files = list(files)
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


routes = [
    Route(REPO + "/tree/{revision:quoted}", tree),
    Route(REPO + "/tree/{revision:quoted}/{path:rest}", tree),
    Route(REPO + "/paths-info/{revision:quoted}", with_form(paths_info), methods=["POST"]),
]
