"""The numbers of a card's tables, looked up among scores and written as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from hubmerge.manifest import Manifest, Source, last_recipe
from hubmerge.scores import Score, by_task, upcycling

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
    Rivals that were not scored on the same tasks are left out.
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
    left = by_task(own)
    rows = []
    for expert in manifest.experts:
        score = left.pop(expert.task_name or "", None)
        rows.append(_merge_row(expert, score, manifest, scores))
    return rows + [_merge_row(None, score, manifest, scores) for score in left.values()]


def _rivals(
    manifest: Manifest, own: Sequence[Score], scores: Sequence[Score], split: str
) -> list[tuple[str, str, list[Score]]]:
    last, base = last_recipe(manifest), manifest.base.digest
    found = [
        ("same merge of the last steps", "against merging the last steps", "recipe", last),
        ("base, zero-shot", "against the base", "model", base),
    ]
    rivals = []
    for name, versus, key, value in found:
        theirs = (s for s in scores if value and getattr(s, key) == value and s.split == split)
        same = list(by_task(s for s in theirs if s.task in {o.task for o in own}).values())
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
        "task": score.task_name if score else (expert.task_name if expert else None) or MISSING,
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
