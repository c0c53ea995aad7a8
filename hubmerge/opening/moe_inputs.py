"""What a mixture is made of, at hand: checkpoints as its experts, parameters as its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.manifest import Source
from hubmerge.moerging.experts import check_experts
from hubmerge.opening.extracted_adapters import as_adapters
from hubmerge.opening.locked_experts import open_pick, read
from hubmerge.opening.moe_experts import Experts
from hubmerge.opening.opened_model import Opened
from hubmerge.refs import ModelRef
from hubmerge.specs import MoeSpec, validated
from hubmerge.tasks.task import Task
from hubmerge.weights.adapter_match import match


@dataclass(frozen=True)
class LockedMixture:
    """What one pick of a lock says of a mixture, opened; `tasks` are ids, `data` is the lock.

    `notes` say what has changed since.
    """

    experts: Experts
    asked: MoeSpec
    tasks: tuple[str, ...]
    data: bytes
    notes: tuple[str, ...]


def params_of(asked: MoeSpec, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that decides a mixture beside base and experts, as manifests and locks hold it."""
    return {**asked.settings, "tasks": tuple(task.id for task in tasks)}


def asked_of(params: Mapping[str, Any], where: str) -> MoeSpec:
    """The options that parameters stand for; raises UsageError with all that is wrong with them."""
    return validated(MoeSpec, {n: value for n, value in params.items() if n != "tasks"}, where)


def experts_of(
    base: tuple[Opened, Source],
    opened: Sequence[Opened],
    sources: Sequence[Source],
    rank: int | None,
    extracted: Path,
) -> Experts:
    """Adapters held against their base and against each other; base and all with their sources.

    With `rank`, full experts become adapters in folders of `extracted`. Raises CheckpointError, for
    all of them at once, for adapters that do not fit.
    """
    found, base_source = base
    adapters, notes = tuple(opened), tuple[str, ...]()
    if rank is not None:
        adapters, notes = as_adapters(opened, found, rank, extracted)
    names = [one.revision.label for one in adapters]
    matched = {
        who: match(found.checkpoint, one.checkpoint, who)
        for who, one in zip(names, adapters, strict=True)
    }
    told = [pair for _, problems in matched.values() for pair in problems]
    hints = " ".join(dict.fromkeys(hint for _, hint in told))
    raise_together(CheckpointError, [problem for problem, _ in told], hints)
    by_name = {who: adapter for who, (adapter, _) in matched.items()}
    check_experts(by_name)
    return Experts(found, adapters, tuple(by_name.values()), base_source, tuple(sources), notes)


def open_mixture(
    hub: Hub, path: Path, policy: str | None, strict: bool, base: ModelRef | None, extracted: Path
) -> LockedMixture:
    """What one pick of a lock file mixes and how that is trained, as `open_lock`.

    Full experts become adapters in folders of `extracted`, if the lock says so. Raises
    CheckpointError for experts that do not fit.
    """
    data, lock = read(path)
    if not lock.is_mixture:
        raise UsageError(f"{path} is for {lock.method}.", f"Write `hubmerge merge --lock {path}`.")
    asked = asked_of(lock.pick(policy).params, str(path))
    found = open_pick(hub, lock, policy, strict, base)
    source = lock.base.source
    experts = experts_of(
        (found.base, source), found.experts, found.pick.experts, asked.extract_rank, extracted
    )
    return LockedMixture(experts, asked, tuple(t.id for t in lock.tasks), data, found.notes)
