"""The errors of the Hub in one tree: HTTP status, error code for clients, and a message.

HttpError
|-- Moved              307   the repository has another name
|-- BadRequest         400   the request is invalid
|-- NotSignedIn        401   no token, or an unknown one
|   |-- HiddenRepo           no such repository, or a private one; strangers cannot tell which
|   `-- GatedRepo            visible, but reading its files needs a token
|-- Forbidden          403   the token may only read, or the repository belongs to another user
|   `-- NotGranted           gated, and its owner is another user
|-- RepoMissing        404
|-- RevisionMissing    404
|-- EntryMissing       404
|-- Conflict           409   exists already
|-- Stale              412   the branch has moved
|-- TooLarge           413
|-- BadPath            422   a file path that is unsafe in a checkout
|-- NotBuilt           501   a feature of the public Hub that this one does not have
`-- DiskFull           507   clients do not retry it
"""

from __future__ import annotations


class HttpError(Exception):
    """An error response; `commit` is the revision that was read, if there is one."""

    status = 400
    code = ""

    def __init__(self, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.commit = commit


class Moved(HttpError):
    """The repository has another name; `location` is the path of the request with it."""

    status = 307

    def __init__(self, location: str) -> None:
        super().__init__(f"Temporary Redirect. Redirecting to {location}")
        self.location = location


class BadRequest(HttpError):
    status = 400


class NotSignedIn(HttpError):
    status = 401


class HiddenRepo(NotSignedIn):
    code = "RepoNotFound"


class GatedRepo(NotSignedIn):
    code = "GatedRepo"


class Forbidden(HttpError):
    status = 403


class NotGranted(Forbidden):
    code = "GatedRepo"


class RepoMissing(HttpError):
    status, code = 404, "RepoNotFound"


class RevisionMissing(HttpError):
    status, code = 404, "RevisionNotFound"


class EntryMissing(HttpError):
    status, code = 404, "EntryNotFound"


class Conflict(HttpError):
    status = 409


class StaleParent(HttpError):
    status = 412


class TooLarge(HttpError):
    status = 413


class BadPath(HttpError):
    status = 422


class NotBuilt(HttpError):
    status = 501


class DiskFull(HttpError):
    status = 507
