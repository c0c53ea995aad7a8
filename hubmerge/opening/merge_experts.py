"""Open experts by name, each at the commit that its name resolves to now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hubmerge.errors import Failures, UsageError, raise_together
from hubmerge.file_digests import hash_ahead
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.merging.plan import EXPERT_OPTIONS
from hubmerge.merging.registry import check_count
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.settings import parse_settings, record_own
from hubmerge.merging.tensor_params import UNIFORM
from hubmerge.opening.bases import check_origin, common_base
from hubmerge.opening.merge_inputs import MergeInputs, check_bases, check_no_moe
from hubmerge.opening.named_models import open_all, pin_all
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import pin, source_of
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

    Without `hashed`, the sources of models without a manifest have no digest. Experts that cannot
    be merged are left out with their failures, as long as another one can be compared with the
    base. The progress is that of hashing. Raises UsageError, NotOnHub, IntegrityError (experts of
    different bases) or CheckpointError, with all that is wrong.
    """
    method = find_method(method_name)
    check_count(method, len(experts))
    expert_options, settings = _expert_options(settings, len(experts))
    params, tensor_settings = parse_settings(method, settings, len(experts))
    failures = Failures()
    pinned = _pin_experts(hub, experts, failures)
    opened_base = _open_base(hub, base, [model for model in pinned if model], failures, progress)
    opened = open_all(hub, pinned, failures)
    if opened_base is None or not any(opened):
        failures.raise_all()
    assert opened_base is not None
    models = [model for model in opened if model]
    notes = failures.run(lambda: check_origin(opened_base, models, is_named=base is not None))
    # The digest of a merge that cannot be made is not worth reading all bytes.
    hashed = hashed and not failures.errors
    if hashed:
        unlisted = (model for model in (opened_base, *models) if model.manifest is None)
        hash_ahead((file for m in unlisted for file in m.identifying_files.values()), progress)
    own_settings = tensor_settings.own or ((),) * len(experts)
    return MergeInputs(
        method=method,
        params=params,
        base=opened_base,
        base_source=source_of(opened_base, hashed=hashed),
        experts=tuple(models),
        sources=tuple(
            dataclasses.replace(
                source_of(model, last=last_step(hub, model.revision), hashed=hashed),
                settings=record_own(own),
                **options,
            )
            for model, options, own in zip(opened, expert_options, own_settings, strict=True)
            if model
        ),
        notes=(*revision_notes(hub, models), *(notes or ())),
        failures=tuple(failures.errors),
        settings=UNIFORM if failures.errors else tensor_settings,
    )


def _pin_experts(
    hub: Hub, refs: Sequence[ModelRef], failures: Failures
) -> list[PinnedModel | None]:
    """Pin every expert; None for one that fails, and for a mixture of experts."""
    pinned = pin_all(hub, refs, failures)
    failures.run(lambda: check_no_moe([model for model in pinned if model]))
    return [model if model and not model.is_moe else None for model in pinned]


def _open_base(
    hub: Hub,
    ref: ModelRef | None,
    experts: Sequence[PinnedModel],
    failures: Failures,
    progress: Progress,
) -> OpenedModel | None:
    """Open the base, by default the one of all experts, and compare it with their manifests.

    The files of local experts, which are compared with their manifests later, are hashed with its.
    """
    if ref is None and not experts:
        return None
    pinned = failures.run(lambda: pin(hub, ref or common_base(hub, experts)))
    known = [pinned, *experts] if pinned else []
    hash_ahead(chain.from_iterable(map(_listed_files, known)), progress)
    (base,) = open_all(hub, [pinned], failures)
    if base is not None:
        failures.run(lambda: check_bases(experts, base))
    return base


def revision_notes(hub: Hub, experts: Sequence[OpenedModel]) -> Iterator[str]:
    """What a user should know of the revisions, and that `last_step` finds none offline."""
    revisions = [model.revision for model in experts]
    yield from (f"{revision.label}: {revision.note}." for revision in revisions if revision.note)
    if hub.is_offline and any(revision.ref.repo_id for revision in revisions):
        yield (
            "HF_HUB_OFFLINE is set, so the last steps of the experts are not known: the card will "
            "have no gain over them."
        )


def _listed_files(model: PinnedModel) -> Iterator[Path]:
    """The files in a local folder that its manifest lists."""
    if model.manifest and model.revision.ref.path:
        yield from (model.revision.ref.path / name for name in model.manifest.files)


def _expert_options(
    settings: Mapping[str, str], count: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Split the settings into EXPERT_OPTIONS, one dict per expert, and those of the method.

    `weight=1,0.5` gives a number for each expert, `weight=1` one for all. Weights that differ
    between tensors or layers stay with the method's settings.
    """
    settings, columns, problems = dict(settings), {}, []
    for name, (is_valid, expected) in EXPERT_OPTIONS.items():
        value = "1" if "[" in settings.get(name, "") else settings.pop(name, "1")
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
    """The last step of a revision's repository; None for a folder, without steps, or offline."""
    if revision.ref.repo_id is None or hub.is_offline:
        return None
    steps = list_steps(hub, revision.ref.repo_id)
    return steps[-1] if steps else None
