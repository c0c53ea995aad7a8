"""Replaces the generated part of a card and keeps what its author wrote around it.

The generated part is what lies between two lines that contain only our markers. Whatever happened
to the markers (one is missing, or they are doubled, swapped or quoted in code), no line outside
them is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from hubmerge.cards.markdown import break_comments
from hubmerge.front_matter import card_data, card_problem

BEGIN, END = "<!-- hubmerge:begin -->", "<!-- hubmerge:end -->"
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_CODE_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LICENCE_KEYS = ("license", "license_name", "license_link")
# The other keys that we write: an old value is removed when there is no new one.
_GENERATED_KEYS = {
    "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "datasets",
    "metrics", "model-index",
}  # fmt: skip


def assemble_card(front_matter: Mapping[str, Any], generated: str, previous: str = "") -> str:
    """The complete card: front matter, generated part, and the author's text of the previous card.

    Keys of the previous front matter that we never write stay, and so does a licence stated there.
    """
    author_data = card_data(previous)
    other_keys = {
        key: value
        for key, value in author_data.items()
        if key not in {*_GENERATED_KEYS, *_LICENCE_KEYS}
    }
    licence = {key: author_data[key] for key in _LICENCE_KEYS if author_data.get(key)}
    if licence.get("license") in (None, "unknown"):
        licence = {key: front_matter[key] for key in _LICENCE_KEYS if key in front_matter}
    ours = {key: value for key, value in front_matter.items() if key not in _LICENCE_KEYS}
    front = yaml.safe_dump(
        {**licence, **ours, **other_keys}, sort_keys=False, allow_unicode=True, width=1000
    )
    above, below = split_author_text(previous)
    return f"---\n{break_comments(front)}---\n{above}{BEGIN}\n{generated}\n{END}\n{below}"


def split_author_text(card: str) -> tuple[str, str]:
    """The text above and below the generated part of a card, without the front matter.

    Of several generated parts the first is replaced and the others are removed. A part without an
    end marker is kept as text. In a card without a generated part, all text is below.
    """
    # If the front matter cannot be read, a horizontal rule must not be taken for its end.
    body = card if card_problem(card) else _FRONT_MATTER.sub("", card, count=1)
    lines = body.splitlines(keepends=True)
    ranges = _generated_ranges(lines)
    starts = [start for start, _ in ranges] or [
        index for index in _marker_lines(lines) if lines[index].strip() == BEGIN
    ]
    generated = {index for start, end in ranges for index in range(start, end)}
    generated.update(_marker_lines(lines))
    first = starts[0] if starts else 0
    above = [line for index, line in enumerate(lines[:first]) if index not in generated]
    below = [line for index, line in enumerate(lines) if index >= first and index not in generated]
    # A marker needs a line of its own.
    if above and not above[-1].endswith("\n"):
        above.append("\n")
    return "".join(above), "".join(below)


def _generated_ranges(lines: list[str]) -> list[tuple[int, int]]:
    """The [start, end) range of lines of each part that has both markers."""
    ranges: list[tuple[int, int]] = []
    start: int | None = None
    for index in _marker_lines(lines):
        if lines[index].strip() == BEGIN:
            start = index
        elif start is not None:
            ranges.append((start, index + 1))
            start = None
    return ranges


def _marker_lines(lines: list[str]) -> list[int]:
    """The indices of marker lines; markers inside a code block do not count."""
    indices, fence = [], ""
    for index, line in enumerate(lines):
        opening = _CODE_FENCE.match(line)
        if fence:
            closes = opening and opening[1].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        elif opening:
            fence = opening[1]
        elif line.rstrip() in (BEGIN, END):
            indices.append(index)
    return indices
