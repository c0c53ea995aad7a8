"""Browsers that a link from the command line has signed in: they read as its user, and no more."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from urllib.parse import urlsplit

from starlette.requests import Request

from hubmerge.errors import HubUnreachable
from hubmerge.server.state import ServerState
from hubmerge.server.tokens import User

_LINK_LIFETIME_S = 600
_SESSION_LIFETIME_S = 12 * 3600
_TIMEOUT_S = 5.0


class Sessions:
    """Links that work once, and sessions; in memory only, so a restart signs every browser out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[str, tuple[User, float]] = {}
        self._sessions: dict[str, tuple[User, float]] = {}

    def create_key(self, user: User) -> str:
        """A key that signs one browser in as this user, who may then only read; for ten minutes."""
        return _add(self._links, User(user.name, "read"), _LINK_LIFETIME_S, self._lock)

    def redeem(self, key: str) -> str | None:
        """The new session of a key, None if it was used, is too old, or was never made."""
        with self._lock:
            user, deadline = self._links.pop(key, (None, 0.0))
        if user is None or deadline < time.monotonic():
            return None
        return _add(self._sessions, user, _SESSION_LIFETIME_S, self._lock)

    def user(self, session: str) -> User | None:
        """The user of a session, None if there is none or it has ended."""
        user, deadline = self._sessions.get(session, (None, 0.0))
        return user if deadline >= time.monotonic() else None


def get_sessions(request: Request) -> Sessions:
    sessions = request.app.state.sessions
    assert isinstance(sessions, Sessions)
    return sessions


def cookie_name(request: Request) -> str:
    """The cookie of this server: cookies know no port, so the name has it."""
    return f"hubmerge-hub-{request.url.port}"


def browser_user(request: Request) -> User | None:
    """The user of a browser that was signed in, None for any other request."""
    session = request.cookies.get(cookie_name(request), "")
    return get_sessions(request).user(session) if session else None


def request_link(state: ServerState) -> str:
    """A new address that signs one browser in; raises HubUnreachable."""
    connection = http.client.HTTPConnection(urlsplit(state.url).netloc, timeout=_TIMEOUT_S)
    try:
        headers = {"Authorization": f"Bearer {state.token}"}
        connection.request("POST", "/api/hubmerge/sign-in-key", "{}", headers)
        key = json.loads(connection.getresponse().read())["key"]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise HubUnreachable(
            f"The Hub at {state.url} did not make a link: {error}.",
            "Stop it and start it again with `hubmerge hub serve`.",
        ) from error
    finally:
        connection.close()
    return f"{state.url}/-/sign-in?key={key}"


def _add(
    entries: dict[str, tuple[User, float]], user: User, lifetime_s: float, lock: threading.Lock
) -> str:
    """Add an entry under a new random name, and forget those that have ended."""
    name, now = secrets.token_urlsafe(32), time.monotonic()
    with lock:
        for old in [key for key, (_, deadline) in entries.items() if deadline < now]:
            del entries[old]
        entries[name] = user, now + lifetime_s
    return name
