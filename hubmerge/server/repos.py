"""Endpoints for repositories: create, delete, configure, describe and list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import (
    check_owner,
    check_writable,
    current_user,
    get_hub,
    may_see,
    readable_repo,
    require_writer,
    visible_repo,
    writable_repo,
)
from hubmerge.server.card_rules import CARD
from hubmerge.server.content import AddFile, Change
from hubmerge.server.http_errors import BadRequest, Conflict, HiddenRepo
from hubmerge.server.info import describe_repo, select_properties
from hubmerge.server.messages import REPO_PATH, Json, base_url, paginate, query_flag, with_json
from hubmerge.server.names import KINDS, RepoId, check_repo
from hubmerge.server.repo_filters import check_filters, matches_description, matches_name

_PAGE_SIZE = 1000
_SORT_KEYS = {"createdAt", "lastModified", "downloads", "likes", "trendingScore"}
_SPACE_SDKS = ("static", "docker", "gradio", "streamlit")
_GATED_VALUES = ("auto", "manual", False)


def create(request: Request, body: Json) -> Response:
    """Create a repository; for an existing one the error has its URL, which clients read."""
    user = require_writer(request)
    id = _repo_id_of(body, user.name)
    check_owner(request, user, id)
    # The name in the case in which it exists.
    id = get_hub(request).store.existing_name(id) or id
    result = {"url": f"{base_url(request)}/{id.web_path}", "name": str(id)}
    try:
        get_hub(request).store.create(
            id, _first_files(id, body), author=user.name, private=_is_private(body)
        )
    except Conflict as error:
        return JSONResponse({"error": error.message, **result}, error.status)
    return JSONResponse(result)


def _first_files(id: RepoId, body: Json) -> list[Change]:
    """A Space has a card from its beginning, as on the public Hub: clients do not make one."""
    if id.kind != "spaces":
        return []
    sdk = body.get("sdk") or "static"
    if sdk not in _SPACE_SDKS:
        raise BadRequest(f'"sdk" must be one of {", ".join(_SPACE_SDKS)}.')
    return [AddFile(CARD, f"---\ntitle: {json.dumps(id.name)}\nsdk: {sdk}\n---\n".encode())]


def delete(request: Request, body: Json) -> Response:
    """Delete a repository; unlike other requests, not by an old name."""
    user, store = require_writer(request), get_hub(request).store
    id = check_writable(request, user, store.find(_repo_id_of(body, user.name))).id
    store.delete(id)
    return JSONResponse({})


def move(request: Request, body: Json) -> Response:
    """Rename a repository or give it to another owner; its old name redirects to the new one."""
    user, store = require_writer(request), get_hub(request).store
    kind = f"{body.get('type') or 'model'}s"
    old, new = (_parse_id(kind, body.get(key)) for key in ("fromRepo", "toRepo"))
    old = check_writable(request, user, store.find(old)).id
    check_owner(request, user, new)
    store.move(old, new)
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
    names = request.query_params.getlist("expand")
    if names == ["sha"]:
        # Asked for every step that is published: nothing of the files is read.
        return JSONResponse({"id": str(repository.id), "sha": snapshot.sha})
    description = describe_repo(repository, snapshot, blobs=query_flag(request, "blobs"))
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


def own_listing(request: Request) -> Response:
    """The repositories of the user of the token, with their size, as `hf repos ls` lists them."""
    user = current_user(request)
    if user is None:
        raise HiddenRepo("Invalid username or password.")
    descriptions = [
        describe_repo(repository, repository.snapshot("main"))
        | {"kind": kind, "private": repository.settings.private}
        for kind in KINDS
        for repository in get_hub(request).store.all(kind)
        if repository.id.owner.lower() == user.name.lower()
    ]
    total = sum(item["usedStorage"] for item in descriptions)
    return JSONResponse([_storage_of(item, total) for item in descriptions])


def _storage_of(item: Json, total: int) -> Json:
    return {
        "id": item["id"],
        "type": item["kind"].removesuffix("s"),
        "updatedAt": item["lastModified"],
        "visibility": "private" if item["private"] else "public",
        "storage": item["usedStorage"],
        "storagePercent": 100 * item["usedStorage"] / max(1, total),
    }


def auth_check(request: Request) -> Response:
    """Check that the user may read or, with /write, change a repository."""
    (writable_repo if request.url.path.endswith("/write") else readable_repo)(request)
    return JSONResponse({})


def _repo_id_of(body: Json, user: str) -> RepoId:
    kind = f"{body.get('type') or 'model'}s"
    return RepoId(kind, str(body.get("organization") or user), str(body.get("name") or ""))


def _parse_id(kind: str, name: object) -> RepoId:
    owner, _, rest = str(name or "").partition("/")
    return check_repo(RepoId(kind, owner, rest))


def _is_private(body: Json, default: bool = False) -> bool:
    if "visibility" in body:
        return bool(body["visibility"] != "public")
    return bool(body.get("private", default))


def _matching_repos(request: Request) -> Iterator[Json]:
    kind, query = request.path_params["kind"], request.query_params
    check_filters(kind, query)
    user = current_user(request)
    for repository in get_hub(request).store.all(kind):
        if may_see(request, user, repository) and matches_name(str(repository.id), query):
            description = describe_repo(repository, repository.snapshot("main"))
            if matches_description(description, query):
                yield description


def _sorted(request: Request, descriptions: list[Json]) -> list[Json]:
    key = request.query_params.get("sort", "lastModified")
    if key not in _SORT_KEYS:
        raise BadRequest(f'"sort" must be one of {", ".join(sorted(_SORT_KEYS))}.')
    return sorted(descriptions, key=lambda item: item.get(key) or 0, reverse=True)


routes = [
    Route("/api/repos/create", with_json(create), methods=["POST"]),
    Route("/api/repos/move", with_json(move), methods=["POST"]),
    Route("/api/repos/delete", with_json(delete), methods=["DELETE"]),
    Route("/api/{kind:kind}", listing),
    Route("/api/settings/repositories", own_listing),
    Route(REPO_PATH, info),
    Route(REPO_PATH + "/revision/{revision:quoted}", info),
    Route(REPO_PATH + "/settings", with_json(configure), methods=["PUT"]),
    Route(REPO_PATH + "/auth-check", auth_check),
    Route(REPO_PATH + "/auth-check/write", auth_check),
]
