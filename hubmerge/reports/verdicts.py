"""Verdicts as words and symbols, so that they never depend on colour alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hubmerge.results import Verdict

WORDS: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not": "not reproduced",
    "untested": "not tested",
}
SYMBOLS: dict[Verdict, str] = {
    "reproduced": "\u2713",
    "partly": "\u25d0",
    "not": "\u2717",
    "untested": "\u25cb",
}


def symbol_and_word(verdict: Verdict) -> str:
    return f"{SYMBOLS[verdict]} {WORDS[verdict]}"


def count_verdicts(verdicts: Iterable[Verdict]) -> dict[Verdict, int]:
    """The number of each verdict, best first, including zeros."""
    counts = Counter(verdicts)
    return {verdict: counts[verdict] for verdict in WORDS}
