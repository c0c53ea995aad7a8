"""Every way the Hub says no, in one tree: a status, the code clients look for, and a sentence.

Refusal
|-- BadRequest         400   the request cannot be meant
|-- NotSignedIn        401   no token, or one that is not known
|-- HiddenRepo         401   no such repository, or none for the anonymous
|-- GatedRepo          401   visible, but its files need a token
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
    """The request cannot be meant."""


class NotSignedIn(Refusal):
    """No token was sent, or one that is not known here."""

    status = 401


class HiddenRepo(NotSignedIn):
    """No such repository, or a private one: the anonymous are not told which."""

    code = "RepoNotFound"


class GatedRepo(NotSignedIn):
    """The repository is visible, but its files need a token."""

    code = "GatedRepo"


class Forbidden(Refusal):
    """The token is known, and may only read."""

    status = 403


class RepoMissing(Refusal):
    """No such repository."""

    status = 404
    code = "RepoNotFound"


class RevisionMissing(Refusal):
    """The repository is here, the branch, tag or commit is not."""

    status = 404
    code = "RevisionNotFound"


class EntryMissing(Refusal):
    """The revision is here, the file or folder is not."""

    status = 404
    code = "EntryNotFound"


class Conflict(Refusal):
    """A thing of this name exists already."""

    status = 409


class Stale(Refusal):
    """The branch is not where the sender believes it to be."""

    status = 412


class TooLarge(Refusal):
    """More bytes than this door lets in."""

    status = 413


class BadPath(Refusal):
    """A file path that could hurt whoever checks it out."""

    status = 422
