"""What a merge or a mixture must beat, its gains over that, and commands that measure the rest."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubmerge.cards.card_input import LAST, UNIFORM, CardInput
from hubmerge.cards.number_format import HALF, interval, percent, points
from hubmerge.cards.plain_merge import plain_merges
from hubmerge.lock import NAME as LOCK
from hubmerge.manifest import Manifest, Source
from hubmerge.scores import Score, Upcycling, upcycling

_SHARES = ("weight", "keep", "intruders")
_SHOWN = ("scale", "density")
# The rival made of the last steps, and how a gain over it is worded.
_LAST_WORDS = {
    "merge": ("same merge of the last steps", "against merging the last steps"),
    "mixture": ("same mixture from the last steps", "against the mixture from the last steps"),
}


@dataclass(frozen=True)
class Rival:
    """A model beside this one: its name, how a gain over it is worded, its scores.

    Without scores on the same tasks there is no gain, and `todo` are the commands that measure it.
    """

    name: str
    versus: str
    scores: Sequence[Score]
    todo: tuple[str, ...]


def summary_rows(told: CardInput) -> list[dict[str, str]]:
    """The model and its rivals, with 95 % intervals, and how much it gains over each.

    Each row has name, value, interval, gain, gained (the interval of the gain) and versus; there
    are none where the tasks have no mean.
    """
    ours = upcycling(told.own)
    if ours is None or told.manifest.is_expert:
        return []
    rows = [_summary(f"**this {told.manifest.noun}**", ours)]
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
    if not told.own and told.manifest.is_moe:
        return ["hubmerge eval REPO@TAG", "hubmerge card REPO@TAG --push REPO"]
    if not told.own or told.manifest.is_expert:
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
    """The same of the last steps and of the best common step, plain merges of a mixture, the base.

    None is the model itself, or named twice.
    """
    noun = told.manifest.noun
    own, last, uniform = told.manifest.recipe, told.last_recipe, told.uniform_recipe
    if last not in (None, own):
        name, versus = _LAST_WORDS[noun]
        yield Rival(name, versus, told.of_recipe(last), _last(told))
    name, versus = f"same {noun} of the best common step", "against the best common step"
    if told.lock is None:
        yield Rival(name, versus, (), _selecting(told))
    elif uniform not in (None, own, last):
        yield Rival(name, versus, told.of_recipe(uniform), _picked(told, UNIFORM))
    if told.manifest.is_moe:
        yield from _plain_merges(told)
    base = told.manifest.base
    scores = told.of_model(base.digest)
    yield Rival("base", "against the base", scores, (_measuring(told, _pinned(base)),))


def _plain_merges(told: CardInput) -> Iterator[Rival]:
    """Those that were scored, else the one that asks for no choice of parameters."""
    found = plain_merges(told)
    for merge in found:
        known = [name for name in _SHOWN if name in merge.params]
        said = ", ".join(f"{name} {merge.params[name]:g}" for name in known)
        name = f"{merge.method} merge of the same experts"
        yield Rival(f"{name}, {said}" if said else name, f"against a {name}", merge.scores, ())
    if not found:
        words = [_pinned(expert) for expert in told.manifest.experts]
        yield Rival("merge", "", (), _making(told, "merge", [*words, "--method", "ties"], "plain"))


def _pinned(expert: Source) -> str:
    return expert.name if expert.is_local else f"{expert.name}@{expert.sha[:12]}"


def _last(told: CardInput) -> tuple[str, ...]:
    if told.policy(LAST):
        return _picked(told, LAST)
    manifest = told.manifest
    labels = [f"{expert.name}@{(expert.last_sha or '')[:12]}" for expert in manifest.experts]
    if manifest.is_moe:
        return _renamed(told, labels)
    return _making(told, "merge", [*labels, *_merge_options(manifest)], LAST)


def _merge_options(manifest: Manifest) -> list[str]:
    settings = {name: str(value) for name, value in manifest.params.items() if name != "dtype"}
    for share in _SHARES:
        numbers = [getattr(expert, share) for expert in manifest.experts]
        if set(numbers) != {1.0}:
            settings[share] = ",".join(f"{number:.12g}" for number in numbers)
    words = ["--method", str(manifest.method)]
    for name, value in sorted(settings.items()):
        words += ["--set", f"{name}={value}"]
    if dtype := manifest.params.get("dtype"):
        words += ["--dtype", str(dtype)]
    return words


def _renamed(told: CardInput, labels: Sequence[str]) -> tuple[str, ...]:
    """The mixture's own command with other experts; none where it does not name its own.

    It is not told from the parameters: only the command has the words that named the tasks.
    """
    manifest = told.manifest
    others = {expert.label: label for expert, label in zip(manifest.experts, labels, strict=True)}
    try:
        words = shlex.split(manifest.command)
    except ValueError:
        return ()
    if not others.keys() <= set(words):
        return ()
    out = f"./{LAST}-mixture"
    renamed = [others.get(word, word) for word in words]
    return shlex.join([*renamed, "--out", out]), _measuring(told, out)


def _picked(told: CardInput, policy: str) -> tuple[str, ...]:
    verb = "moerge" if told.manifest.is_moe else "merge"
    return _making(told, verb, ["--lock", LOCK, "--policy", policy], policy)


def _making(told: CardInput, verb: str, words: Sequence[str], name: str) -> tuple[str, ...]:
    out = f"./{name}-{'mixture' if verb == 'moerge' else 'merge'}"
    return shlex.join(["hubmerge", verb, *words, "--out", out]), _measuring(told, out)


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
