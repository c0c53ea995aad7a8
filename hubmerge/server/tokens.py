"""Who may do what: the tokens of a data folder, and the key that signs upload addresses."""

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

from hubmerge.durable import write_whole

Role = Literal["write", "read"]

OWN_TOKEN = "token"
_LETTERS = 34
_HREF_LIFE_S = 24 * 3600


@dataclass(frozen=True)
class User:
    """The bearer of a token; "write" may change everything, "read" may see everything."""

    name: str
    role: Role

    @property
    def may_write(self) -> bool:
        return self.role == "write"


class Tokens:
    """The file of tokens, read at each request so that an edit counts at once."""

    def __init__(self, data: Path) -> None:
        self.file = data / "tokens.json"

    def user(self, token: str) -> User | None:
        """The bearer of a token, if it is known."""
        return self._users().get(token)

    def mint(self, name: str, role: Role) -> str:
        """Make a token and keep it."""
        token = "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(_LETTERS))
        users = {**self._users(), token: User(name, role)}
        kept = {key: asdict(user) for key, user in users.items()}
        write_whole(self.file, json.dumps(kept, indent=1).encode())
        return token

    def ensure_writer(self, name: str) -> None:
        """Mint a first write token, unless there is one, and leave it where clients can read it."""
        writers = [token for token, user in self._users().items() if user.may_write]
        token = writers[0] if writers else self.mint(name, "write")
        write_whole(self.file.with_name(OWN_TOKEN), token.encode())

    def _users(self) -> dict[str, User]:
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        return {token: User(bearer["name"], bearer["role"]) for token, bearer in kept.items()}


class Signer:
    """Signs upload addresses: clients send their bytes to an address without their token."""

    def __init__(self, data: Path, life_s: int = _HREF_LIFE_S) -> None:
        self._life_s = life_s
        file = data / "signing.key"
        if not file.exists():
            # Kept, so that a client's own retries still fit after a restart.
            write_whole(file, secrets.token_bytes(32))
        self._key = file.read_bytes()

    def query(self, oid: str, size: int) -> dict[str, str]:
        """The parameters that let anyone upload this one content for a while."""
        expires = str(int(time.time()) + self._life_s)
        return {"size": str(size), "expires": expires, "sig": self._sign(oid, str(size), expires)}

    def admits(self, oid: str, size: str, expires: str, sig: str) -> bool:
        """Whether these parameters were signed here and still hold."""
        fits = hmac.compare_digest(self._sign(oid, size, expires).encode(), sig.encode())
        return fits and int(expires) > time.time()

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
