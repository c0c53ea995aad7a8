"""How requests are read and answers worded: bodies, query parameters, refusals, next pages."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubmerge.server.refusals import BadRequest, Refusal, TooLarge

Json = dict[str, Any]
Endpoint = Callable[[Request], Awaitable[Response]]

_NUMBER = re.compile("[0-9]{1,12}")
_LARGEST_BODY = 32 << 20


def origin(request: Request) -> str:
    """The address that the client used: clients compare URLs in answers with their endpoint."""
    return str(request.base_url).rstrip("/")


def with_json(handler: Callable[[Request, Json], Response]) -> Endpoint:
    """An endpoint that reads a JSON object first; the handler may block."""

    async def endpoint(request: Request) -> Response:
        body = _json_object(await _small_body(request))
        return await run_in_threadpool(handler, request, body)

    return endpoint


def with_form(handler: Callable[[Request, dict[str, list[str]]], Response]) -> Endpoint:
    """An endpoint that reads a form first; the handler may block."""

    async def endpoint(request: Request) -> Response:
        body = await _small_body(request)
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        return await run_in_threadpool(handler, request, form)

    return endpoint


def refused(request: Request, error: Exception) -> Response:
    """A refusal as clients read it: status, code and message, in the headers too."""
    assert isinstance(error, Refusal)
    headers = {
        "X-Error-Message": _one_line(error.message),
        "X-Error-Code": error.code,
        "X-Repo-Commit": error.commit,
    }
    headers = {name: value for name, value in headers.items() if value}
    return JSONResponse({"error": error.message}, error.status, headers)


def objects(body: Json, name: str) -> list[Json]:
    """A list of JSON objects that the body must hold."""
    found = body.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadRequest(f'"{name}" must be a list of objects.')
    return found


def not_unicode(request: Request, error: Exception) -> Response:
    """JSON may hold half a character, which no file and no name can."""
    return refused(request, BadRequest("The request holds text that is not Unicode."))


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


def link_to(request: Request, path: str, **changed: str) -> Mapping[str, str]:
    """The header that names the next page: a path, and the query with some parameters changed."""
    kept = [pair for pair in request.query_params.multi_items() if pair[0] not in changed]
    query = urlencode([*kept, *changed.items()])
    return {"Link": f'<{origin(request)}{path}?{query}>; rel="next"'}


async def _small_body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_BODY:
            raise TooLarge(f"More than {_LARGEST_BODY} bytes in one request.")
    return bytes(body)


def _json_object(body: bytes) -> Json:
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.")
    return value


def _one_line(message: str) -> str:
    """A message fit for a header."""
    printable = "".join(c if c.isprintable() else " " for c in message)
    return " ".join(printable.split()).encode("ascii", "replace").decode()[:500]
