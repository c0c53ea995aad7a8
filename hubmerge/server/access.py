"""The user of a request, and which repositories they may see, read or change."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from starlette.requests import Request

from hubmerge.server.http_errors import (
    Forbidden,
    GatedRepo,
    HiddenRepo,
    Moved,
    NotGranted,
    NotSignedIn,
    RepoMissing,
)
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository
from hubmerge.server.sessions import browser_user
from hubmerge.server.store import RepositoryStore
from hubmerge.server.tokens import Signer, Tokens, User
from hubmerge.server.xorbs import Xorbs

_WHO_ARE_YOU = "Invalid username or password."


@dataclass(frozen=True)
class HubState:
    """The state of the application: the store, its tokens, the signer of upload URLs, and what Xet
    clients have uploaded.
    """

    store: RepositoryStore
    tokens: Tokens
    signer: Signer
    xorbs: Xorbs


def get_hub(request: Request) -> HubState:
    state = request.app.state.hub
    assert isinstance(state, HubState)
    return state


def current_user(request: Request) -> User | None:
    """The user of the request, None without a token; raises NotSignedIn for an unknown token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return browser_user(request)
    # git sends a name and a password, which is the token.
    token = _password(token) if scheme.lower() == "basic" else token.strip()
    user = get_hub(request).tokens.user(token) if scheme.lower() in ("basic", "bearer") else None
    if user is None:
        # Exactly this text: clients distinguish a bad token from a missing repository by it.
        raise NotSignedIn("Invalid credentials in Authorization header")
    return user


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def require_writer(request: Request) -> User:
    """The user of the request; raises an error if they may not write."""
    user = current_user(request)
    if user is None:
        raise HiddenRepo(_WHO_ARE_YOU)
    if not user.may_write:
        raise Forbidden("This token may only read: use a token with the write role.")
    return user


def requested_repo_id(request: Request) -> RepoId:
    """The repository in the URL; models are the default."""
    names = request.path_params
    return RepoId(names.get("kind", "models"), names["owner"], names["name"])


def may_see(request: Request, user: User | None, repository: Repository) -> bool:
    """Whether the user may know that a repository exists."""
    if not repository.settings.private:
        return True
    return user is not None and get_hub(request).tokens.is_member(user, repository.id.owner)


def may_read(request: Request, user: User | None, repository: Repository) -> bool:
    """Whether the user may read the files of a repository."""
    if not repository.settings.gated:
        return may_see(request, user, repository)
    return user is not None and get_hub(request).tokens.is_member(user, repository.id.owner)


def check_owner(request: Request, user: User, id: RepoId) -> None:
    """Raise Forbidden if the user may not write to the repositories of this owner."""
    if not get_hub(request).tokens.is_member(user, id.owner):
        raise Forbidden(f"You may not write to {id}: it belongs to the user {id.owner}.")


def check_writable(request: Request, user: User, repository: Repository) -> Repository:
    """Return a repository that the user may change; raises RepoMissing or Forbidden."""
    if not may_see(request, user, repository):
        raise RepoMissing("Repository not found")
    check_owner(request, user, repository.id)
    return repository


def visible_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may know that it exists.

    Raises Moved for an old name, or for a name in another case.
    """
    user, id, store = current_user(request), requested_repo_id(request), get_hub(request).store
    name = store.existing_name(id) or store.redirects.find(id)
    if name and may_see(request, user, repository := store.find(name)):
        if name != id:
            raise Moved(_path_with(request, id, name))
        return repository
    raise RepoMissing("Repository not found") if user else HiddenRepo(_WHO_ARE_YOU)


def _path_with(request: Request, old: RepoId, new: RepoId) -> str:
    """The path of a request with another name of its repository."""
    start = 3 if request.url.path.startswith("/api/") else 2 if "kind" in request.path_params else 1
    segments = request.scope["path"].split("/")
    ending = ".git" if segments[start + 1].endswith(".git") else ""
    segments[start : start + 2] = [new.owner, new.name + ending]
    query = f"?{request.url.query}" if request.url.query else ""
    # Without a host: clients follow such redirects even where they look for the headers of a file.
    return "/".join(segments) + query


def readable_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may read its files; of a gated one, its owner may."""
    repository, user = visible_repo(request), current_user(request)
    if repository.settings.gated:
        id = repository.id
        # The words of the public Hub, which clients know.
        message = f"Access to {id.kind.removesuffix('s')} {id} is restricted"
        if user is None:
            raise GatedRepo(f"{message}. You must be authenticated to access it.")
        if not get_hub(request).tokens.is_member(user, id.owner):
            raise NotGranted(f"{message} and you are not in the authorized list: ask {id.owner}.")
    return repository


def contributable_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may propose changes to it and upload files for them.

    Everybody who sees it may, with a token that may write: a proposal changes nothing by itself.
    """
    repository = visible_repo(request)
    require_writer(request)
    return repository


def writable_repo(request: Request) -> Repository:
    """The repository in the URL, if the user may change it."""
    repository = visible_repo(request)
    check_owner(request, require_writer(request), repository.id)
    return repository
