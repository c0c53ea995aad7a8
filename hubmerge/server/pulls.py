"""The pull requests of one repository: who opened which, and what became of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hubmerge.durable import write_whole

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
    """They are kept in one file, numbered from 1; whoever writes holds the repository's turn."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "pulls.json"

    def all(self) -> list[Pull]:
        """Every pull request by its number, also one whose opening was cut short."""
        kept = json.loads(self._file.read_text()) if self._file.is_file() else []
        return [Pull(**{**one, "opened": datetime.fromisoformat(one["opened"])}) for one in kept]

    def add(self, title: str, author: str, opened: datetime) -> Pull:
        """Take the next number."""
        there = self.all()
        pull = Pull(len(there) + 1, title, author, opened)
        self._write([*there, pull])
        return pull

    def mark(self, number: int, status: Status) -> Pull:
        """Say what became of one."""
        changed = [replace(p, status=status) if p.number == number else p for p in self.all()]
        self._write(changed)
        return changed[number - 1]

    def _write(self, pulls: list[Pull]) -> None:
        told = [{**asdict(pull), "opened": pull.opened.isoformat()} for pull in pulls]
        write_whole(self._file, json.dumps(told).encode())
