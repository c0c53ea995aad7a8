"""Verdicts as words and symbols: a colour never tells alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hubmerge.results import Verdict

WORDS: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not": "not reproduced",
}
SYMBOLS: dict[Verdict, str] = {"reproduced": "\u2713", "partly": "\u25d0", "not": "\u2717"}


def symbol_and_word(verdict: Verdict) -> str:
    return f"{SYMBOLS[verdict]} {WORDS[verdict]}"


def counted(verdicts: Iterable[Verdict]) -> dict[Verdict, int]:
    """How many there are of each, best first, zeros too."""
    found = Counter(verdicts)
    return {verdict: found[verdict] for verdict in WORDS}
