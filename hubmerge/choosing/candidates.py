"""From repositories to what can be chosen from: their steps, by the task each was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from hubmerge.errors import DataError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import find_steps, list_steps
from hubmerge.manifest import Source
from hubmerge.opening.bases import common_base
from hubmerge.opening.merge_inputs import check_bases, check_experts
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.references import open_pinned, pin, pin_revision, pin_task, source_of
from hubmerge.opening.trained_tasks import own_tasks
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision
from hubmerge.selection.pool import Candidate, Pool
from hubmerge.tasks.task import Task

_AT_ONCE = 8
_SURE_ENOUGH = 0.5  # as for a step that is asked for by its number


@dataclass(frozen=True)
class Gathered:
    """A pool, its base opened, and `open`, which fetches and opens a candidate by its key."""

    pool: Pool
    base: Opened
    open: Callable[[str], Opened]


def gather(
    hub: Hub,
    refs: Sequence[ModelRef],
    tasks: Sequence[Task],
    base: ModelRef | None,
    progress: Progress,
) -> Gathered:
    """Pin every step of every repository and find base and tasks; no expert's weights are fetched.

    A repository named with a revision stands for that alone. Without `tasks`, they are those that
    manifests name; else each repository's is the one of that id, or the one in its place. Raises
    UsageError, NotOnHub, IntegrityError or DataError.
    """
    found: dict[ModelRef, list[Pinned]] = {}
    for done, ref in enumerate(refs):
        progress(f"steps of {ref}", done, len(refs))
        found[ref] = _pinned(hub, ref, progress)
    everyone = [one for its in found.values() for one in its]
    check_experts(everyone)
    opened_base = open_pinned(hub, pin(hub, base or common_base(hub, everyone)))
    check_bases(everyone, opened_base)
    by_task: dict[str, list[Candidate]] = {}
    known: dict[str, Task] = {}
    pinned: dict[str, Pinned] = {}
    tasks_of = _tasks(hub, found, [pin_task(hub, task) for task in tasks])
    for ref, its in found.items():
        task = tasks_of[ref]
        known[task.id] = task
        last = its[-1].revision
        for one in its:
            candidate = _candidate(one, task, last)
            by_task.setdefault(task.id, []).append(candidate)
            pinned[candidate.source.key] = one
    _check_metrics(list(known.values()))

    @cache
    def opened(key: str) -> Opened:
        return open_pinned(hub, pinned[key])

    pool = Pool(
        base=source_of(opened_base),
        base_checkpoint=opened_base.checkpoint,
        tasks=tuple(known.values()),
        candidates=tuple(_distinct(by_task[task]) for task in known),
        open=lambda candidate: opened(candidate.source.key).checkpoint,
    )
    return Gathered(pool, opened_base, opened)


def _pinned(hub: Hub, ref: ModelRef, progress: Progress) -> list[Pinned]:
    """The steps of a repository, rising; one that has none or is named with a revision, alone."""
    if ref.repo_id is None:
        raise UsageError(f"{ref} is a folder.", "Choose among steps of repositories: owner/name.")
    steps = () if ref.revision or ref.subfolder else _steps(hub, ref.repo_id, progress)
    if not steps:
        return [pin(hub, ref)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda step: pin_revision(hub, step), steps))
    return sorted(found, key=lambda one: one.revision.step or 0)


def _steps(hub: Hub, repo_id: str, progress: Progress) -> list[Revision]:
    """The steps by their names; in a repository that names none, those that its history shows."""
    steps = list_steps(hub, repo_id) or find_steps(hub, repo_id, progress)
    return [one for one in steps if one.step is not None and one.confidence >= _SURE_ENOUGH]


def _tasks(
    hub: Hub, found: Mapping[ModelRef, Sequence[Pinned]], named: Sequence[Task]
) -> dict[ModelRef, Task]:
    """The task of each repository: the one its manifests name, or the one in its place."""
    if not named:
        return {ref: own_tasks(hub, its[-1])[0] for ref, its in found.items()}
    tasks = {}
    for place, (ref, its) in enumerate(found.items()):
        same = [task for task in named if task.id in _said(ref, its)]
        if not same and len(named) != len(found):
            raise UsageError(
                f"Which of the {len(named)} tasks {ref} is for, it does not say.",
                "Write --tasks with one task for each repository, in their order.",
            )
        tasks[ref] = same[0] if same else named[place]
    taken = {task.id for task in tasks.values()}
    if left := [task.name for task in named if task.id not in taken]:
        raise UsageError(
            f"No repository is for {', '.join(left)}: manifests name other tasks.",
            "Write --tasks in the order of the repositories.",
        )
    return tasks


def _said(ref: ModelRef, pinned: Sequence[Pinned]) -> set[str | None]:
    """The task that the manifests of a repository name."""
    said = {one.manifest.task for one in pinned if one.manifest}
    if len(said) > 1:
        raise DataError(f"{ref} holds experts of several tasks: {', '.join(map(str, said))}.")
    return said


def _candidate(pinned: Pinned, task: Task, last: Revision) -> Candidate:
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
    own = curve[-1].accuracy if curve and 0 <= curve[-1].accuracy <= 1 else None
    stopped = manifest is not None and manifest.training.get("stopped") == "early"
    return Candidate(source, own, stopped, curve)


def _distinct(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By rising step; of the same files under two names, the one that says more of itself."""
    found: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda one: (one.step, not one.stopped, one.source.label)):
        found.setdefault(one.source.digest or one.source.key, one)
    return tuple(found.values())


def _check_metrics(tasks: Sequence[Task]) -> None:
    strange = [task.name for task in tasks if task.spec.metric != "accuracy"]
    if strange:
        raise UsageError(
            f"{', '.join(strange)} is not measured by accuracy over rows, which selecting needs.",
            "Give it as a task of choices: `kind: rank`.",
        )
