"""hubmerge verify --evidence: measure the picks of a lock again, and compare the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest
from hubmerge.errors import IntegrityError, UsageError
from hubmerge.flows.check import Check
from hubmerge.flows.select import choice_from_lock, prepare_selection
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock, Pick
from hubmerge.opening.trained_tasks import find_recorded_lm_eval_task
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.source import Source
from hubmerge.tasks.chosen_metric import metric_of_id
from hubmerge.tasks.task import Task
from hubmerge.trials import SELECTION_SPLIT, Trial, TrialLog

# Sums are rounded in another way by another processor, which changes the answer on a few rows.
_SHARE, _ROWS = 0.01, 2


def check_evidence(
    hub: Hub,
    lock: Lock,
    tasks: Sequence[Task],
    scratch: Path,
    progress: Progress,
    device: str | None = None,
) -> list[Check]:
    """Measure every pick of a lock on its validation rows, and compare with its accuracies.

    A difference of up to two rows, or 1 % of the rows of a task, is the processor's. Cross-fitted
    gains and controls are not measured again, which takes the searches themselves. Nothing is
    read from the log of trials; `scratch` is an empty folder. Raises UsageError for a lock of a
    mixture or of a base in a folder, and as `hubmerge select` does.
    """
    if lock.is_moe:
        raise UsageError(
            "A mixture of experts must be trained before it is measured.",
            "Repeat the selection with the command in the lock.",
        )
    if lock.base.source.is_local:
        raise UsageError(
            f"The base of the lock was the folder {lock.base.source.name}.",
            "Repeat the selection with the command in the lock.",
        )
    experts = [expert for pick in lock.picks for expert in pick.experts]
    members = [member for expert in experts for member in expert.members]
    request = SelectRequest(
        repos=tuple(dict.fromkeys(map(_ref_of, members))),
        method=lock.method,
        tasks=tuple(task for task in tasks if task.lm_eval is None),
        base=_ref_of(lock.base.source),
        device=device,
        options=lock.options,
        metric=_metric_of(lock),
        assigned=_lm_eval_tasks(members),
    )
    prepared = prepare_selection(hub, request, progress)
    checks = [_check_rows(lock, prepared)]
    if checks[0].problem is None:
        checks += _check_picks(lock, prepared, TrialLog(scratch / "trials.jsonl"), progress)
    if lock.cross_fit is not None:
        checks.append(Check("gain", "not measured again: `hubmerge select` repeats its searches"))
    return checks


def _metric_of(lock: Lock) -> str | None:
    """The metric that was chosen for the tasks, if one was."""
    chosen = filter(None, (metric_of_id(task.id)[1] for task in lock.tasks))
    return next((metric.partition("#")[0] for metric in chosen), None)


def _lm_eval_tasks(members: Sequence[Source]) -> dict[ModelRef, Task]:
    """The tasks of lm_eval by the experts that the lock has for them: their manifests do not."""
    own_ids = {_ref_of(source): metric_of_id(source.task or "")[0] for source in members}
    tasks = {own_id: find_recorded_lm_eval_task(own_id) for own_id in own_ids.values()}
    return {ref: task for ref, own_id in own_ids.items() if (task := tasks[own_id])}


def _ref_of(source: Source) -> ModelRef:
    return ModelRef(source.name, revision=source.sha, subfolder=source.folder)


def _check_rows(lock: Lock, prepared: PreparedSelection) -> Check:
    now = {split.task.id: len(split.row_order) for split in prepared.splits}
    then = {task.id: task.rows for task in lock.tasks}
    problem = None
    if now != then:
        described = ", ".join(f"{task} {now.get(task, 0)} for {then[task]}" for task in then)
        problem = f"The tasks have other validation rows than the lock says: {described}."
    return Check("validation rows", str(sum(now.values())), problem)


def _check_picks(
    lock: Lock, prepared: PreparedSelection, log: TrialLog, progress: Progress
) -> Iterator[Check]:
    pool, method = prepared.pool, prepared.method
    evaluator = Evaluator(
        pool, MemoryMerger(pool, method), method, prepared.splits, log, SELECTION_SPLIT
    )
    for number, pick in enumerate(lock.picks):
        progress(f"measuring {pick.policy}", number, len(lock.picks))
        try:
            choice = choice_from_lock(pool, method, lock, pick.policy)
        except IntegrityError as error:
            yield Check(f"accuracy of {pick.policy}", "", error.message)
        else:
            yield _check_pick(pick, evaluator.measure(choice))


def _check_pick(pick: Pick, trial: Trial) -> Check:
    wrong = []
    for task, accuracy in pick.tasks.items():
        rows = trial.rows[task].count
        measured = trial.accuracies[task]
        if abs(measured - accuracy) * rows > max(_ROWS, _SHARE * rows) + 1e-6:
            wrong.append(
                f"{100 * measured:.2f} % on {task}, and the lock says {100 * accuracy:.2f}"
            )
    problem = f"Pick {pick.policy!r} has {'; '.join(wrong)}." if wrong else None
    return Check(f"accuracy of {pick.policy}", f"{100 * trial.accuracy:.2f} %", problem)
