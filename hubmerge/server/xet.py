"""Endpoints of the Xet protocol for uploads, which clients use whenever hf-xet is installed.

Downloads need none: no response names a Xet hash, so clients download by plain HTTP.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import contributable_repo, get_hub, require_writer
from hubmerge.server.disk import check_space
from hubmerge.server.http_errors import BadRequest, EntryMissing, NotSignedIn
from hubmerge.server.messages import REPO_PATH, Json, base_url, receive_body
from hubmerge.server.shards import MAX_SHARD_BYTES, parse_shard
from hubmerge.server.uploads import user_key
from hubmerge.server.xorbs import MAX_XORB_BYTES

# Chunk headers and an index, besides the chunks.
_MAX_XORB_BODY = MAX_XORB_BYTES + (8 << 20)
_MAX_IN_MEMORY = 1 << 20


def write_token(request: Request) -> Response:
    """Where and with which token the client uploads; both as JSON and as headers."""
    contributable_repo(request)
    user, hub = require_writer(request), get_hub(request)
    check_space(hub.store.data)
    address = f"cas/{hub.xorbs.epoch}/{user_key(user.name)}"
    signed = hub.signer.sign(address, 0)
    fields: Json = {
        "casUrl": f"{base_url(request)}/{address}",
        "accessToken": urlencode(signed),
        "exp": int(signed["expires"]),
    }
    headers = {
        "X-Xet-Cas-Url": fields["casUrl"],
        "X-Xet-Access-Token": fields["accessToken"],
        "X-Xet-Token-Expiration": signed["expires"],
    }
    return JSONResponse(fields, headers=headers)


def find_chunk(request: Request) -> Response:
    """Whether another user has sent a chunk: never, because users share no chunks here."""
    _check_token(request)
    raise EntryMissing("This Hub does not know the chunk.")


async def add_xorb(request: Request) -> Response:
    """Keep a xorb until the shards that refer to it have arrived."""
    user = _check_token(request)
    xorb = request.path_params["hash"]

    def add(body: IO[bytes]) -> Response:
        inserted = get_hub(request).xorbs.add(user, xorb, body)  # type: ignore[arg-type]
        return JSONResponse({"was_inserted": inserted})

    return await _with_spooled_body(request, _MAX_XORB_BODY, "xorb", add)


async def add_shard(request: Request) -> Response:
    """Store the files of a shard as large files, which a commit may then name."""
    user = _check_token(request)

    def add(body: IO[bytes]) -> Response:
        get_hub(request).xorbs.assemble(user, parse_shard(body))  # type: ignore[arg-type]
        return JSONResponse({"result": 1})

    return await _with_spooled_body(request, MAX_SHARD_BYTES, "shard", add)


async def _with_spooled_body(
    request: Request, limit: int, what: str, handle: Callable[[IO[bytes]], Response]
) -> Response:
    """Handle a body that is on disk, or in memory if it is small."""
    with tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY, dir=str(get_hub(request).store.tmp)) as body:
        await receive_body(request, body.write, limit, f"A {what} of more than {limit} bytes.")
        body.seek(0)
        return await run_in_threadpool(handle, body)


def _check_token(request: Request) -> str:
    """The user's folder in the URL; raises an error if the token is not for it."""
    names, hub = request.path_params, get_hub(request)
    token = request.headers.get("authorization", "").partition(" ")[2]
    signed = dict(parse_qsl(token))
    address = f"cas/{names['epoch']}/{names['user']}"
    query = signed.get("size", ""), signed.get("expires", ""), signed.get("sig", "")
    if not hub.signer.verify(address, *query):
        raise NotSignedIn("This token is not for uploads to this address, or it has expired.")
    if names["epoch"] != hub.xorbs.epoch:
        raise BadRequest("The chunks of this address were deleted: start the upload again.")
    return str(names["user"])


_CAS = "/cas/{epoch:quoted}/{user:quoted}"

routes = [
    Route(REPO_PATH + "/xet-write-token/{revision:quoted}", write_token),
    Route(_CAS + "/v1/chunks/{prefix:quoted}/{hash:quoted}", find_chunk),
    Route(_CAS + "/v1/xorbs/{prefix:quoted}/{hash:quoted}", add_xorb, methods=["POST"]),
    Route(_CAS + "/v1/shards", add_shard, methods=["POST"]),
]
