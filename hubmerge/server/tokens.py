"""The tokens of a data folder, and the key that signs upload URLs."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import string
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_atomic

Role = Literal["write", "read"]

# The user of all commands of hubmerge.
FIRST_USER = "local"
TOKEN_FILE = "token"
_TOKEN_LETTERS = 34
_URL_LIFETIME_S = 24 * 3600


@dataclass(frozen=True)
class User:
    """The user of a token; "write" may change everything, "read" may see everything."""

    name: str
    role: Role

    @property
    def may_write(self) -> bool:
        return self.role == "write"


class Tokens:
    """The file of tokens; read at each request, so that an edit takes effect at once."""

    def __init__(self, data: Path) -> None:
        self.file = data / "tokens.json"
        # A user whose tokens were all revoked still owns their repositories.
        self._names_file = data / "users.json"

    def user(self, token: str) -> User | None:
        """The user of a token, None if it is unknown."""
        return self._users().get(token)

    def is_member(self, user: User, owner: str) -> bool:
        """Whether repositories of an owner are the user's: an owner that is no user is a team that
        all users are in. The first user, who has the data folder, is a member of all.
        """
        if owner.lower() == user.name.lower() or user.name == FIRST_USER:
            return True
        return owner.lower() not in {name.lower() for name in self._names()}

    def create(self, name: str, role: Role) -> str:
        """Create a token and store it."""
        token = "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(_TOKEN_LETTERS))
        names = json.dumps(sorted({*self._names(), name}))
        write_atomic(self._names_file, names.encode())
        self._write({**self._users(), token: User(name, role)})
        return token

    def list(self) -> dict[str, User]:
        """The users of all tokens; a token is named by the start of its sha256."""
        return {_id_of(token): user for token, user in self._users().items()}

    def revoke(self, word: str) -> int:
        """Revoke the token of that id, or all tokens of the user of that name; returns how many.

        The token in the file for clients stays: without it no command could use the Hub.
        """
        own, users = self._token_for_clients(), self._users()
        revoked = {
            token
            for token, user in users.items()
            if word in (_id_of(token), user.name) and token != own
        }
        if revoked:
            self._write({token: user for token, user in users.items() if token not in revoked})
        return len(revoked)

    def ensure_writer(self, name: str) -> None:
        """Create a write token unless there is one, and write it to a file that clients read."""
        users, file = self._users(), self.file.with_name(TOKEN_FILE)
        writers = [token for token, user in users.items() if user == User(name, "write")]
        token = writers[0] if writers else self.create(name, "write")
        # Not written again without need: a Hub on a full disk must start.
        if self._token_for_clients() != token:
            write_atomic(file, token.encode())

    def _token_for_clients(self) -> str:
        file = self.file.with_name(TOKEN_FILE)
        return file.read_text() if file.is_file() else ""

    def _names(self) -> set[str]:
        names = json.loads(self._names_file.read_text()) if self._names_file.exists() else []
        return {*names, *(user.name for user in self._users().values())}

    def _write(self, users: dict[str, User]) -> None:
        fields = {key: asdict(user) for key, user in users.items()}
        write_atomic(self.file, json.dumps(fields, indent=1).encode())

    def _users(self) -> dict[str, User]:
        users = json.loads(self.file.read_text()) if self.file.exists() else {}
        return {token: User(user["name"], user["role"]) for token, user in users.items()}


def _id_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]


class Signer:
    """Signs upload URLs: clients upload to a URL without their token."""

    def __init__(self, data: Path, lifetime_s: int = _URL_LIFETIME_S) -> None:
        self._lifetime_s = lifetime_s
        file = data / "signing.key"
        if not file.exists():
            # Stored, so that upload URLs stay valid after a restart.
            write_atomic(file, secrets.token_bytes(32))
        self._key = file.read_bytes()

    def sign(self, subject: str, size: int) -> dict[str, str]:
        """The query of a URL with which anybody may upload `size` bytes there for some time.

        The subject is what the URL stands for, as the sha256 of a content.
        """
        expires = str(int(time.time()) + self._lifetime_s)
        return {
            "size": str(size),
            "expires": expires,
            "sig": self._signature(subject, str(size), expires),
        }

    def verify(self, subject: str, size: str, expires: str, sig: str) -> bool:
        """Whether these parameters were signed by this key and have not expired."""
        expected = self._signature(subject, size, expires)
        is_signed = hmac.compare_digest(expected.encode(), sig.encode())
        return is_signed and int(expires) > time.time()

    def _signature(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
