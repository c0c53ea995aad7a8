"""Open experts by name, each at the commit that its name resolves to now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hubmerge.errors import UsageError, raise_together
from hubmerge.file_digests import hash_ahead
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.merging.plan import EXPERT_OPTIONS
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.registry import parse_params
from hubmerge.opening.bases import check_origin, common_base
from hubmerge.opening.merge_inputs import MergeInputs, check_bases, check_no_moe
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.references import open_pinned, pin, source_of
from hubmerge.progress import Progress, no_progress
from hubmerge.refs import ModelRef, Revision


def open_merge_inputs(
    hub: Hub,
    experts: Sequence[ModelRef],
    method_name: str,
    settings: Mapping[str, str],
    base: ModelRef | None,
    hashed: bool = True,
    progress: Progress = no_progress,
) -> MergeInputs:
    """Open the inputs of a merge: method and parameters are checked first, weights fetched last.

    Without `hashed`, the sources of models without a manifest have no digest. The progress is that
    of hashing. Raises UsageError, NotOnHub, IntegrityError (experts of different bases) or
    CheckpointError.
    """
    method = find_method(method_name)
    expert_options, settings = _expert_options(settings, len(experts))
    params = parse_params(method, settings)
    pinned = [pin(hub, ref) for ref in experts]
    check_no_moe(pinned)
    pinned_base = pin(hub, base or common_base(hub, pinned))
    hash_ahead(chain.from_iterable(map(_listed_files, (pinned_base, *pinned))), progress)
    opened_base = open_pinned(hub, pinned_base)
    check_bases(pinned, opened_base)
    opened = [open_pinned(hub, model) for model in pinned]
    if hashed:
        unlisted = (model for model in (opened_base, *opened) if model.manifest is None)
        hash_ahead((file for m in unlisted for file in m.identifying_files.values()), progress)
    notes = check_origin(opened_base, opened, is_named=base is not None)
    sources = tuple(
        dataclasses.replace(
            source_of(model, last=last_step(hub, model.revision), hashed=hashed), **options
        )
        for model, options in zip(opened, expert_options, strict=True)
    )
    revisions = [model.revision for model in opened]
    return MergeInputs(
        method=method,
        params=params,
        base=opened_base,
        base_source=source_of(opened_base, hashed=hashed),
        experts=tuple(opened),
        sources=tuple(
            dataclasses.replace(source, **options)
            for source, options in zip(sources, expert_options, strict=True)
        ),
        notes=(
            *(f"{revision.label}: {revision.note}." for revision in revisions if revision.note),
            *notes,
        ),
    )


def _listed_files(model: PinnedModel) -> Iterator[Path]:
    """The files in a local folder that its manifest lists."""
    if model.manifest and model.revision.ref.path:
        yield from (model.revision.ref.path / name for name in model.manifest.files)


def _expert_options(
    settings: Mapping[str, str], count: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Split the settings into EXPERT_OPTIONS, one dict per expert, and those of the method.

    `weight=1,0.5` gives a number for each expert, `weight=1` one for all.
    """
    settings, columns, problems = dict(settings), {}, []
    for name, (is_valid, expected) in EXPERT_OPTIONS.items():
        value = settings.pop(name, "1")
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            problems.append(f"{name}={value} is not a list of numbers.")
            continue
        if len(numbers) not in (1, count):
            problems.append(f"{name}={value} gives {len(numbers)} numbers for {count} experts.")
        if not all(map(is_valid, numbers)):
            problems.append(f"{name}={value} is not {expected}.")
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
