"""What the card of a repository says about it, for lists and headings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hubmerge.front_matter import card_data, card_problem
from hubmerge.server.snapshot import Snapshot

CARD_FILE = "README.md"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class CardSummary:
    """The fields of a front matter that pages show; `bases` are the models it was made from."""

    bases: tuple[str, ...] = ()
    relation: str = ""
    task: str = ""
    library: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()

    @property
    def chips(self) -> list[str]:
        """Short words about it, without repeats."""
        words = [self.relation, self.task, self.library, self.licence, *self.tags]
        return list(dict.fromkeys(word for word in words if word not in ("", "unknown")))


@dataclass(frozen=True)
class Card:
    """A card: its text, its front matter, and why that cannot be read."""

    text: str
    fields: dict[str, Any]
    problem: str


def read_card(snapshot: Snapshot) -> Card:
    """The card at a commit; its text is empty if it is missing or larger than 1 MiB."""
    text = snapshot.read(CARD_FILE, _MAX_BYTES).decode(errors="replace")
    return Card(text, card_data(text), card_problem(text))


# A commit never changes, and a list of 1,000 repositories is read again and again.
@lru_cache(maxsize=4096)
def read_summary(snapshot: Snapshot) -> CardSummary:
    """What a list shows of the card at a commit."""
    fields = read_card(snapshot).fields
    return CardSummary(
        bases=_texts(fields.get("base_model")),
        relation=_text(fields.get("base_model_relation")),
        task=_text(fields.get("pipeline_tag")),
        library=_text(fields.get("library_name")),
        licence=_text(fields.get("license")),
        tags=_texts(fields.get("tags")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(item) for item in values if _text(item))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else ""
