"""What an author wrote around our part of a card: found again, and kept.

Ours is what stands between two lines that hold nothing but our markers. Whatever was done to them
(one is missing, they are doubled, swapped or shown in code), no line outside of them is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from hubmerge.cards.markdown import no_marker
from hubmerge.front_matter import card_data, card_problem

BEGIN, END = "<!-- hubmerge:begin -->", "<!-- hubmerge:end -->"
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LICENCE = ("license", "license_name", "license_link")
# What else we write, so that it goes when there is nothing to write any more.
_OURS = {
    "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "datasets",
    "metrics", "model-index",
}  # fmt: skip


def whole_card(said: Mapping[str, Any], part: str, before: str = "") -> str:
    """The card of front matter and our part, with what the author of the card before wrote.

    Keys of its front matter that we never write stay, and so does a licence that it names.
    """
    theirs = card_data(before)
    kept = {key: value for key, value in theirs.items() if key not in {*_OURS, *_LICENCE}}
    licence = {key: theirs[key] for key in _LICENCE if theirs.get(key)}
    if licence.get("license") in (None, "unknown"):
        licence = {key: said[key] for key in _LICENCE if key in said}
    ours = {key: value for key, value in said.items() if key not in _LICENCE}
    front = yaml.safe_dump(
        {**licence, **ours, **kept}, sort_keys=False, allow_unicode=True, width=1000
    )
    above, below = around(before)
    return f"---\n{no_marker(front)}---\n{above}{BEGIN}\n{part}\n{END}\n{below}"


def around(before: str) -> tuple[str, str]:
    """What stands above and below our part of a card, front matter left out.

    Of several parts the first is replaced and the others go. Without an end a part is nobody's:
    it stays as text. Without any part, all of it stands below.
    """
    # A rule between paragraphs is no end of a front matter that cannot be read.
    body = before if card_problem(before) else _FRONT.sub("", before, count=1)
    lines = body.splitlines(keepends=True)
    parts = _parts(lines)
    starts = [start for start, _ in parts] or [
        place for place in _markers(lines) if lines[place].strip() == BEGIN
    ]
    ours = {place for start, end in parts for place in range(start, end)} | set(_markers(lines))
    first = starts[0] if starts else 0
    above = [line for place, line in enumerate(lines[:first]) if place not in ours]
    below = [line for place, line in enumerate(lines) if place >= first and place not in ours]
    # A marker must stand alone on its line.
    if above and not above[-1].endswith("\n"):
        above.append("\n")
    return "".join(above), "".join(below)


def _parts(lines: list[str]) -> list[tuple[int, int]]:
    """Each part that begins and ends, as a range of lines."""
    found: list[tuple[int, int]] = []
    start: int | None = None
    for place in _markers(lines):
        if lines[place].strip() == BEGIN:
            start = place
        elif start is not None:
            found.append((start, place + 1))
            start = None
    return found


def _markers(lines: list[str]) -> list[int]:
    """The lines that are a marker; one that is shown in a code block is none."""
    found, fence = [], ""
    for place, line in enumerate(lines):
        opened = _FENCE.match(line)
        if fence:
            closes = opened and opened[1].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif opened:
            fence = opened[1]
        elif line.rstrip() in (BEGIN, END):
            found.append(place)
    return found
