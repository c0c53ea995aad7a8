"""How requests are read and answers worded: addresses, bodies, queries, refusals, next pages."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hubmerge.server.http_errors import BadRequest, Refusal, TooLarge
from hubmerge.server.names import KINDS

Json = dict[str, Any]
Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

# The address of a repository in the API, and those outside: only models stand at the root.
REPO = "/api/{kind:kind}/{owner:quoted}/{name:quoted}"
WEB = ("/{kind:kind}/{owner:quoted}/{name:quoted}", "/{owner:quoted}/{name:quoted}")

_NUMBER = re.compile("[0-9]{1,12}")
_LARGEST_BODY = 32 << 20


class Quoted(Convertor[str]):
    """A part of an address, unquoted after it was cut out: a revision's slash is sent as %2F."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)


class Rest(Quoted):
    """All that is left of the address."""

    regex = ".*"


class Kind(Quoted):
    """A kind of repository."""

    regex = "|".join(KINDS)


register_url_convertor("quoted", Quoted())
register_url_convertor("rest", Rest())
register_url_convertor("kind", Kind())


class RawPaths:
    """Routes by the path as it was sent, where %2F is not yet a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self.app(scope, receive, send)


def origin(request: Request) -> str:
    """The address that the client used: clients compare URLs in answers with their endpoint."""
    return str(request.base_url).rstrip("/")


def with_json(handler: Callable[[Request, Json], Response]) -> Endpoint:
    """An endpoint that reads a JSON object first; the handler may block."""
    return _with_body(lambda request, body: handler(request, _json_object(body)))


def with_form(handler: Callable[[Request, dict[str, list[str]]], Response]) -> Endpoint:
    """An endpoint that reads a form first; the handler may block."""

    def parsed(request: Request, body: bytes) -> Response:
        return handler(request, parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True))

    return _with_body(parsed)


def refused(request: Request, error: Exception) -> Response:
    """A refusal as clients read it: status, code and message, in the headers too."""
    assert isinstance(error, Refusal)
    # A message fit for a header: one printable line of ASCII.
    words = "".join(c if c.isprintable() else " " for c in error.message).split()
    headers = {
        "X-Error-Message": " ".join(words).encode("ascii", "replace").decode()[:500],
        "X-Error-Code": error.code,
        "X-Repo-Commit": error.commit,
    }
    headers = {name: value for name, value in headers.items() if value}
    return JSONResponse({"error": error.message}, error.status, headers)


def not_unicode(request: Request, error: Exception) -> Response:
    """JSON may hold half a character, which no file and no name can."""
    return refused(request, BadRequest("The request holds text that is not Unicode."))


def objects(body: Json, name: str) -> list[Json]:
    """A list of JSON objects that the body must hold."""
    found = body.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadRequest(f'"{name}" must be a list of objects.')
    return found


def flag(request: Request, name: str) -> bool:
    """Whether a query parameter says yes."""
    return is_true(request.query_params.get(name, ""))


def is_true(text: str) -> bool:
    """Whether a text says yes, in Python's words or in JavaScript's."""
    return text.lower() in ("true", "1")


def number(request: Request, name: str, default: int, most: int) -> int:
    """A whole number among the query parameters, at least 1 and at most `most`."""
    text = request.query_params.get(name, str(default))
    if not _NUMBER.fullmatch(text):
        raise BadRequest(f'"{name}" must be a whole number, not {text[:40]!r}.')
    return min(max(int(text), 1), most)


def page(
    request: Request, found: list[T], most: int, path: str
) -> tuple[list[T], Mapping[str, str]]:
    """The part of a list that a query wants, and the header that leads to the next one."""
    start = number(request, "cursor", 1, most=1 << 30) - 1
    end = start + number(request, "limit", most, most=most)
    more = len(found) > end
    return found[start:end], link_to(request, path, cursor=str(end + 1)) if more else {}


def link_to(request: Request, path: str, **changed: str) -> Mapping[str, str]:
    """The header that names the next page: a path, and the query with some parameters changed."""
    kept = [pair for pair in request.query_params.multi_items() if pair[0] not in changed]
    query = urlencode([*kept, *changed.items()])
    return {"Link": f'<{origin(request)}{path}?{query}>; rel="next"'}


def _with_body(handler: Callable[[Request, bytes], Response]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _LARGEST_BODY:
                raise TooLarge(f"More than {_LARGEST_BODY} bytes in one request.")
        return await run_in_threadpool(handler, request, bytes(body))

    return endpoint


def _json_object(body: bytes) -> Json:
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.")
    return value
