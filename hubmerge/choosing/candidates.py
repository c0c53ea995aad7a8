"""From repositories to a pool of candidates: their steps, by the task each was trained for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType

from hubmerge.choosing.candidate_tasks import find_tasks, manifest_tasks
from hubmerge.errors import Failures, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import find_steps, list_steps
from hubmerge.manifest import Manifest
from hubmerge.opening.bases import check_origin, common_base
from hubmerge.opening.matched_inputs import match_alone
from hubmerge.opening.merge_inputs import check_bases, check_no_moe
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import open_pinned, pin, pin_revision, source_of
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.pool import Pool
from hubmerge.source import Source
from hubmerge.tasks.task import Task
from hubmerge.training_curve import Norms
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

_THREADS = 8
_NO_TASKS: Mapping[ModelRef, Task] = MappingProxyType({})
_MIN_CONFIDENCE = 0.5  # the same as for a step requested by its number


@dataclass(frozen=True)
class PinnedPool:
    """A pool before anything is opened, as plain values: other processes can open it again.

    `pinned` has the candidates by their key; `names_base` is true if the user named the base.
    """

    base: PinnedModel
    tasks: tuple[Task, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    pinned: Mapping[str, PinnedModel]
    options: MatchOptions
    names_base: bool


@dataclass(frozen=True)
class OpenedPool:
    """A pool and its opened base; `open` fetches and opens a candidate by its key."""

    pool: Pool
    base: OpenedModel
    open: Callable[[str], OpenedModel]
    pinned: PinnedPool


def open_pool(
    hub: Hub,
    refs: Sequence[ModelRef],
    tasks: Sequence[Task],
    base: ModelRef | None,
    progress: Progress,
    options: MatchOptions = DEFAULT_OPTIONS,
    metric: str | None = None,
    assigned: Mapping[ModelRef, Task] = _NO_TASKS,
) -> OpenedPool:
    """Pin every step of every repository and find base and tasks, without fetching expert weights.

    The last steps come first: what they show to be impossible is refused before all are pinned.
    A repository named with a revision contributes only that revision. Without `tasks`, the tasks
    are those that the manifests name; otherwise each repository gets the task with the id that its
    manifests name, or the task at the same position. `assigned` has the tasks of repositories for
    which this does not hold. `metric` is used instead of theirs. Raises UsageError, NotOnHub,
    IntegrityError or DataError.
    """
    task_of_ref = find_tasks(hub, _pin_last_steps(hub, refs), tasks, metric, assigned)
    pinned_by_ref = _pin_all(hub, refs, progress)
    all_pinned = [step for steps in pinned_by_ref.values() for step in steps]
    pinned_base = pin(hub, base or common_base(hub, all_pinned))
    opened_base = open_pinned(hub, pinned_base)
    check_bases(all_pinned, opened_base)
    by_task: dict[str, list[Candidate]] = {}
    pinned_by_key: dict[str, PinnedModel] = {}
    task_by_id = {task.id: task for task in task_of_ref.values()}
    for ref, steps in pinned_by_ref.items():
        task = task_by_id[task_of_ref[ref].id]
        for step in steps:
            norms = _recorded_norms(step, opened_base, options)
            candidate = _make_candidate(step, task, steps[-1].revision, norms)
            by_task.setdefault(task.id, []).append(candidate)
            pinned_by_key[candidate.source.key] = step
    pinned_pool = PinnedPool(
        base=pinned_base,
        tasks=tuple(task_by_id[task] for task in by_task),
        candidates=tuple(_drop_duplicates(candidates) for candidates in by_task.values()),
        pinned=pinned_by_key,
        options=options,
        names_base=base is not None,
    )
    return open_pinned_pool(hub, pinned_pool, opened_base)


def _pin_all(
    hub: Hub, refs: Sequence[ModelRef], progress: Progress
) -> dict[ModelRef, list[PinnedModel]]:
    """Every step of every repository."""
    failures = Failures()
    pinned_by_ref: dict[ModelRef, list[PinnedModel]] = {}
    for done, ref in enumerate(dict.fromkeys(refs)):
        progress(f"steps of {ref}", done, len(refs))
        pinned_by_ref[ref] = failures.run(partial(_pin_steps, hub, ref, progress)) or []
    failures.run(lambda: check_no_moe([s for steps in pinned_by_ref.values() for s in steps]))
    for ref, steps in pinned_by_ref.items():
        failures.run(partial(manifest_tasks, ref, steps))
    failures.raise_all()
    return pinned_by_ref


def open_pinned_pool(
    hub: Hub, pinned: PinnedPool, opened_base: OpenedModel | None = None
) -> OpenedPool:
    """Open the base of a pool; candidates are fetched and opened on first use."""
    base, options = opened_base or open_pinned(hub, pinned.base), pinned.options

    @cache
    def opened(key: str) -> OpenedModel:
        model = open_pinned(hub, pinned.pinned[key])
        check_origin(base, [model], is_named=pinned.names_base)
        return model

    @cache
    def matched(key: str) -> Checkpoint:
        model = opened(key)
        return match_alone(base.checkpoint, model.checkpoint, model.revision.label, options)

    @cache  # asked for every tensor of every merge
    def content_key(key: str) -> str:
        return opened(key).weights_digest

    pool = Pool(
        base=source_of(base),
        base_checkpoint=base.checkpoint,
        tasks=pinned.tasks,
        candidates=pinned.candidates,
        open=lambda candidate: matched(candidate.source.key),
        content_key=lambda candidate: content_key(candidate.source.key),
        options=options,
    )
    return OpenedPool(pool, base, opened, pinned)


def _pin_last_steps(hub: Hub, refs: Sequence[ModelRef]) -> dict[ModelRef, PinnedModel]:
    """The last step of each repository, of which none may be a mixture of experts."""
    failures = Failures()
    last_by_ref = {ref: failures.run(partial(_pin_last, hub, ref)) for ref in refs}
    lasts = {ref: last for ref, last in last_by_ref.items() if last is not None}
    failures.run(lambda: check_no_moe(list(lasts.values())))
    failures.raise_all()
    return lasts


def _pin_last(hub: Hub, ref: ModelRef) -> PinnedModel:
    """Pin the last step by name; what the reference itself means if no name is a step."""
    _check_is_repository(ref)
    steps = [] if ref.revision or ref.subfolder else _likely(list_steps(hub, str(ref.repo_id)))
    return pin_revision(hub, steps[-1]) if steps else pin(hub, ref)


def _check_is_repository(ref: ModelRef) -> None:
    if ref.repo_id is None:
        raise UsageError(
            f"{ref} is a folder; steps are selected from repositories.", "Write owner/name."
        )


def _pin_steps(hub: Hub, ref: ModelRef, progress: Progress) -> list[PinnedModel]:
    """Pin the steps of a repository in rising order.

    A reference with a revision, or to a repository without steps, gives one pinned model.
    """
    named = ref.revision or ref.subfolder
    steps = [] if named else _step_revisions(hub, str(ref.repo_id), progress)
    if not steps:
        return [pin(hub, ref)]
    with ThreadPoolExecutor(_THREADS) as pool:
        pinned = list(pool.map(lambda step: pin_revision(hub, step), steps))
    return sorted(pinned, key=lambda step: step.revision.step or 0)


def _step_revisions(hub: Hub, repo_id: str, progress: Progress) -> list[Revision]:
    """Find the steps by their names, or in the commit history if no name is a step."""
    return _likely(list_steps(hub, repo_id) or find_steps(hub, repo_id, progress))


def _likely(steps: Iterable[Revision]) -> list[Revision]:
    return [step for step in steps if step.step is not None and step.confidence >= _MIN_CONFIDENCE]


def _recorded_norms(pinned: PinnedModel, base: OpenedModel, options: MatchOptions) -> Norms | None:
    """The norms in a manifest, if they are of the task vector that is merged here."""
    manifest = pinned.manifest
    if manifest is None or options != DEFAULT_OPTIONS or manifest.base.digest != base.digest:
        return None
    return manifest.norms


def _make_candidate(
    pinned: PinnedModel, task: Task, last: Revision, norms: Norms | None
) -> Candidate:
    manifest = pinned.manifest
    curve = manifest.validation if manifest and manifest.task == task.id else ()
    source = Source(
        label=pinned.revision.label,
        sha=pinned.revision.sha,
        digest=manifest.digest if manifest else "",
        step=pinned.revision.step,
        task=task.id,
        last_step=last.step,
        last_sha=last.sha,
        folder=pinned.revision.ref.subfolder,
    )
    own_accuracy = manifest.own_accuracy if manifest and curve else None
    stopped_early = manifest is not None and manifest.training.get("stopped") == "early"
    seed = manifest.training.get("seed") if manifest else None
    return Candidate(
        source,
        own_accuracy,
        stopped_early,
        curve,
        norms,
        seed=seed if type(seed) is int else None,
        loss=_recorded_loss(manifest) if manifest else None,
    )


def _recorded_loss(manifest: Manifest) -> float | None:
    """The training loss at the step itself, whatever metric the curve has."""
    last = manifest.validation[-1] if manifest.validation else None
    return last.loss if last is not None and last.step == manifest.step else None


def _drop_duplicates(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Sort by step; of two names for the same files, keep the more informative one."""
    by_digest: dict[str, Candidate] = {}
    ordered = sorted(candidates, key=lambda c: (c.step, not c.stopped_early, c.source.label))
    for candidate in ordered:
        by_digest.setdefault(candidate.source.digest or candidate.source.key, candidate)
    return tuple(by_digest.values())
