"""Every way the Hub says no, in one tree: a status, the code clients look for, and a sentence.

Refusal
|-- BadRequest         400   the request cannot be meant
|-- NotSignedIn        401   no token, or one that is not known
|   |-- HiddenRepo           no such repository, or a private one: strangers are not told which
|   `-- GatedRepo            visible, but its files need a token
|-- Forbidden          403   the token may only read
|-- RepoMissing        404
|-- RevisionMissing    404
|-- EntryMissing       404
|-- Conflict           409   it exists already
|-- Stale              412   the branch moved on
|-- TooLarge           413
`-- BadPath            422   a file path that no checkout should ever see
"""

from __future__ import annotations


class Refusal(Exception):
    """The Hub's answer is no; `commit` is the revision that was looked at, when there is one."""

    status = 400
    code = ""

    def __init__(self, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.commit = commit


class BadRequest(Refusal):
    status = 400


class NotSignedIn(Refusal):
    status = 401


class HiddenRepo(NotSignedIn):
    code = "RepoNotFound"


class GatedRepo(NotSignedIn):
    code = "GatedRepo"


class Forbidden(Refusal):
    status = 403


class RepoMissing(Refusal):
    status, code = 404, "RepoNotFound"


class RevisionMissing(Refusal):
    status, code = 404, "RevisionNotFound"


class EntryMissing(Refusal):
    status, code = 404, "EntryNotFound"


class Conflict(Refusal):
    status = 409


class Stale(Refusal):
    status = 412


class TooLarge(Refusal):
    status = 413


class BadPath(Refusal):
    status = 422
