"""Endpoints of git itself: `git clone`, `git fetch` and `git push` of a repository.

dulwich speaks the protocol (git's documentation calls it smart HTTP); `pushes` decides what a push
may change. Answers are kept in a file if they are long.
"""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from dulwich.errors import GitProtocolError
from dulwich.protocol import ReceivableProtocol
from dulwich.repo import Repo
from dulwich.server import Backend, ReceivePackHandler, UploadPackHandler
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from hubmerge.server.access import get_hub, readable_repo, writable_repo
from hubmerge.server.http_errors import BadRequest, NotSignedIn
from hubmerge.server.large_file_access import LargeFileAccess
from hubmerge.server.messages import WEB_PATHS, Endpoint, http_error_response, receive_body
from hubmerge.server.pushes import MIRROR_HEADER, HasContent, RefUpdate
from hubmerge.server.repository import Repository

_READ, _WRITE = "git-upload-pack", "git-receive-pack"
_MAX_PUSH_BYTES = 4 << 30  # large files go by LFS
_MAX_BYTES_IN_MEMORY = 8 << 20
_PIECE_BYTES = 1 << 16
_NO_OBJECT = b"0" * 40


class _Folder(Backend):
    """The one repository of a request."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo

    def open_repository(self, path: str) -> Any:
        return self._repo


class _PushHandler(ReceivePackHandler):
    """Receives a push; its refs are written by the repository of the Hub."""

    repository: Repository
    has_content: HasContent
    is_mirror: bool

    def _apply_pack(self, refs: list[tuple[Any, Any, Any]]) -> Iterator[tuple[bytes, bytes]]:
        refused = ""
        if any(new != _NO_OBJECT for _, new, _ in refs):
            read_some = cast(Any, self.proto).recv
            try:
                refused = self.repository.receive_pack(self.proto.read, read_some, self.has_content)
            except Exception as error:  # whatever reading a malformed pack may raise
                yield b"unpack", f"the pack cannot be read: {type(error).__name__}".encode()
                return
        yield b"unpack", b"ok"
        updates = [
            RefUpdate(name.decode("utf-8", "replace"), _sha(old), _sha(new))
            for old, new, name in refs
        ]
        problems = self.repository.update_refs(updates, self.is_mirror)
        for (_, _, name), problem in zip(refs, problems, strict=True):
            # What lacks the objects that were refused is refused for their reason.
            problem = refused if problem and refused else problem
            yield name, problem.replace("\n", " ").encode() or b"ok"


async def advertise(request: Request) -> Response:
    """The refs of a repository and what this Hub can do, the first request of every git client."""
    service = request.query_params.get("service", "")
    if service not in (_READ, _WRITE):
        raise BadRequest("Only git clients of version 1.6.6 or newer can read this Hub.")
    find = writable_repo if service == _WRITE else readable_repo
    repository = await run_in_threadpool(find, request)
    return await run_in_threadpool(_run, repository, service, io.BytesIO(), advertise_refs=True)


async def serve_fetch(request: Request) -> Response:
    """Send the objects that a client lacks."""
    return await _serve(request, readable_repo, _READ)


async def serve_push(request: Request) -> Response:
    """Receive objects, and change the refs for which that is allowed."""
    return await _serve(request, writable_repo, _WRITE)


async def _serve(request: Request, find: Callable[[Request], Repository], service: str) -> Response:
    repository = await run_in_threadpool(find, request)
    if request.headers.get("content-type") != f"application/x-{service}-request":
        raise BadRequest(f"The request must be application/x-{service}-request.")
    with tempfile.TemporaryFile(dir=get_hub(request).store.tmp) as body:
        await receive_body(request, body.write, _MAX_PUSH_BYTES, "The push is too large.")
        body.seek(0)
        is_zipped = request.headers.get("content-encoding") == "gzip"
        content = cast(IO[bytes], gzip.GzipFile(fileobj=body)) if is_zipped else body
        is_mirror, has_content = MIRROR_HEADER in request.headers, _nothing
        if service == _WRITE:
            has_content = (await run_in_threadpool(LargeFileAccess, request, repository)).allows
        return await run_in_threadpool(
            _run, repository, service, content, has_content, is_mirror=is_mirror
        )


def _nothing(oid: str) -> bool:
    """What a fetch needs to know of large files."""
    return False


def _run(
    repository: Repository,
    service: str,
    content: IO[bytes],
    has_content: HasContent = _nothing,
    advertise_refs: bool = False,
    is_mirror: bool = False,
) -> Response:
    """Run one request of the protocol, and return the answer."""
    answer = tempfile.SpooledTemporaryFile(_MAX_BYTES_IN_MEMORY)  # noqa: SIM115  # closed later
    protocol = ReceivableProtocol(content.read, answer.write)
    kind: type[Any] = _PushHandler if service == _WRITE else UploadPackHandler
    try:
        with Repo(str(repository.folder), bare=True) as repo:
            handler = kind(
                _Folder(repo), [""], protocol, stateless_rpc=True, advertise_refs=advertise_refs
            )
            handler.repository, handler.is_mirror = repository, is_mirror
            handler.has_content = has_content
            if advertise_refs:
                protocol.write_pkt_line(f"# service={service}\n".encode())
                protocol.write_pkt_line(None)
            handler.handle()
    except (GitProtocolError, AssertionError, EOFError, gzip.BadGzipFile) as error:
        answer.close()
        raise BadRequest(f"This is not the git protocol: {type(error).__name__}.") from error
    answer.seek(0)
    media_type = f"application/x-{service}-{'advertisement' if advertise_refs else 'result'}"
    return StreamingResponse(
        _pieces(answer), media_type=media_type, headers={"Cache-Control": "no-cache"}
    )


def _pieces(file: tempfile.SpooledTemporaryFile[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _sha(oid: bytes) -> str | None:
    return None if oid == _NO_OBJECT else oid.decode("ascii", "replace")


def _asking_for_a_password(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose 401 makes git ask for a password, which is the token."""

    async def with_challenge(request: Request) -> Response:
        try:
            return await endpoint(request)
        except NotSignedIn as error:
            response = http_error_response(request, error)
            response.headers["WWW-Authenticate"] = 'Basic realm="the token is the password"'
            return response

    return with_challenge


def _routes(paths: Sequence[str]) -> Iterator[Route]:
    for path in paths:
        yield Route(f"{path}/info/refs", _asking_for_a_password(advertise))
        yield Route(f"{path}/{_READ}", _asking_for_a_password(serve_fetch), methods=["POST"])
        yield Route(f"{path}/{_WRITE}", _asking_for_a_password(serve_push), methods=["POST"])


# With .git first, because a name may have any ending.
routes = [*_routes([f"{path}.git" for path in WEB_PATHS]), *_routes(WEB_PATHS)]
