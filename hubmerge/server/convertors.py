"""Addresses with quoted parts: a revision may hold a slash, sent as %2F."""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

from hubmerge.server.names import KINDS

# The address of a repository in the API.
REPO = "/api/{kind:kind}/{owner:quoted}/{name:quoted}"

# Its addresses outside the API: only models stand at the root.
WEB = ("/{kind:kind}/{owner:quoted}/{name:quoted}", "/{owner:quoted}/{name:quoted}")


class Quoted(Convertor[str]):
    """One part between slashes, unquoted after it was cut out."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Unquote."""
        return unquote(value)

    def to_string(self, value: str) -> str:
        """Quote."""
        return quote(value, safe="")


class Rest(Quoted):
    """All that is left of the address."""

    regex = ".*"


class Kind(Quoted):
    """A kind of repository."""

    regex = "|".join(KINDS)


class RawPaths:
    """Routes by the path as it was sent, where %2F is not yet a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the raw path on as the path."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self.app(scope, receive, send)


def register() -> None:
    """Make {x:quoted}, {x:rest} and {x:kind} known to routes."""
    for name, convertor in (("quoted", Quoted()), ("rest", Rest()), ("kind", Kind())):
        register_url_convertor(name, convertor)


register()
