"""Who asks, and which repositories they may see, read or change."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from hubmerge.server.http_errors import Forbidden, GatedRepo, HiddenRepo, NotSignedIn, RepoMissing
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository
from hubmerge.server.store import Store
from hubmerge.server.tokens import Signer, Tokens, User


@dataclass(frozen=True)
class Hub:
    """The store, and who may use it."""

    store: Store
    tokens: Tokens
    signer: Signer


def hub(request: Request) -> Hub:
    found = request.app.state.hub
    assert isinstance(found, Hub)
    return found


def asker(request: Request) -> User | None:
    """Who asks; nobody without a token, and an unknown token is refused."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    user = hub(request).tokens.user(token.strip()) if scheme.lower() == "bearer" else None
    if user is None:
        # Word for word: clients tell a bad token from a missing repository by this text.
        raise NotSignedIn("Invalid credentials in Authorization header")
    return user


def writer(request: Request) -> User:
    """Who asks, if they may write."""
    user = asker(request)
    if user is None:
        raise HiddenRepo("Invalid username or password.")
    if not user.may_write:
        raise Forbidden("This token may only read: use a token with the write role.")
    return user


def repo_id(request: Request) -> RepoId:
    """The repository that the address names; models are the default."""
    names = request.path_params
    return RepoId(names.get("kind", "models"), names["owner"], names["name"])


def visible(request: Request) -> Repository:
    """The repository of the address, if the asker may know of it."""
    user = asker(request)
    try:
        repository = hub(request).store.find(repo_id(request))
    except RepoMissing:
        if user is None:
            raise HiddenRepo("Invalid username or password.") from None
        raise
    if user is None and repository.settings.private:
        raise HiddenRepo("Invalid username or password.")
    return repository


def readable(request: Request) -> Repository:
    """The repository of the address, if the asker may read its files."""
    repository = visible(request)
    if repository.settings.gated and asker(request) is None:
        raise GatedRepo(f"Access to {repository.id} is restricted: you must be signed in.")
    return repository


def writable(request: Request) -> Repository:
    """The repository of the address, if the asker may change it."""
    repository = visible(request)
    writer(request)
    return repository
