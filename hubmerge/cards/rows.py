"""The rows of a card's tables, one per task or expert; their text is not escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.cards.card_input import CardInput
from hubmerge.cards.number_format import MISSING, percent, points
from hubmerge.scores import Score, display_names
from hubmerge.source import Source

_MOST_TIES = 6


@dataclass(frozen=True)
class _Row:
    """An expert, the id of its task (empty if unknown), and the model's score on it."""

    expert: Source | None
    task: str
    score: Score | None


def task_rows(card_input: CardInput) -> list[dict[str, str]]:
    """One row per task: scores of the base, the expert, the model of last steps, and this model."""
    rows, base = _rows(card_input), card_input.manifest.base
    names = _shown_task_names(rows)
    last = {score.task: score for score in card_input.scores_of_recipe(card_input.last_recipe)}
    return [
        {
            "task": names.get(row.task, MISSING),
            "base": _percent(_find_score(card_input, base, row.score)),
            "own": _percent(_find_score(card_input, row.expert, row.score)),
            "last": _percent(last.get(row.score.task) if row.score else None),
            "value": _percent(row.score),
            "gain": _gain(row.score, last),
            "count": str(row.score.count) if row.score else MISSING,
            "stderr": percent(row.score.stderr) if row.score else MISSING,
        }
        for row in rows
    ]


def normalised_rows(card_input: CardInput) -> list[dict[str, str]]:
    """Accuracy divided by the expert's, per task, and its mean; empty unless all are known."""
    rows = _rows(card_input)
    names, shares = _shown_task_names(rows), list[float]()
    for row in rows:
        own = _find_score(card_input, row.expert, row.score)
        if row.score is None or own is None or own.value == 0:
            return []
        shares.append(row.score.value / own.value)
    if not shares or card_input.has_mixed_metrics:
        return []
    named = [(names[row.task], share) for row, share in zip(rows, shares, strict=True)]
    named.append(("mean", math.fsum(shares) / len(shares)))
    return [{"task": name, "value": percent(share)} for name, share in named]


def expert_rows(card_input: CardInput) -> list[dict[str, str]]:
    """One row per expert: repository, step, commit; with a lock also the reasons for the step.

    The reasons are its own validation accuracy, that of the merge on its task, and the other steps
    with which the merge is as good within the noise.
    """
    rows = _rows(card_input)
    names = _shown_task_names(rows)
    return [
        {
            "task": names.get(row.task, MISSING),
            "expert": row.expert.name,
            "step": _format_step(row.expert),
            "sha": row.expert.sha,
            **_lock_columns(card_input, row.expert, task or ""),
        }
        for row, task in zip(rows, card_input.task_ids, strict=False)
        if row.expert
    ]


def unscored_experts(card_input: CardInput) -> list[tuple[Source, Score]]:
    """The experts that were not scored on their own tasks, with the model's score there."""
    return [
        (row.expert, row.score)
        for row in _rows(card_input)
        if row.expert and row.score and _find_score(card_input, row.expert, row.score) is None
    ]


def expert_score_rows(card_input: CardInput) -> list[dict[str, str]]:
    """One row per task, split and metric on which an expert was scored.

    Shares are in percent, other numbers as they are.
    """
    digest = card_input.manifest.digest
    newest = {(s.task, s.split): s for s in card_input.scores if s.model == digest}
    names = display_names(_task_without_metric(score) for score in newest.values())
    return [
        {
            "task": f"{names[_task_without_metric(score)]}, {score.split}",
            "metric": score.metric_title,
            "value": percent(score.value) if score.is_share else f"{score.value:.4g}",
            "count": str(score.count),
            "stderr": percent(score.stderr) if score.is_share else f"{score.stderr:.2g}",
        }
        for score in newest.values()
    ]


def _task_without_metric(score: Score) -> str:
    """The id of a score's task, as in its definition: a chosen metric follows it after a plus."""
    return score.task.partition("+")[0]


def describe_training_steps(experts: Sequence[Source], noun: str = "merge") -> str:
    """A sentence on the experts' training steps, used and in all; "" if a number is unknown."""
    if not experts or any(e.step is None or not e.last_step for e in experts):
        return ""
    used, total = sum(e.step or 0 for e in experts), sum(e.last_step or 0 for e in experts)
    if used >= total:
        what = "means of steps up to the last" if any(e.averaged for e in experts) else "last steps"
        return f"It is made of the experts' {what}, {used} training steps in all."
    subject = "The merged experts" if noun == "merge" else "The experts that it starts from"
    return (
        f"{subject} took {used} training steps, and {total} up to their last ones: "
        f"{percent(1 - used / total)} % of the training was not needed for this {noun}. The cost "
        "of a step is not recorded, so no amount of compute is claimed."
    )


def _rows(card_input: CardInput) -> list[_Row]:
    """A row for each expert, then one for each score on another task."""
    unused = {score.task: score for score in card_input.own_scores}
    rows = []
    for expert, task in zip(card_input.manifest.experts, card_input.task_ids, strict=True):
        measured = _measured_task(task, card_input.task_ids, unused)
        score = unused.pop(measured) if measured else None
        rows.append(_Row(expert, score.task if score else task or "", score))
    return rows + [_Row(None, score.task, score) for score in unused.values()]


def _measured_task(
    task: str | None, tasks: Sequence[str | None], measured: Mapping[str, Score]
) -> str | None:
    """The expert's task, or another version of it if no other expert has a task of that name."""
    if task is None or task in measured:
        return task
    if len({other for other in tasks if _task_name(other) == _task_name(task)}) > 1:
        return None
    return next((other for other in measured if _task_name(other) == _task_name(task)), None)


def _task_name(task: str | None) -> str:
    return (task or "").partition("@")[0]


def _shown_task_names(rows: Iterable[_Row]) -> dict[str, str]:
    return display_names(row.task for row in rows if row.task)


def _find_score(card_input: CardInput, source: Source | None, like: Score | None) -> Score | None:
    """The score of another model on the same task and split."""
    if source is None or like is None:
        return None
    wanted = (source.digest, like.task, like.split)
    return next((s for s in card_input.scores if (s.model, s.task, s.split) == wanted), None)


def _percent(score: Score | None) -> str:
    return percent(score.value) if score else MISSING


def _gain(score: Score | None, last: Mapping[str, Score]) -> str:
    if score is None or score.task not in last:
        return MISSING
    return points(score.value - last[score.task].value)


def _format_step(expert: Source) -> str:
    """The expert's step, or those that are averaged, and the last one of its run: "4 of 8"."""
    if expert.step is None:
        return MISSING
    steps = expert.steps_text  # those of a mean
    return f"{steps} of {expert.last_step}" if expert.last_step else steps


def _lock_columns(card_input: CardInput, expert: Source, task: str) -> dict[str, str]:
    """Accuracies of the expert and of the merge with it, and other steps that are as good."""
    swaps = card_input.lock.swaps.get(task, ()) if card_input.lock and card_input.pick else ()
    chosen = next((s for s in swaps if (s.sha, s.label) == (expert.sha, expert.label)), None)
    ties = [str(swap.step) for swap in swaps if swap.tied and swap is not chosen]
    more = ["..."] if len(ties) > _MOST_TIES else []
    merged = card_input.pick.tasks.get(task) if card_input.pick else None
    return {
        "own": percent(chosen.own) if chosen and chosen.own is not None else MISSING,
        "merged": percent(merged) if merged is not None else MISSING,
        "ties": ", ".join([*ties[:_MOST_TIES], *more]) or MISSING,
    }
