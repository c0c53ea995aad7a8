"""What a repository knows about itself beside its files: who may see it, and since when it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_whole

Gate = Literal["auto", "manual", False]


@dataclass(frozen=True)
class Settings:
    """Private: only seen with a token. Gated: seen by all, its files need a token."""

    created: datetime
    private: bool = False
    gated: Gate = False


def read_settings(folder: Path) -> Settings:
    """Read the settings kept in a repository's folder."""
    kept = json.loads((folder / "hub.json").read_text())
    return Settings(
        created=datetime.fromisoformat(kept["created"]),
        private=kept["private"],
        gated=kept["gated"],
    )


def write_settings(folder: Path, settings: Settings) -> None:
    """Keep the settings in a repository's folder."""
    kept = {
        "created": settings.created.isoformat(),
        "private": settings.private,
        "gated": settings.gated,
    }
    write_whole(folder / "hub.json", json.dumps(kept).encode())
