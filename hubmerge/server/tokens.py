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

    def user(self, token: str) -> User | None:
        """The user of a token, None if it is unknown."""
        return self._users().get(token)

    def create(self, name: str, role: Role) -> str:
        """Create a token and store it."""
        token = "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(_TOKEN_LETTERS))
        users = {**self._users(), token: User(name, role)}
        fields = {key: asdict(user) for key, user in users.items()}
        write_atomic(self.file, json.dumps(fields, indent=1).encode())
        return token

    def ensure_writer(self, name: str) -> None:
        """Create a write token unless there is one, and write it to a file that clients read."""
        writers = [token for token, user in self._users().items() if user.may_write]
        token = writers[0] if writers else self.create(name, "write")
        write_atomic(self.file.with_name(TOKEN_FILE), token.encode())

    def _users(self) -> dict[str, User]:
        users = json.loads(self.file.read_text()) if self.file.exists() else {}
        return {token: User(user["name"], user["role"]) for token, user in users.items()}


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
