"""Endpoints for repositories: create, delete, configure, describe and list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import (
    current_user,
    get_hub,
    require_writer,
    visible_repo,
    writable_repo,
)
from hubmerge.server.http_errors import BadRequest, Conflict
from hubmerge.server.info import describe_repo, select_properties
from hubmerge.server.messages import REPO_PATH, Json, base_url, paginate, query_flag, with_json
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository

_PAGE_SIZE = 1000
_SORT_KEYS = {"createdAt", "lastModified", "downloads", "likes", "trendingScore"}
_GATED_VALUES = ("auto", "manual", False)


def create(request: Request, body: Json) -> Response:
    """Create a repository; for an existing one the error has its URL, which clients read."""
    user = require_writer(request)
    id = _repo_id_of(body, user.name)
    result = {"url": f"{base_url(request)}/{id.web_path}", "name": str(id)}
    try:
        get_hub(request).store.create(id, author=user.name, private=_is_private(body))
    except Conflict as error:
        return JSONResponse({"error": error.message, **result}, error.status)
    return JSONResponse(result)


def delete(request: Request, body: Json) -> Response:
    user = require_writer(request)
    get_hub(request).store.delete(_repo_id_of(body, user.name))
    return JSONResponse({})


def configure(request: Request, body: Json) -> Response:
    """Change whether a repository is private or gated."""
    repository = writable_repo(request)
    gated = body.get("gated", repository.settings.gated)
    if gated not in _GATED_VALUES:
        raise BadRequest('"gated" must be "auto", "manual" or false.')
    private = _is_private(body, repository.settings.private)
    repository.configure(replace(repository.settings, private=private, gated=gated))
    return JSONResponse({"private": private, "gated": gated})


def info(request: Request) -> Response:
    """Describe a repository at a revision."""
    repository = visible_repo(request)
    snapshot = repository.snapshot(request.path_params.get("revision", "main"))
    description = describe_repo(repository, snapshot, blobs=query_flag(request, "blobs"))
    names = request.query_params.getlist("expand")
    if names:
        description = select_properties(repository.id.kind, description, names)
    return JSONResponse(description)


def listing(request: Request) -> Response:
    """Describe the repositories of a kind that the user may see and that match the query."""
    kind, names = request.path_params["kind"], request.query_params.getlist("expand")
    matches = _sorted(request, list(_matching_repos(request)))
    shown, headers = paginate(request, matches, _PAGE_SIZE, f"/api/{kind}")
    return JSONResponse(
        [select_properties(kind, item, names) if names else item for item in shown], headers=headers
    )


def auth_check(request: Request) -> Response:
    """Check that the user may see or, with /write, change a repository."""
    (writable_repo if request.url.path.endswith("/write") else visible_repo)(request)
    return JSONResponse({})


def _repo_id_of(body: Json, user: str) -> RepoId:
    kind = f"{body.get('type') or 'model'}s"
    return RepoId(kind, str(body.get("organization") or user), str(body.get("name") or ""))


def _is_private(body: Json, default: bool = False) -> bool:
    if "visibility" in body:
        return bool(body["visibility"] != "public")
    return bool(body.get("private", default))


def _matching_repos(request: Request) -> Iterator[Json]:
    query, signed_in = request.query_params, current_user(request) is not None
    required_tags = set(query.getlist("filter"))
    for repository in get_hub(request).store.all(request.path_params["kind"]):
        if not signed_in and repository.settings.private:
            continue
        if not _name_matches(repository, query.get("author"), query.get("search", "")):
            continue
        description = describe_repo(repository, repository.snapshot("main"))
        if required_tags <= set(description["tags"]):
            yield description


def _name_matches(repository: Repository, author: str | None, search: str) -> bool:
    return author in (None, repository.id.owner) and search.lower() in str(repository.id).lower()


def _sorted(request: Request, descriptions: list[Json]) -> list[Json]:
    key = request.query_params.get("sort", "lastModified")
    if key not in _SORT_KEYS:
        raise BadRequest(f'"sort" must be one of {", ".join(sorted(_SORT_KEYS))}.')
    return sorted(descriptions, key=lambda item: item.get(key) or 0, reverse=True)


routes = [
    Route("/api/repos/create", with_json(create), methods=["POST"]),
    Route("/api/repos/delete", with_json(delete), methods=["DELETE"]),
    Route("/api/{kind:kind}", listing),
    Route(REPO_PATH, info),
    Route(REPO_PATH + "/revision/{revision:quoted}", info),
    Route(REPO_PATH + "/settings", with_json(configure), methods=["PUT"]),
    Route(REPO_PATH + "/auth-check", auth_check),
    Route(REPO_PATH + "/auth-check/write", auth_check),
]
