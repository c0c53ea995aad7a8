"""What goes into a merge, at hand: however it was asked for, merging goes on from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from hubmerge.errors import IntegrityError, raise_together
from hubmerge.flows.sources import Opened, Pinned
from hubmerge.manifest import Source
from hubmerge.merging.registry import Method


@dataclass(frozen=True)
class Inputs:
    """Method, parameters, base and experts, opened.

    `base_source` and `sources` are base and experts as the manifest will name them; of experts,
    with the part that each has. `lock` is the lock that said so, `notes` what has changed since.
    """

    method: Method
    params: BaseModel
    base: Opened
    base_source: Source
    experts: tuple[Opened, ...]
    sources: tuple[Source, ...]
    lock: bytes | None = None
    notes: tuple[str, ...] = ()


def check_bases(pinned: Sequence[Pinned | Opened], base: Opened) -> None:
    """Raise IntegrityError for every expert whose manifest names another base."""
    problems = [
        f"{one.revision.label} was fine-tuned from {one.manifest.base.label} "
        f"({one.manifest.base.sha[:12]}), not from {base.revision.label}."
        for one in pinned
        if one.manifest and one.manifest.base.digest != base.digest
    ]
    raise_together(IntegrityError, problems, "Only experts of one base can be merged.")
