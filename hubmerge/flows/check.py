"""One check of `hubmerge verify`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The result of one check: what was checked, what was found, and the problem, if any."""

    what: str
    found: str
    problem: str | None = None
