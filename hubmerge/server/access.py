"""The user of a request, and which repositories they may see, read or change."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from hubmerge.server.http_errors import Forbidden, GatedRepo, HiddenRepo, NotSignedIn, RepoMissing
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository
from hubmerge.server.sessions import browser_user
from hubmerge.server.store import RepositoryStore
from hubmerge.server.tokens import Signer, Tokens, User


@dataclass(frozen=True)
class HubState:
    """The state of the application: the store, its tokens and the signer of upload URLs."""

    store: RepositoryStore
    tokens: Tokens
    signer: Signer


def get_hub(request: Request) -> HubState:
    state = request.app.state.hub
    assert isinstance(state, HubState)
    return state


def current_user(request: Request) -> User | None:
    """The user of the request, None without a token; raises NotSignedIn for an unknown token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return browser_user(request)
    user = get_hub(request).tokens.user(token.strip()) if scheme.lower() == "bearer" else None
    if user is None:
        # Exactly this text: clients distinguish a bad token from a missing repository by it.
        raise NotSignedIn("Invalid credentials in Authorization header")
    return user


def require_writer(request: Request) -> User:
    """The user of the request; raises an error if they may not write."""
    user = current_user(request)
    if user is None:
        raise HiddenRepo("Invalid username or password.")
    if not user.may_write:
        raise Forbidden("This token may only read: use a token with the write role.")
    return user


def requested_repo_id(request: Request) -> RepoId:
    """The repository in the URL; models are the default."""
    names = request.path_params
    return RepoId(names.get("kind", "models"), names["owner"], names["name"])


def may_see(request: Request, user: User | None, repository: Repository) -> bool:
    """Whether the user may know that a repository exists."""
    return user is not None or not repository.settings.private


def visible_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may know that it exists."""
    user = current_user(request)
    try:
        repository = get_hub(request).store.find(requested_repo_id(request))
    except RepoMissing:
        if user is None:
            raise HiddenRepo("Invalid username or password.") from None
        raise
    if not may_see(request, user, repository):
        raise HiddenRepo("Invalid username or password.")
    return repository


def readable_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may read its files."""
    repository = visible_repo(request)
    if repository.settings.gated and current_user(request) is None:
        raise GatedRepo(f"Access to {repository.id} is restricted: you must be signed in.")
    return repository


def writable_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may change it."""
    repository = visible_repo(request)
    require_writer(request)
    return repository
