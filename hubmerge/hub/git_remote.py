"""A repository on a Hub as git sees it: its refs, and what is fetched from and pushed to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from dulwich.client import HttpGitClient, HTTPUnauthorized
from dulwich.errors import (
    GitProtocolError,
    HangupException,
    NotGitRepository,
    SendPackError,
)
from dulwich.objects import ObjectID
from dulwich.refs import Ref
from urllib3.exceptions import HTTPError

from hubmerge.errors import HubError, HubUnreachable, NoAccess, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.mirror_folder import MirroredRepository
from hubmerge.server.names import RepoId
from hubmerge.server.pushes import MIRROR_HEADER

T = TypeVar("T")

_RETRY_HINT = "Nothing is lost: run the same command again."
_TOKEN_HINT = "Give a token that may do that with --token-file."
_PREFIXES = (b"refs/heads/", b"refs/tags/")
_TIMEOUT_S = 60.0


class GitRemote:
    """A repository on a Hub, by git's protocol over HTTP."""

    def __init__(self, hub: Hub, id: RepoId) -> None:
        self._hub, self._id, self._path = hub, id, id.web_path
        user = "hubmerge" if hub.token else None
        # urllib3's own client; dulwich's environment and the user's git configuration are not read.
        client: Any = HttpGitClient(
            hub.endpoint, timeout=_TIMEOUT_S, quiet=True, username=user, password=hub.token
        )
        client.pool_manager.headers.update({MIRROR_HEADER: "1"})
        self._client = client

    def refs(self) -> dict[str, str]:
        """The branches and tags, by full name, and the objects that they point to."""
        with self._errors("reading the refs of"):
            found = self._client.get_refs(self._path).refs
        return {
            name.decode(): oid.decode()
            for name, oid in found.items()
            if oid and name.startswith(_PREFIXES) and not name.endswith(b"^{}")
        }

    def fetch(self, refs: Mapping[str, str], repository: MirroredRepository) -> None:
        """Fetch the objects of these refs which are not in the folder yet."""
        with repository.open() as repo, self._errors("fetching the history of"):
            missing = [
                ObjectID(oid.encode())
                for oid in refs.values()
                if ObjectID(oid.encode()) not in repo.object_store
            ]
            if missing:
                self._client.fetch(self._path, repo, determine_wants=lambda *_, **__: missing)

    def push(self, refs: Mapping[str, str], repository: MirroredRepository) -> dict[str, str]:
        """Push refs, each to the object given; returns name -> problem of those refused."""
        wanted = {Ref(name.encode()): ObjectID(oid.encode()) for name, oid in refs.items()}
        with repository.open() as repo, self._errors("pushing the history of"):
            store = repo.object_store

            def pack(have: Any, want: Any, **options: Any) -> Any:
                known = [oid for oid in have if oid in store]
                return store.generate_pack_data(known, want, **options)

            result = self._client.send_pack(self._path.encode(), lambda _: wanted, pack)
        statuses = (result.ref_status or {}).items()
        return {name.decode(): problem for name, problem in statuses if problem}

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Raise errors of git's protocol as those of hubmerge, without a token in them."""
        what, name = f"{action} {self._id}", self._hub.name
        try:
            yield
        except HTTPUnauthorized as error:
            raise NoAccess(f"{name} refuses access, {what}.", _TOKEN_HINT) from error
        except NotGitRepository as error:
            raise NotOnHub(f"{name} has no such repository, {what}.", "Check the name.") from error
        except (HTTPError, HangupException, OSError) as error:
            message = f"{name} does not answer ({type(error).__name__}), {what}."
            raise HubUnreachable(message, _RETRY_HINT) from error
        except (GitProtocolError, SendPackError) as error:
            if "resp 403" in str(error):
                raise NoAccess(f"{name} refuses access, {what}.", _TOKEN_HINT) from error
            message = f"{name} failed ({type(error).__name__}), {what}."
            raise HubError(message, _RETRY_HINT) from error
