"""Repositories as a whole: made, removed, configured, told about and listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import asker, hub, visible, writable, writer
from hubmerge.server.http_errors import BadRequest, Conflict
from hubmerge.server.info import describe, pick
from hubmerge.server.messages import REPO, Json, flag, origin, page, with_json
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository

_PAGE = 1000
_SORTS = {"createdAt", "lastModified", "downloads", "likes", "trendingScore"}
_GATES = ("auto", "manual", False)


def create(request: Request, body: Json) -> Response:
    """Make a repository; the address of one that exists is told as well, clients rely on it."""
    user = writer(request)
    id = _named(body, user.name)
    told = {"url": f"{origin(request)}/{id.web_path}", "name": str(id)}
    try:
        hub(request).store.create(id, author=user.name, private=_is_private(body))
    except Conflict as error:
        return JSONResponse({"error": error.message, **told}, error.status)
    return JSONResponse(told)


def delete(request: Request, body: Json) -> Response:
    user = writer(request)
    hub(request).store.delete(_named(body, user.name))
    return JSONResponse({})


def configure(request: Request, body: Json) -> Response:
    """Change who may see a repository, and who may read its files."""
    repository = writable(request)
    gated = body.get("gated", repository.settings.gated)
    if gated not in _GATES:
        raise BadRequest('"gated" must be "auto", "manual" or false.')
    private = _is_private(body, repository.settings.private)
    repository.configure(replace(repository.settings, private=private, gated=gated))
    return JSONResponse({"private": private, "gated": gated})


def info(request: Request) -> Response:
    """Tell about a repository at a revision."""
    repository = visible(request)
    snapshot = repository.at(request.path_params.get("revision", "main"))
    told = describe(repository, snapshot, blobs=flag(request, "blobs"))
    names = request.query_params.getlist("expand")
    return JSONResponse(pick(repository.id.kind, told, names) if names else told)


def listing(request: Request) -> Response:
    """Tell about all repositories of a kind that the asker may see and that fit the query."""
    kind, names = request.path_params["kind"], request.query_params.getlist("expand")
    found = _sorted(request, list(_fitting(request)))
    told, headers = page(request, found, _PAGE, f"/api/{kind}")
    return JSONResponse([pick(kind, t, names) if names else t for t in told], headers=headers)


def auth_check(request: Request) -> Response:
    """Whether the asker may see, or with /write change, a repository."""
    (writable if request.url.path.endswith("/write") else visible)(request)
    return JSONResponse({})


def _named(body: Json, user: str) -> RepoId:
    kind = f"{body.get('type') or 'model'}s"
    return RepoId(kind, str(body.get("organization") or user), str(body.get("name") or ""))


def _is_private(body: Json, default: bool = False) -> bool:
    if "visibility" in body:
        return bool(body["visibility"] != "public")
    return bool(body.get("private", default))


def _fitting(request: Request) -> Iterator[Json]:
    query, signed_in = request.query_params, asker(request) is not None
    wanted = set(query.getlist("filter"))
    for repository in hub(request).store.all(request.path_params["kind"]):
        if not signed_in and repository.settings.private:
            continue
        if not _named_like(repository, query.get("author"), query.get("search", "")):
            continue
        told = describe(repository, repository.at("main"))
        if wanted <= set(told["tags"]):
            yield told


def _named_like(repository: Repository, author: str | None, search: str) -> bool:
    return author in (None, repository.id.owner) and search.lower() in str(repository.id).lower()


def _sorted(request: Request, found: list[Json]) -> list[Json]:
    key = request.query_params.get("sort", "lastModified")
    if key not in _SORTS:
        raise BadRequest(f'"sort" must be one of {", ".join(sorted(_SORTS))}.')
    return sorted(found, key=lambda told: told.get(key) or 0, reverse=True)


routes = [
    Route("/api/repos/create", with_json(create), methods=["POST"]),
    Route("/api/repos/delete", with_json(delete), methods=["DELETE"]),
    Route("/api/{kind:kind}", listing),
    Route(REPO, info),
    Route(REPO + "/revision/{revision:quoted}", info),
    Route(REPO + "/settings", with_json(configure), methods=["PUT"]),
    Route(REPO + "/auth-check", auth_check),
    Route(REPO + "/auth-check/write", auth_check),
]
