"""Licences as the Hub spells them, and the one that a merge of several is bound by.

This reads what cards name and orders it; it is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from hubmerge.front_matter import card_data

# Each class binds more than the one above it; among the permissive a later one binds more.
_PERMISSIVE = (
    "cc0-1.0", "unlicense", "wtfpl", "pddl", "zlib", "isc", "mit", "postgresql", "bsl-1.0",
    "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "ncsa", "afl-3.0", "ecl-2.0",
    "artistic-2.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "etalab-2.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "openmdw-1.0", "apache-2.0",
)  # fmt: skip
_WEAK = (
    "ms-pl", "mpl-2.0", "epl-1.0", "epl-2.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr",
)  # fmt: skip
_STRONG = (
    "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "osl-3.0", "eupl-1.1", "eupl-1.2", "gfdl", "odbl",
    "cdla-sharing-1.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
)  # fmt: skip
# Not for trade, or on terms of their own: no two of these meet.
_CUSTOM = (
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "openrail",
    "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "gemma", "apple-ascl", "apple-amlr", "h-research", "intel-research", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "c-uda", "other",
)  # fmt: skip
_CLASSES = (_PERMISSIVE, _WEAK, _STRONG, _CUSTOM)
# Licences of one class that let the whole pass under the other.
_PASSES_UNDER = {
    ("gpl-3.0", "agpl-3.0"), ("cc-by-sa-4.0", "gpl-3.0"), ("lgpl-3.0", "gpl-3.0"),
    *((f"cc-by-nc-{number}", f"cc-by-nc-sa-{number}") for number in ("2.0", "3.0", "4.0")),
}  # fmt: skip
_SILENT = {"", "unknown", "none"}


def card_licence(card: bytes) -> str | None:
    """The licence in a card's front matter, None if it names none, or several, or is unreadable."""
    said = card_data(card.decode(errors="replace"))
    named, own_name = said.get("license"), said.get("license_name")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if named == "other" and isinstance(own_name, str):
        named = own_name
    return licence_id(named) if isinstance(named, str) else None


def licence_id(text: str) -> str | None:
    """A licence as the Hub spells it, in lower case with hyphens; None for `unknown`."""
    spelled = re.sub(r"[^a-z0-9.+]+", "-", text[:200].lower()).strip("-")[:80]
    return None if spelled in _SILENT else spelled


def clashes(named: Mapping[str, str | None]) -> Iterator[str]:
    """A sentence for each two sources, name -> licence, whose licences no merge can meet at once.

    Also for each whose licence does not let changed works be passed on. A licence that is not
    known clashes with none.
    """
    first: dict[str, str] = {}
    for source, licence in named.items():
        if licence:
            first.setdefault(licence, source)
    for licence, source in first.items():
        if re.search(r"\bnd\b", licence):
            yield f"{source} is under {licence}, which lets no changed work be passed on."
    for one, other in combinations(first, 2):
        if _stricter(one, other) is None:
            yield (
                f"{first[one]} is under {one} and {first[other]} under {other}: no licence is "
                "known that meets both."
            )


def most_restrictive(licences: Iterable[str | None]) -> str | None:
    """The licence that meets all; None where one is not known, or two clash."""
    found: str | None = None
    for licence in sorted(set(licences), key=str):
        found = (found and licence and _stricter(found, licence)) if found else licence
        if found is None:
            return None
    return found


def licence_metadata(licence: str | None) -> dict[str, Any]:
    """The licence in the front matter: the Hub takes names of its own list only."""
    if licence is None:
        return {"license": "unknown"}
    if any(licence in names for names in _CLASSES):
        return {"license": licence}
    return {"license": "other", "license_name": licence}


def _stricter(one: str, other: str) -> str | None:
    """The one of two licences that meets both, None if neither does."""
    if one == other or (one, other) in _PASSES_UNDER:
        return other
    if (other, one) in _PASSES_UNDER:
        return one
    weaker, stronger = sorted((one, other), key=_rank)
    below, above = _rank(weaker)[0], _rank(stronger)[0]
    copyleft_meets_more = below == 1 and above == 2
    return stronger if below == 0 or copyleft_meets_more else None


def _rank(licence: str) -> tuple[int, int]:
    for number, names in enumerate(_CLASSES):
        if licence in names:
            return number, names.index(licence)
    return len(_CLASSES) - 1, 0
