"""Endpoints for collections: lists of models and data sets, which `--search` reads."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.durable import write_atomic
from hubmerge.server.access import check_owner, current_user, get_hub, may_see, require_writer
from hubmerge.server.http_errors import BadRequest, EntryMissing
from hubmerge.server.info import format_time
from hubmerge.server.messages import Json, paginate, with_json
from hubmerge.server.names import KINDS, RepoId, check_repo

_PAGE_SIZE = 100
_MAX_CHARS = {"title": 60, "description": 150, "note": 500}
_THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
_CHANGEABLE = ("title", "description", "private", "position", "theme")
_KIND = {kind.removesuffix("s"): kind for kind in KINDS}
_lock = threading.Lock()


def listing(request: Request) -> Response:
    """The collections that the user may see, of an owner or with an item, newest first."""
    query = request.query_params
    unknown = sorted(query.keys() - {"owner", "item", "limit", "cursor", "q", "sort"})
    if unknown:
        raise BadRequest(f"This Hub cannot filter collections by {', '.join(unknown)[:200]}.")
    matches = [
        item
        for item in _read(_file(request)).values()
        if _is_visible(request, item)
        and query.get("owner", item["owner"]) == item["owner"]
        and query.get("q", "").lower() in item["title"].lower()
        and set(query.getlist("item")) <= {f"{i['type']}s/{i['id']}" for i in item["items"]}
    ]
    matches.sort(key=lambda item: str(item["lastUpdated"]), reverse=True)
    shown, headers = paginate(request, matches, _PAGE_SIZE, "/api/collections")
    # Clients number the items of a list themselves.
    items = [_to_json(request, item) for item in shown]
    for item in items:
        del item["position"]
    return JSONResponse(items, headers=headers)


def create(request: Request, body: Json) -> Response:
    """Create a collection; for one with the same title and owner the error has its slug."""
    title, namespace = _read_text(body, "title"), str(body.get("namespace") or "")
    user = require_writer(request)
    owner = check_repo(RepoId("models", namespace or user.name, "any"))
    check_owner(request, user, owner)
    if not title:
        raise BadRequest("A collection needs a title.")
    with _changing(request) as collections:
        for slug, item in collections.items():
            if (item["owner"], item["title"]) == (owner.owner, title):
                return JSONResponse({"error": "This collection exists already.", "slug": slug}, 409)
        slug = _make_slug(owner.owner, title, secrets.token_hex(12))
        item = {
            "slug": slug,
            "title": title,
            "description": _read_text(body, "description"),
            "owner": owner.owner,
            "items": [],
            "private": body.get("private") is True,
            "position": 0,
            "theme": _THEMES[0],
            "lastUpdated": format_time(datetime.now(UTC)),
        }
        collections[slug] = item
    return JSONResponse(_to_json(request, item))


def show(request: Request) -> Response:
    return JSONResponse(_to_json(request, _find(request, _read(_file(request)))))


def change(request: Request, body: Json) -> Response:
    """Change the title, description, theme, position or visibility."""
    with _changing(request) as collections:
        item = _find(request, collections)
        _check_may_change(request, item)
        del collections[item["slug"]]
        item |= {key: body[key] for key in _CHANGEABLE if key in body}
        item |= {key: _read_text(body, key) for key in ("title", "description") if key in body}
        # The old slug ends with the same id, so it stays valid.
        item["slug"] = _make_slug(item["owner"], item["title"], _id_of(item["slug"]))
        item["lastUpdated"] = format_time(datetime.now(UTC))
        collections[item["slug"]] = item
    return JSONResponse({"success": True, "data": _to_json(request, item)})


def delete(request: Request) -> Response:
    with _changing(request) as collections:
        item = _find(request, collections)
        _check_may_change(request, item)
        del collections[item["slug"]]
    return JSONResponse({})


def add_item(request: Request, body: Json) -> Response:
    """Add a repository to the end of a collection."""
    wanted = body.get("item")
    kind, id = (str(wanted.get(key)) if isinstance(wanted, dict) else "" for key in ("type", "id"))
    owner, _, name = id.partition("/")
    found = get_hub(request).store.existing_name(RepoId(_KIND.get(kind, ""), owner, name))
    if not found or not _may_see_item(request, {"type": kind, "id": str(found)}):
        raise BadRequest(f"This Hub has no {kind[:20] or 'item'} {id[:120]!r}.")
    with _changing_one(request) as collection:
        if any((i["type"], i["id"]) == (kind, str(found)) for i in collection["items"]):
            return JSONResponse({"error": "The item is in the collection already."}, 409)
        item = {"_id": secrets.token_hex(12), "type": kind, "id": str(found)}
        collection["items"].append({**item, "note": _read_text(body, "note")})
    return JSONResponse(_to_json(request, collection))


def change_item(request: Request, body: Json) -> Response:
    """Change the note or the position of an item."""
    with _changing_one(request) as collection:
        item = _find_item(request, collection)
        if "note" in body:
            item["note"] = _read_text(body, "note")
        if isinstance(position := body.get("position"), int):
            collection["items"].remove(item)
            collection["items"].insert(max(position, 0), item)
    return JSONResponse({"success": True})


def delete_item(request: Request) -> Response:
    with _changing_one(request) as collection:
        collection["items"].remove(_find_item(request, collection))
    return JSONResponse({})


def _make_slug(owner: str, title: str, id: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{owner}/{words}-{id}".replace("/-", "/")


def _id_of(slug: str) -> str:
    """The end of a slug, which stays the same when the title changes."""
    return slug.rpartition("/")[2].rpartition("-")[2]


def _file(request: Request) -> Path:
    return get_hub(request).store.data / "collections.json"


def _read(file: Path) -> dict[str, Json]:
    """The collections by their slug."""
    return cast(dict[str, Json], json.loads(file.read_text())) if file.is_file() else {}


@contextmanager
def _changing(request: Request) -> Iterator[dict[str, Json]]:
    """Change the collections; they are written if no error is raised."""
    require_writer(request)
    with _lock:
        collections = _read(_file(request))
        yield collections
        write_atomic(_file(request), json.dumps(collections).encode())


@contextmanager
def _changing_one(request: Request) -> Iterator[Json]:
    with _changing(request) as collections:
        item = _find(request, collections)
        _check_may_change(request, item)
        yield item
        item["lastUpdated"] = format_time(datetime.now(UTC))


def _check_may_change(request: Request, item: Json) -> None:
    check_owner(request, require_writer(request), RepoId("models", item["owner"], "any"))


def _find(request: Request, collections: dict[str, Json]) -> Json:
    slug = f"{request.path_params['owner']}/{request.path_params['slug']}"
    ids = {f"{entry['owner']}/{_id_of(key)}": entry for key, entry in collections.items()}
    item = ids.get(f"{request.path_params['owner']}/{_id_of(slug)}")
    if item is None or not _is_visible(request, item):
        raise EntryMissing(f"This Hub has no collection {slug[:200]}.")
    return item


def _find_item(request: Request, collection: Json) -> Json:
    for item in collection["items"]:
        if item["_id"] == request.path_params["item"]:
            return cast(Json, item)
    raise EntryMissing("The collection has no such item.")


def _is_visible(request: Request, item: Json) -> bool:
    user = current_user(request)
    is_member = user is not None and get_hub(request).tokens.is_member(user, item["owner"])
    return is_member or not item["private"]


def _may_see_item(request: Request, item: Json) -> bool:
    store = get_hub(request).store
    id = RepoId(_KIND[item["type"]], *str(item["id"]).split("/"))
    name = store.existing_name(id) or store.redirects.find(id)
    return name is not None and may_see(request, current_user(request), store.find(name))


def _to_json(request: Request, item: Json) -> Json:
    items = [
        {**entry, "position": position, "note": {"text": entry["note"]} if entry["note"] else None}
        for position, entry in enumerate(item["items"])
        if _may_see_item(request, entry)
    ]
    return {**item, "owner": {"name": item["owner"], "type": "user"}, "items": items, "upvotes": 0}


def _read_text(body: Json, key: str) -> str:
    text = str(body.get(key) or "").strip()
    if len(text) > _MAX_CHARS[key]:
        raise BadRequest(f'"{key}" may have {_MAX_CHARS[key]} characters.')
    return text


_PATH = "/api/collections/{owner:quoted}/{slug:quoted}"
_ITEM_PATH = _PATH + "/items/{item:quoted}"

routes = [
    Route("/api/collections", listing),
    Route("/api/collections", with_json(create), methods=["POST"]),
    Route(_PATH, show),
    Route(_PATH, with_json(change), methods=["PATCH"]),
    Route(_PATH, delete, methods=["DELETE"]),
    Route(_PATH + "/items", with_json(add_item), methods=["POST"]),
    Route(_PATH + "/item", with_json(add_item), methods=["POST"]),
    Route(_ITEM_PATH, with_json(change_item), methods=["PATCH"]),
    Route(_ITEM_PATH, delete_item, methods=["DELETE"]),
]
