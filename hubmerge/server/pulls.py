"""The pull requests of one repository, with their authors and status."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_atomic

PULL = "refs/pr/"
Status = Literal["open", "closed", "merged"]


@dataclass(frozen=True)
class Pull:
    """A pull request to main: its commits are those of `ref`."""

    number: int
    title: str
    author: str
    opened: datetime
    status: Status = "open"

    @property
    def ref(self) -> str:
        return f"{PULL}{self.number}"


class Pulls:
    """All pull requests in one file, numbered from 1; a writer holds the repository's lock."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "pulls.json"

    def all(self) -> list[Pull]:
        """Every pull request by its number, including one whose creation was interrupted."""
        items = json.loads(self._file.read_text()) if self._file.is_file() else []
        return [
            Pull(**{**item, "opened": datetime.fromisoformat(item["opened"])}) for item in items
        ]

    def add(self, title: str, author: str, opened: datetime) -> Pull:
        """Add a pull request with the next number."""
        pulls = self.all()
        pull = Pull(len(pulls) + 1, title, author, opened)
        self._write([*pulls, pull])
        return pull

    def set_status(self, number: int, status: Status) -> Pull:
        """Change the status of a pull request."""
        pulls = [replace(p, status=status) if p.number == number else p for p in self.all()]
        self._write(pulls)
        return pulls[number - 1]

    def _write(self, pulls: list[Pull]) -> None:
        items = [{**asdict(pull), "opened": pull.opened.isoformat()} for pull in pulls]
        write_atomic(self._file, json.dumps(items).encode())
