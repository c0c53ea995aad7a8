"""The rows of a card's tables, task by task and expert by expert, as text not escaped yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.cards.card_input import CardInput
from hubmerge.cards.number_format import MISSING, percent, points
from hubmerge.manifest import Source
from hubmerge.scores import Score, shown_names

_TIES = 6


@dataclass(frozen=True)
class _Row:
    """An expert, the id of its task, and the model's score on it, as far as each is known."""

    expert: Source | None
    task: str
    score: Score | None


def task_rows(told: CardInput) -> list[dict[str, str]]:
    """One row per task: the base, the expert, the same of the last steps, and this one."""
    rows = _rows(told)
    names = _names(rows)
    last = {score.task: score for score in told.of_recipe(told.last_recipe)}
    return [
        {
            "task": names.get(row.task, MISSING),
            "base": _percent(_score_of(told, told.manifest.base, row.score)),
            "own": _percent(_score_of(told, row.expert, row.score)),
            "last": _percent(last.get(row.score.task) if row.score else None),
            "value": _percent(row.score),
            "gain": _gain(row.score, last),
            "count": str(row.score.count) if row.score else MISSING,
            "stderr": percent(row.score.stderr) if row.score else MISSING,
        }
        for row in rows
    ]


def normalised_rows(told: CardInput) -> list[dict[str, str]]:
    """Accuracy over the expert's own, task by task, and their mean; none unless all are known."""
    rows = _rows(told)
    names, shares = _names(rows), list[float]()
    for row in rows:
        own = _score_of(told, row.expert, row.score)
        if row.score is None or own is None or own.value == 0:
            return []
        shares.append(row.score.value / own.value)
    if not shares or told.mixed:
        return []
    named = [(names[row.task], share) for row, share in zip(rows, shares, strict=True)]
    named.append(("mean", math.fsum(shares) / len(shares)))
    return [{"task": name, "value": percent(share)} for name, share in named]


def expert_rows(told: CardInput) -> list[dict[str, str]]:
    """One row per expert: repository, step, commit; and where a lock tells it, why this step.

    That is its own validation accuracy, that of the merge on its task, and the other steps with
    which the merge is as good within the noise.
    """
    rows = _rows(told)
    names = _names(rows)
    return [
        {
            "task": names.get(row.task, MISSING),
            "expert": row.expert.name,
            "step": _step(row.expert),
            "sha": row.expert.sha,
            **_evidence(told, row.expert, task or ""),
        }
        for row, task in zip(rows, told.tasks, strict=False)
        if row.expert
    ]


def own_rows(told: CardInput) -> list[dict[str, str]]:
    """One row per task and split on which an expert was measured."""
    mine = [score for score in told.scores if score.model == told.manifest.digest]
    newest = {(score.task, score.split): score for score in mine}
    names = shown_names(task for task, _ in newest)
    return [
        {
            "task": f"{names[score.task]}, {score.split}",
            "value": percent(score.value),
            "count": str(score.count),
            "stderr": percent(score.stderr),
        }
        for score in newest.values()
    ]


def steps_words(experts: Sequence[Source], noun: str = "merge") -> str:
    """How many training steps the experts took, of how many; "" where one does not say."""
    if not experts or any(e.step is None or not e.last_step for e in experts):
        return ""
    used, whole = sum(e.step or 0 for e in experts), sum(e.last_step or 0 for e in experts)
    if used >= whole:
        return f"It is made of the experts' last steps, {used} training steps in all."
    taken = "The experts as merged" if noun == "merge" else "The experts that it starts from"
    return (
        f"{taken} took {used} training steps, and {whole} up to their last ones: "
        f"{percent(1 - used / whole)} % of the training was not needed for this {noun}. What a "
        "step costs is not recorded, so no amount of compute is claimed."
    )


def _rows(told: CardInput) -> list[_Row]:
    """A row for each expert, then one for each score that belongs to none of them."""
    left = {score.task: score for score in told.own}
    rows = []
    for expert, task in zip(told.manifest.experts, told.tasks, strict=True):
        measured = _measured_task(task, told.tasks, left)
        score = left.pop(measured) if measured else None
        rows.append(_Row(expert, score.task if score else task or "", score))
    return rows + [_Row(None, score.task, score) for score in left.values()]


def _measured_task(
    task: str | None, tasks: Sequence[str | None], measured: Mapping[str, Score]
) -> str | None:
    """The expert's own task, or another version of it where its name can mean no other expert's."""
    if task is None or task in measured:
        return task
    if len({other for other in tasks if _name(other) == _name(task)}) > 1:
        return None
    return next((found for found in measured if _name(found) == _name(task)), None)


def _name(task: str | None) -> str:
    return (task or "").partition("@")[0]


def _names(rows: Iterable[_Row]) -> dict[str, str]:
    return shown_names(row.task for row in rows if row.task)


def _score_of(told: CardInput, source: Source | None, like: Score | None) -> Score | None:
    """The score of another model on the same task and split."""
    if source is None or like is None:
        return None
    wanted = (source.digest, like.task, like.split)
    found = (s for s in told.scores if (s.model, s.task, s.split) == wanted)
    return next(found, None)


def _percent(score: Score | None) -> str:
    return percent(score.value) if score else MISSING


def _gain(score: Score | None, last: Mapping[str, Score]) -> str:
    if score is None or score.task not in last:
        return MISSING
    return points(score.value - last[score.task].value)


def _step(expert: Source) -> str:
    """The step that was chosen, and of how many."""
    if expert.step is None:
        return MISSING
    return f"{expert.step} of {expert.last_step}" if expert.last_step else str(expert.step)


def _evidence(told: CardInput, expert: Source, task: str) -> dict[str, str]:
    swaps = told.lock.swaps.get(task, ()) if told.lock and told.pick else ()
    chosen = next((s for s in swaps if (s.sha, s.label) == (expert.sha, expert.label)), None)
    ties = [str(swap.step) for swap in swaps if swap.tied and swap is not chosen]
    more = ["..."] if len(ties) > _TIES else []
    merged = told.pick.tasks.get(task) if told.pick else None
    return {
        "own": percent(chosen.own) if chosen and chosen.own is not None else MISSING,
        "merged": percent(merged) if merged is not None else MISSING,
        "ties": ", ".join([*ties[:_TIES], *more]) or MISSING,
    }
