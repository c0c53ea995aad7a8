"""The numbers of a card's tables, looked up among scores and written as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hubmerge.manifest import Manifest, Source, last_recipe
from hubmerge.scores import Score, shown_names, upcycling

MISSING = "-"


def percent(value: float) -> str:
    """A share as percent with two digits: 0.6855 -> "68.55"."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference of shares with its sign: 0.02 -> "+2.00"."""
    return f"{100 * value:+.2f}"


def summary_rows(
    manifest: Manifest, own: Sequence[Score], scores: Sequence[Score], split: str
) -> list[dict[str, str]]:
    """The merge beside what it must beat: the same merge of the last steps, and the base.

    Each row has name, value, stderr, and for the rivals `gain` (of the merge over it) and `versus`.
    Rivals that were not scored on the same tasks are left out; there are no rows at all where the
    tasks have no mean.
    """
    score = upcycling(own)
    if score is None or manifest.kind != "merge":
        return []
    rows = [_summary("**this merge**", own, None, "")]
    for name, versus, rival in _rivals(manifest, own, scores, split):
        rows.append(_summary(name, rival, score.value, versus))
    return rows


def merge_rows(
    manifest: Manifest, own: Sequence[Score], scores: Sequence[Score]
) -> list[dict[str, str]]:
    """One row per task: its expert, the step chosen, and three accuracies."""
    left = {score.task: score for score in own}
    pairs: list[tuple[Source | None, Score | None]] = []
    for expert in manifest.experts:
        task = _measured_task(expert, manifest.experts, left)
        pairs.append((expert, left.pop(task) if task else None))
    pairs += [(None, score) for score in left.values()]
    names = shown_names(task for pair in pairs if (task := _task(*pair)))
    return [
        {"task": names.get(_task(*pair)) or MISSING, **_merge_row(*pair, manifest, scores)}
        for pair in pairs
    ]


def _measured_task(
    expert: Source, experts: Sequence[Source], measured: Mapping[str, Score]
) -> str | None:
    """The expert's own task, or another version of it where its name can mean no other expert's."""
    if expert.task in measured:
        return expert.task
    if len({other.task for other in experts if other.task_name == expert.task_name}) > 1:
        return None
    return next((t for t, score in measured.items() if score.task_name == expert.task_name), None)


def _task(expert: Source | None, score: Score | None) -> str:
    """The id of the task that a row is about, "" where nothing is known of it."""
    if score:
        return score.task
    return (expert.task if expert else None) or ""


def _rivals(
    manifest: Manifest, own: Sequence[Score], scores: Sequence[Score], split: str
) -> list[tuple[str, str, list[Score]]]:
    last, base = last_recipe(manifest), manifest.base.digest
    found = [
        ("same merge of the last steps", "against merging the last steps", "recipe", last),
        ("base, zero-shot", "against the base", "model", base),
    ]
    wanted = {(score.task, score.metric) for score in own}
    rivals = []
    for name, versus, key, value in found:
        theirs = (s for s in scores if value and getattr(s, key) == value and s.split == split)
        same = list({s.task: s for s in theirs if (s.task, s.metric) in wanted}.values())
        if len(same) == len(own) and value != manifest.recipe:
            rivals.append((name, versus, same))
    return rivals


def _summary(name: str, scores: Sequence[Score], ours: float | None, versus: str) -> dict[str, str]:
    score = upcycling(scores)
    assert score is not None
    gain = points(ours - score.value) if ours is not None else ""
    return {
        "name": name,
        "value": percent(score.value),
        "stderr": percent(score.stderr),
        "gain": gain,
        "versus": versus,
    }


def _merge_row(
    expert: Source | None, score: Score | None, manifest: Manifest, scores: Sequence[Score]
) -> dict[str, str]:
    return {
        "expert": expert.name if expert else MISSING,
        "step": _step(expert) if expert else MISSING,
        "sha": expert.sha[:12] if expert else MISSING,
        "own": _accuracy_of(expert.digest if expert else None, score, scores),
        "base": _accuracy_of(manifest.base.digest, score, scores),
        "value": percent(score.value) if score else MISSING,
        "count": str(score.count) if score else MISSING,
        "stderr": percent(score.stderr) if score else MISSING,
    }


def _step(expert: Source) -> str:
    """The step that was chosen, and of how many."""
    if expert.step is None:
        return MISSING
    return f"{expert.step} of {expert.last_step}" if expert.last_step else str(expert.step)


def _accuracy_of(digest: str | None, like: Score | None, scores: Sequence[Score]) -> str:
    for score in scores:
        if like and score.model == digest and (score.task, score.split) == (like.task, like.split):
            return percent(score.value)
    return MISSING
