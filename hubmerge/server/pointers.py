"""LFS pointers: the few lines of text that stand in git for a large file."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Longer texts are never pointers, so a large file is not searched for one.
LONGEST = 200

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?"
)


@dataclass(frozen=True)
class Pointer:
    """A large file by its content: sha256 and size in bytes."""

    oid: str
    size: int

    @property
    def text(self) -> bytes:
        """The blob that git keeps."""
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
            self.oid.encode(),
            self.size,
        )


def parse_pointer(blob: bytes) -> Pointer | None:
    """Read a git blob as a pointer, if it is one."""
    found = _POINTER.fullmatch(blob) if len(blob) <= LONGEST else None
    return Pointer(found[1].decode(), int(found[2])) if found else None
