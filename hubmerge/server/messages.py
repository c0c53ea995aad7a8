"""Reading requests and building responses: URLs, bodies, queries, errors, pages."""

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

from hubmerge.server.http_errors import BadRequest, HttpError, Moved, TooLarge
from hubmerge.server.names import KINDS

Json = dict[str, Any]
Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

# The path of a repository in the API, and its web paths: only models are at the root.
REPO_PATH = "/api/{kind:kind}/{owner:quoted}/{name:quoted}"
WEB_PATHS = ("/{kind:kind}/{owner:quoted}/{name:quoted}", "/{owner:quoted}/{name:quoted}")

_NUMBER = re.compile("[0-9]{1,12}")
_MAX_BODY_BYTES = 32 << 20
_WRITTEN_AT_ONCE = 1 << 20


class QuotedConvertor(Convertor[str]):
    """A segment of a path, unquoted after the split: a slash in a revision is sent as %2F."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)


class RestConvertor(QuotedConvertor):
    """The rest of a path."""

    regex = ".*"


class KindConvertor(QuotedConvertor):
    """A kind of repository."""

    regex = "|".join(KINDS)


register_url_convertor("quoted", QuotedConvertor())
register_url_convertor("rest", RestConvertor())
register_url_convertor("kind", KindConvertor())


class RawPathMiddleware:
    """Routes by the raw path, in which %2F is not yet a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self.app(scope, receive, send)


def base_url(request: Request) -> str:
    """The URL that the client used: clients compare URLs in responses with their endpoint."""
    return str(request.base_url).rstrip("/")


def with_json(handler: Callable[[Request, Json], Response]) -> Endpoint:
    """An endpoint that reads a JSON object and runs the handler in a thread."""
    return _with_body(lambda request, body: handler(request, _parse_json_object(body)))


def with_form(handler: Callable[[Request, dict[str, list[str]]], Response]) -> Endpoint:
    """An endpoint that reads a form and runs the handler in a thread."""

    def parse_and_handle(request: Request, body: bytes) -> Response:
        return handler(request, parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True))

    return _with_body(parse_and_handle)


def http_error_response(request: Request, error: Exception) -> Response:
    """The response for an HttpError: status, code and message, also as headers."""
    assert isinstance(error, HttpError)
    # A header takes one printable line of ASCII.
    words = "".join(c if c.isprintable() else " " for c in error.message).split()
    headers = {
        "X-Error-Message": " ".join(words).encode("ascii", "replace").decode()[:500],
        "X-Error-Code": error.code,
        "X-Repo-Commit": error.commit,
    }
    if isinstance(error, Moved):
        headers["Location"] = error.location
    headers = {name: value for name, value in headers.items() if value}
    return JSONResponse({"error": error.message}, error.status, headers)


def not_unicode_response(request: Request, error: Exception) -> Response:
    """The response for a lone surrogate, which JSON allows and UTF-8 does not."""
    return http_error_response(request, BadRequest("The request holds text that is not Unicode."))


def json_objects(body: Json, name: str) -> list[Json]:
    """The list of JSON objects in a body; raises BadRequest if there is none."""
    items = body.get(name)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadRequest(f'"{name}" must be a list of objects.')
    return items


def query_flag(request: Request, name: str) -> bool:
    """Whether a query parameter is true."""
    return is_true(request.query_params.get(name, ""))


def is_true(text: str) -> bool:
    """Whether a text means true, as Python or JavaScript writes it."""
    return text.lower() in ("true", "1")


def query_number(request: Request, name: str, default: int, maximum: int) -> int:
    """A whole number in the query, clamped to 1..maximum; raises BadRequest for other text."""
    text = request.query_params.get(name, str(default))
    if not _NUMBER.fullmatch(text):
        raise BadRequest(f'"{name}" must be a whole number, not {text[:40]!r}.')
    return min(max(int(text), 1), maximum)


def paginate(
    request: Request, items: list[T], page_size: int, path: str
) -> tuple[list[T], Mapping[str, str]]:
    """The page of a list that a query requests, and the Link header of the next page."""
    start = query_number(request, "cursor", 1, maximum=1 << 30) - 1
    end = start + query_number(request, "limit", page_size, maximum=page_size)
    more = len(items) > end
    return items[start:end], next_page_link(request, path, cursor=str(end + 1)) if more else {}


def next_page_link(request: Request, path: str, **changed: str) -> Mapping[str, str]:
    """The Link header of the next page: a path, and the query with changed parameters."""
    unchanged = [pair for pair in request.query_params.multi_items() if pair[0] not in changed]
    query = urlencode([*unchanged, *changed.items()])
    return {"Link": f'<{base_url(request)}{path}?{query}>; rel="next"'}


async def receive_body(
    request: Request, write: Callable[[bytearray], object], limit: int, too_large: str
) -> None:
    """Write the body in pieces, in a thread; raises TooLarge with that message over the limit."""
    received, pending = 0, bytearray()
    async for chunk in request.stream():
        pending += chunk
        received += len(chunk)
        if received > limit:
            raise TooLarge(too_large)
        if len(pending) >= _WRITTEN_AT_ONCE:
            await run_in_threadpool(write, pending)
            pending = bytearray()
    await run_in_threadpool(write, pending)


def _with_body(handler: Callable[[Request, bytes], Response]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise TooLarge(f"More than {_MAX_BODY_BYTES} bytes in one request.")
        return await run_in_threadpool(handler, request, bytes(body))

    return endpoint


def _parse_json_object(body: bytes) -> Json:
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.")
    return value
