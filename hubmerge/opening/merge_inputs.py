"""What goes into a merge, at hand: however it was asked for, merging goes on from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from hubmerge.cards.licence import clashes
from hubmerge.errors import IntegrityError, UsageError, either, raise_together
from hubmerge.manifest import Source
from hubmerge.merging.registry import Method
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.refs import ModelRef
from hubmerge.weights.header import shown
from hubmerge.weights.moe_config import EXPERTS


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


def check_experts(pinned: Sequence[Pinned]) -> None:
    """Raise UsageError for every mixture among what shall be merged: its experts could be."""
    problems = [
        f"{one.revision.label} is a mixture and no expert: name {either(_experts_in(one))}."
        for one in pinned
        if one.manifest and one.manifest.is_moe
    ]
    raise_together(UsageError, problems, "The experts in a mixture are plain adapters.")


def _experts_in(mixture: Pinned) -> list[str]:
    """What to type for each expert of a mixture."""
    ref, files = mixture.revision.ref, mixture.manifest.files if mixture.manifest else ()
    paths = [name.split("/") for name in files if name.startswith(f"{EXPERTS}/")]
    inside = sorted({f"{EXPERTS}/{path[1]}" for path in paths}) or [f"{EXPERTS}/NAME"]
    return [shown(str(_below(ref, folder))) for folder in inside]


def _below(ref: ModelRef, folder: str) -> ModelRef:
    if ref.path is not None:
        return dataclasses.replace(ref, path=ref.path / folder)
    return dataclasses.replace(ref, subfolder="/".join(filter(None, (ref.subfolder, folder))))


def check_licences(models: Iterable[Opened], stated: str | None) -> None:
    """Raise UsageError where no licence meets those of base and experts, unless one is stated."""
    if stated is None:
        named = {one.revision.ref.name: one.licence for one in models}
        hint = "Use experts whose licences agree; if you may, state the result's with --license."
        raise_together(UsageError, list(clashes(named)), hint)


def check_bases(pinned: Sequence[Pinned | Opened], base: Opened) -> None:
    """Raise IntegrityError for every expert whose manifest names another base."""
    problems = [
        f"{one.revision.label} was fine-tuned from {one.manifest.base.label} "
        f"({one.manifest.base.sha[:12]}), not from {base.revision.label}."
        for one in pinned
        if one.manifest and one.manifest.base.digest != base.digest
    ]
    raise_together(IntegrityError, problems, "Only experts of one base can be merged.")
