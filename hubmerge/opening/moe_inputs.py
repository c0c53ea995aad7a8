"""The inputs of a mixture of experts: checkpoints as its experts, parameters as its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.moerging.experts import check_experts
from hubmerge.opening.extracted_adapters import extract_adapters
from hubmerge.opening.locked_experts import open_pick, read_lock
from hubmerge.opening.moe_experts import MoeExperts
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.refs import ModelRef
from hubmerge.source import Source
from hubmerge.specs import MoeSpec, validate_spec
from hubmerge.tasks.task import Task
from hubmerge.weights.adapter_match import match_adapter


@dataclass(frozen=True)
class LockedMoe:
    """The inputs of a mixture of experts from one pick of a lock; `tasks` are ids.

    `data` is the lock file, `notes` state what has changed since.
    """

    experts: MoeExperts
    moe_spec: MoeSpec
    tasks: tuple[str, ...]
    data: bytes
    notes: tuple[str, ...]


def moe_params(moe_spec: MoeSpec, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that decides a mixture besides base and experts, as in manifests and locks."""
    return {**moe_spec.settings, "tasks": tuple(task.id for task in tasks)}


def parse_moe_params(params: Mapping[str, Any], where: str) -> MoeSpec:
    """The options in the parameters of a lock; raises UsageError with all problems."""
    return validate_spec(MoeSpec, {n: value for n, value in params.items() if n != "tasks"}, where)


def match_experts(
    base: tuple[OpenedModel, Source],
    models: Sequence[OpenedModel],
    sources: Sequence[Source],
    rank: int | None,
    extracted: Path,
) -> MoeExperts:
    """Check adapters against their base and each other; base and experts come with their sources.

    With `rank`, full experts become adapters in folders of `extracted`. Raises CheckpointError, for
    all of them at once, for adapters that do not fit.
    """
    opened_base, base_source = base
    experts, notes = tuple(models), tuple[str, ...]()
    if rank is not None:
        experts, notes = extract_adapters(models, opened_base, rank, extracted)
    labels = [model.revision.label for model in experts]
    matched = {
        label: match_adapter(opened_base.checkpoint, model.checkpoint, label)
        for label, model in zip(labels, experts, strict=True)
    }
    mismatches = [pair for _, problems in matched.values() for pair in problems]
    hints = " ".join(dict.fromkeys(hint for _, hint in mismatches))
    raise_together(CheckpointError, [problem for problem, _ in mismatches], hints)
    adapters = {label: adapter for label, (adapter, _) in matched.items()}
    check_experts(adapters)
    return MoeExperts(
        base=opened_base,
        models=experts,
        adapters=tuple(adapters.values()),
        base_source=base_source,
        sources=tuple(sources),
        notes=notes,
    )


def open_locked_moe(
    hub: Hub, path: Path, policy: str | None, strict: bool, base: ModelRef | None, extracted: Path
) -> LockedMoe:
    """Open the inputs of a mixture of experts from a pick of a lock file, as open_locked_merge.

    Full experts become adapters in folders of `extracted`, if the lock sets a rank. Raises
    CheckpointError for experts that do not fit.
    """
    data, lock = read_lock(path)
    if not lock.is_moe:
        raise UsageError(
            f"{path} is for {lock.method}.", f"Write `{lock.build_command(str(path))}`."
        )
    moe_spec = parse_moe_params(lock.pick(policy).params, str(path))
    opened = open_pick(hub, lock, policy, strict, base)
    experts = match_experts(
        base=(opened.base, lock.base.source),
        models=opened.experts,
        sources=opened.pick.experts,
        rank=moe_spec.extract_rank,
        extracted=extracted,
    )
    return LockedMoe(experts, moe_spec, tuple(t.id for t in lock.tasks), data, opened.notes)
