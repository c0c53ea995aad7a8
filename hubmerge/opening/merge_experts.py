"""Experts by name, opened: each at the commit that its name means now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hubmerge.errors import UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.merging.plan import SHARES
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.opening.bases import common_base
from hubmerge.opening.merge_inputs import Inputs, check_bases, check_experts
from hubmerge.opening.references import open_pinned, pin, source_of
from hubmerge.refs import ModelRef, Revision


def open_named(
    hub: Hub,
    experts: Sequence[ModelRef],
    method_name: str,
    settings: Mapping[str, str],
    base: ModelRef | None,
) -> Inputs:
    """What is asked for: first method and parameters, then names and bases, and only then weights.

    Raises UsageError, NotOnHub, IntegrityError (experts of different bases) or CheckpointError.
    """
    method = find_method(method_name)
    shares, settings = _shares(settings, len(experts))
    params = parse_params(method, settings)
    pinned = [pin(hub, ref) for ref in experts]
    check_experts(pinned)
    found = open_pinned(hub, pin(hub, base or common_base(hub, pinned)))
    check_bases(pinned, found)
    opened = [open_pinned(hub, one) for one in pinned]
    sources = tuple(
        dataclasses.replace(source_of(one, last=last_step(hub, one.revision)), **share)
        for one, share in zip(opened, shares, strict=True)
    )
    notes = [f"{one.revision.label}: {one.revision.note}." for one in opened if one.revision.note]
    return Inputs(
        method, params, found, source_of(found), tuple(opened), sources, notes=tuple(notes)
    )


def _shares(settings: Mapping[str, str], count: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """`weight=1,0.5` is one number per expert, as is all of SHARES; the rest is the method's."""
    settings, columns, problems = dict(settings), {}, []
    for name, (sound, wanted) in SHARES.items():
        said = settings.pop(name, "1")
        try:
            numbers = [float(part) for part in said.split(",")]
        except ValueError:
            problems.append(f"{name}={said} is not a list of numbers.")
            continue
        if len(numbers) not in (1, count):
            problems.append(f"{name}={said} gives {len(numbers)} numbers for {count} experts.")
        if not all(map(sound, numbers)):
            problems.append(f"{name}={said} is not {wanted}.")
        columns[name] = numbers * count if len(numbers) == 1 else numbers
    hint = "Give one number for all experts, or one for each, in their order."
    raise_together(UsageError, problems, hint)
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows], settings


def last_step(hub: Hub, revision: Revision) -> Revision | None:
    """The last step of a revision's repository; None for a folder, or without steps."""
    if revision.ref.repo_id is None:
        return None
    steps = list_steps(hub, revision.ref.repo_id)
    return steps[-1] if steps else None
