"""What a merge must beat, its gains over that, and the commands that measure what is not yet."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubmerge.cards.numbers import HALF, interval, percent, points
from hubmerge.cards.told import LAST, UNIFORM, CardInput
from hubmerge.lock import NAME as LOCK
from hubmerge.scores import Score, Upcycling, upcycling

_SHARES = ("weight", "keep", "intruders")


@dataclass(frozen=True)
class Rival:
    """A model beside the merge: its name, how a gain over it is worded, its scores.

    Without scores on the same tasks there is no gain, and `todo` are the commands that measure it.
    """

    name: str
    versus: str
    scores: Sequence[Score]
    todo: tuple[str, ...]


def summary_rows(told: CardInput) -> list[dict[str, str]]:
    """The merge and its rivals, with 95 % intervals, and how much it gains over each.

    Each row has name, value, interval, gain, gained (the interval of the gain) and versus; there
    are none where the tasks have no mean.
    """
    ours = upcycling(told.own)
    if ours is None or told.manifest.kind != "merge":
        return []
    rows = [_summary("**this merge**", ours)]
    for rival in _rivals(told):
        if theirs := upcycling(rival.scores):
            gain = ours.value - theirs.value
            half = HALF * math.hypot(ours.stderr, theirs.stderr)
            rows.append({
                **_summary(rival.name, theirs),
                "versus": rival.versus,
                "gain": points(gain),
                "gained": f"{points(gain - half)} to {points(gain + half)}",
            })  # fmt: skip
    return rows


def todo(told: CardInput) -> list[str]:
    """The commands that measure the rivals which were not measured on the same tasks."""
    if not told.own or told.manifest.kind != "merge":
        return []
    return [line for rival in _rivals(told) if not rival.scores for line in rival.todo]


def _summary(name: str, score: Upcycling) -> dict[str, str]:
    return {
        "name": name,
        "value": percent(score.value),
        "interval": interval(score.value, score.stderr),
        "versus": "",
        "gain": "",
        "gained": "",
    }


def _rivals(told: CardInput) -> Iterator[Rival]:
    """The same merge of the last steps and of the best common step, and the base.

    None is the merge itself, or named twice.
    """
    own, last, uniform = told.manifest.recipe, told.last_recipe, told.uniform_recipe
    if last not in (None, own):
        name, versus = "same merge of the last steps", "against merging the last steps"
        yield Rival(name, versus, told.of_recipe(last), _last_merge(told))
    name, versus = "same merge of the best common step", "against the best common step"
    if told.lock is None:
        yield Rival(name, versus, (), _selecting(told))
    elif uniform not in (None, own, last):
        yield Rival(name, versus, told.of_recipe(uniform), _picked_merge(told, UNIFORM))
    base = told.manifest.base
    where = base.name if base.is_local else f"{base.name}@{base.sha[:12]}"
    scores = told.of_model(base.digest)
    yield Rival("base", "against the base", scores, (_measuring(told, where),))


def _last_merge(told: CardInput) -> tuple[str, ...]:
    if told.policy(LAST):
        return _picked_merge(told, LAST)
    manifest = told.manifest
    labels = [f"{expert.name}@{(expert.last_sha or '')[:12]}" for expert in manifest.experts]
    settings = {name: str(value) for name, value in manifest.params.items() if name != "dtype"}
    for share in _SHARES:
        numbers = [getattr(expert, share) for expert in manifest.experts]
        if set(numbers) != {1.0}:
            settings[share] = ",".join(f"{number:.12g}" for number in numbers)
    words = [*labels, "--method", str(manifest.method)]
    for name, value in sorted(settings.items()):
        words += ["--set", f"{name}={value}"]
    if dtype := manifest.params.get("dtype"):
        words += ["--dtype", str(dtype)]
    return _merge(told, words, LAST)


def _picked_merge(told: CardInput, policy: str) -> tuple[str, ...]:
    return _merge(told, ["--lock", LOCK, "--policy", policy], policy)


def _merge(told: CardInput, words: Sequence[str], policy: str) -> tuple[str, ...]:
    out = f"./{policy}-merge"
    return shlex.join(["hubmerge", "merge", *words, "--out", out]), _measuring(told, out)


def _selecting(told: CardInput) -> tuple[str, ...]:
    """Only a selection knows the best common step; it needs repositories."""
    experts = told.manifest.experts
    if any(expert.is_local for expert in experts):
        return ()
    repositories = dict.fromkeys(expert.name for expert in experts)
    return (
        shlex.join(["hubmerge", "select", *repositories, "--target", str(told.manifest.method)]),
    )


def _measuring(told: CardInput, model: str) -> str:
    tasks = ",".join(dict.fromkeys(score.task_name for score in told.own))
    return shlex.join(["hubmerge", "eval", model, "--tasks", tasks])
