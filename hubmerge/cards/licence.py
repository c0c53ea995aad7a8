"""Licences as the Hub spells them, and the licence of a merge of differently licensed sources.

Licences are read from cards and ordered by how restrictive they are. This is not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from hubmerge.front_matter import card_data

# Each class is more restrictive than the one above it; so is a later licence within _PERMISSIVE.
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
# Non-commercial, or with terms of their own: no two of these can be satisfied by one licence.
_CUSTOM = (
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "openrail",
    "openrail++", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "gemma", "apple-ascl", "apple-amlr", "h-research", "intel-research", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "c-uda", "other",
)  # fmt: skip
_CLASSES = (_PERMISSIVE, _WEAK, _STRONG, _CUSTOM)
# Pairs of one class in which the whole may be distributed under the second licence.
_COMPATIBLE_WITH = {
    ("gpl-3.0", "agpl-3.0"), ("cc-by-sa-4.0", "gpl-3.0"), ("lgpl-3.0", "gpl-3.0"),
    *((f"cc-by-nc-{number}", f"cc-by-nc-sa-{number}") for number in ("2.0", "3.0", "4.0")),
}  # fmt: skip
_UNSPECIFIED = {"", "unknown", "none"}


def card_licence(card: bytes) -> str | None:
    """The licence in a card's front matter; None if there is none, several or unreadable text."""
    data = card_data(card.decode(errors="replace"))
    named, custom_name = data.get("license"), data.get("license_name")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if named == "other" and isinstance(custom_name, str):
        named = custom_name
    return licence_id(named) if isinstance(named, str) else None


def licence_id(text: str) -> str | None:
    """A licence as the Hub spells it, in lower case with hyphens; None for `unknown`."""
    spelled = re.sub(r"[^a-z0-9.+]+", "-", text[:200].lower()).strip("-")[:80]
    return None if spelled in _UNSPECIFIED else spelled


def licence_conflicts(named: Mapping[str, str | None]) -> Iterator[str]:
    """A sentence for each pair of licences that no merge can satisfy at once.

    `named` maps the name of each source to its licence. There is also a sentence for each licence
    that forbids distributing modified works. An unknown licence (None) conflicts with no other.
    """
    first: dict[str, str] = {}
    for source, licence in named.items():
        if licence:
            first.setdefault(licence, source)
    for licence, source in first.items():
        if re.search(r"\bnd\b", licence):
            yield f"{source} is under {licence}, which forbids distributing modified works."
    for left, right in combinations(first, 2):
        if _satisfying_both(left, right) is None:
            yield (
                f"{first[left]} is under {left} and {first[right]} under {right}: no known "
                "licence satisfies both."
            )


def most_restrictive(licences: Iterable[str | None]) -> str | None:
    """The licence that satisfies all; None if one is unknown or two conflict."""
    result: str | None = None
    for licence in sorted(set(licences), key=str):
        result = (licence and _satisfying_both(result, licence)) if result else licence
        if result is None:
            return None
    return result


def licence_metadata(licence: str | None) -> dict[str, Any]:
    """The licence as front matter: the Hub accepts only the names of its own list as `license`."""
    if licence is None:
        return {"license": "unknown"}
    if any(licence in names for names in _CLASSES):
        return {"license": licence}
    return {"license": "other", "license_name": licence}


def _satisfying_both(left: str, right: str) -> str | None:
    """The one of two licences that satisfies both, None if neither does."""
    if left == right or (left, right) in _COMPATIBLE_WITH:
        return right
    if (right, left) in _COMPATIBLE_WITH:
        return left
    weaker, stronger = sorted((left, right), key=_rank)
    classes = _rank(weaker)[0], _rank(stronger)[0]
    weak_copyleft_in_strong = classes == (1, 2)
    return stronger if classes[0] == 0 or weak_copyleft_in_strong else None


def _rank(licence: str) -> tuple[int, int]:
    """(class, position in the class); an unlisted licence is of the most restrictive class."""
    for number, names in enumerate(_CLASSES):
        if licence in names:
            return number, names.index(licence)
    return len(_CLASSES) - 1, 0
