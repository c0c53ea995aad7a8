"""The discussions of one repository, with their comments; a pull request is one with commits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hubmerge.durable import write_atomic
from hubmerge.server.http_errors import EntryMissing

PULL = "refs/pr/"
Status = Literal["draft", "open", "closed", "merged"]
EventKind = Literal["comment", "status-change", "title-change"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a discussion; `data` is what clients read of its kind."""

    kind: EventKind
    author: str
    data: dict[str, Any]
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True)
class Discussion:
    """A discussion. The commits of a pull request are those of `ref` after `base`.

    A pull request without commits of its own is a draft. `base` is "" for one of an old version.
    """

    number: int
    title: str
    author: str
    opened: datetime
    status: Status = "open"
    is_pull_request: bool = True
    base: str = ""
    events: tuple[Event, ...] = ()

    @property
    def ref(self) -> str:
        return f"{PULL}{self.number}"

    @property
    def is_open(self) -> bool:
        return self.status in ("draft", "open")

    def with_event(self, kind: EventKind, author: str, **data: Any) -> Discussion:
        """The discussion after one more event."""
        return replace(self, events=(*self.events, Event(kind, author, data)))

    def with_comment(self, author: str, text: str) -> Discussion:
        return self.with_event("comment", author, text=text, edited=False, hidden=False)

    def with_changed_comment(self, id: str, **changes: Any) -> Discussion:
        """The discussion after a comment was edited or hidden; raises EntryMissing."""
        if not any(event.id == id and event.kind == "comment" for event in self.events):
            raise EntryMissing(f"Discussion {self.number} has no comment {id[:40]!r}.")
        events = (
            replace(event, data={**event.data, **changes}) if event.id == id else event
            for event in self.events
        )
        return replace(self, events=tuple(events))


class Discussions:
    """All discussions in one file, numbered from 1; a writer holds the repository's lock."""

    def __init__(self, folder: Path) -> None:
        # Named when all were pull requests.
        self._file = folder / "pulls.json"

    def all(self) -> list[Discussion]:
        """Every discussion by its number, including one whose creation was interrupted."""
        items = json.loads(self._file.read_text()) if self._file.is_file() else []
        return [_from_json(item) for item in items]

    def add(self, discussion: Discussion) -> Discussion:
        """Add a discussion with the next number."""
        known = self.all()
        numbered = replace(discussion, number=len(known) + 1)
        self._write([*known, numbered])
        return numbered

    def change(self, number: int, change: Callable[[Discussion], Discussion]) -> Discussion:
        """Replace a discussion by what `change` makes of it."""
        discussions = self.all()
        discussions[number - 1] = change(discussions[number - 1])
        self._write(discussions)
        return discussions[number - 1]

    def _write(self, discussions: Sequence[Discussion]) -> None:
        items = [asdict(discussion) for discussion in discussions]
        write_atomic(self._file, json.dumps(items, default=datetime.isoformat).encode())


def _from_json(item: dict[str, Any]) -> Discussion:
    events = tuple(
        Event(**{**event, "time": datetime.fromisoformat(event["time"])})
        for event in item.get("events", ())
    )
    opened = datetime.fromisoformat(item["opened"])
    return Discussion(**{**item, "opened": opened, "events": events})
