"""What one commit can do to one path."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AddFile:
    """Put a small file, content and all."""

    path: str
    content: bytes


@dataclass(frozen=True)
class AddLarge:
    """Put a file whose content is in the blob store already; an unknown size is looked up."""

    path: str
    oid: str
    size: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove a file or a folder."""

    path: str


Change = AddFile | AddLarge | Delete
