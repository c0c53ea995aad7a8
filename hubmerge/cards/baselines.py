"""The baselines of a merge or a mixture, its gains over them, and commands for missing scores."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubmerge.cards.card_input import LAST, UNIFORM, CardInput
from hubmerge.cards.number_format import HALF, interval, percent, points
from hubmerge.cards.plain_merge import find_plain_merges
from hubmerge.cards.rows import unscored_experts
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.manifest import Manifest
from hubmerge.merging.registry import METHODS
from hubmerge.merging.settings import format_settings, with_unrecorded
from hubmerge.scores import Score, UpcyclingScore, upcycling
from hubmerge.source import Source
from hubmerge.tasks.chosen_metric import metric_of_id
from hubmerge.tasks.lm_eval_name import is_lm_eval
from hubmerge.tasks.lookup import catalog
from hubmerge.weights.match_options import split_options

_PER_EXPERT_OPTIONS = ("weight", "keep", "intruders")
_NAMED_PARAMS = ("scale", "density")
# The baseline made of the last steps: its name, and the phrase for a gain over it.
_LAST_STEPS_NAMES = {
    "merge": ("same merge of the last steps", "against merging the last steps"),
    "mixture": ("same mixture from the last steps", "against the mixture from the last steps"),
}


@dataclass(frozen=True)
class Baseline:
    """A model to compare with: its name, the phrase for a gain over it, and its scores.

    `scores` is empty unless it was scored on the same tasks; `commands` then produce the scores.
    """

    name: str
    gain_phrase: str
    scores: Sequence[Score]
    commands: tuple[str, ...]


def summary_rows(card_input: CardInput) -> list[dict[str, str]]:
    """The model and its baselines, with 95 % intervals, and its gain over each baseline.

    Each row has name, value, interval, gain, gain_interval and gain_phrase. There are no rows if
    the tasks have no mean.
    """
    ours = upcycling(card_input.own_scores)
    if ours is None or card_input.manifest.is_expert:
        return []
    rows = [_summary_row(f"**this {card_input.manifest.noun}**", ours)]
    for baseline in _baselines(card_input):
        if theirs := upcycling(baseline.scores):
            gain = ours.value - theirs.value
            half = HALF * math.hypot(ours.stderr, theirs.stderr)
            rows.append({
                **_summary_row(baseline.name, theirs),
                "gain_phrase": baseline.gain_phrase,
                "gain": points(gain),
                "gain_interval": f"{points(gain - half)} to {points(gain + half)}",
            })  # fmt: skip
    return rows


def missing_score_commands(card_input: CardInput) -> list[str]:
    """The commands that score the baselines not yet scored on the same tasks."""
    manifest = card_input.manifest
    if not card_input.own_scores and manifest.is_moe:
        return ["hubmerge eval REPO@TAG", "hubmerge card REPO@TAG --push REPO"]
    if not card_input.own_scores or manifest.is_expert:
        return []
    unscored = [baseline for baseline in _baselines(card_input) if not baseline.scores]
    commands = [command for baseline in unscored for command in baseline.commands]
    return commands + _expert_commands(card_input)


def _expert_commands(card_input: CardInput) -> list[str]:
    """The commands that score experts on their own tasks, which are those that they record."""
    commands = list[str]()
    for metric in dict.fromkeys(score.chosen_metric for score in card_input.own_scores):
        unscored = [e for e, score in unscored_experts(card_input) if score.chosen_metric == metric]
        if names := [_pinned_reference(expert) for expert in unscored]:
            chosen = ["--metric", metric] if metric else []
            commands.append(shlex.join(["hubmerge", "eval", *names, *chosen]))
    return commands


def _summary_row(name: str, score: UpcyclingScore) -> dict[str, str]:
    return {
        "name": name,
        "value": percent(score.value),
        "interval": interval(score.value, score.stderr),
        "gain_phrase": "",
        "gain": "",
        "gain_interval": "",
    }


def _baselines(card_input: CardInput) -> Iterator[Baseline]:
    """The same of the last steps, of the best common step, plain merges (of a mixture), the base.

    A baseline that is the model itself, or the same as an earlier one, is left out.
    """
    manifest = card_input.manifest
    noun, own = manifest.noun, manifest.recipe
    last, uniform = card_input.last_recipe, card_input.uniform_recipe
    if last not in (None, own):
        name, phrase = _LAST_STEPS_NAMES[noun]
        commands = _last_steps_commands(card_input)
        yield Baseline(name, phrase, card_input.scores_of_recipe(last), commands)
    name, phrase = f"same {noun} of the best common step", "against the best common step"
    if card_input.lock is None:
        yield Baseline(name, phrase, (), _select_commands(card_input))
    elif uniform not in (None, own, last):
        commands = _policy_commands(card_input, UNIFORM)
        yield Baseline(name, phrase, card_input.scores_of_recipe(uniform), commands)
    if manifest.is_moe:
        yield from _plain_merge_baselines(card_input)
    scores = card_input.scores_of_model(manifest.base.digest)
    commands = _eval_commands(card_input, _pinned_reference(manifest.base))
    yield Baseline("base", "against the base", scores, commands)


def _plain_merge_baselines(card_input: CardInput) -> Iterator[Baseline]:
    """The plain merges that were scored; if there are none, TIES with default parameters."""
    merges = find_plain_merges(card_input)
    for merge in merges:
        params = ", ".join(
            f"{name} {merge.params[name]:g}" for name in _NAMED_PARAMS if name in merge.params
        )
        name = f"{merge.method} merge of the same experts"
        full_name = f"{name}, {params}" if params else name
        yield Baseline(full_name, f"against a {name}", merge.scores, ())
    if not merges:
        experts = [_pinned_reference(expert) for expert in card_input.manifest.experts]
        arguments = [*experts, "--method", "ties"]
        yield Baseline("merge", "", (), _build_commands(card_input, "merge", arguments, "plain"))


def _pinned_reference(expert: Source) -> str:
    return expert.name if expert.is_local else f"{expert.name}@{expert.sha[:12]}"


def _last_steps_commands(card_input: CardInput) -> tuple[str, ...]:
    if card_input.pick_of_policy(LAST):
        return _policy_commands(card_input, LAST)
    manifest = card_input.manifest
    if manifest.has_other_layers:
        return ()
    labels = [f"{expert.name}@{(expert.last_sha or '')[:12]}" for expert in manifest.experts]
    if manifest.is_moe:
        return _commands_with_experts(card_input, labels)
    return _build_commands(card_input, "merge", [*labels, *_merge_options(manifest)], LAST)


def _merge_options(manifest: Manifest) -> list[str]:
    options, params = split_options(manifest.params)
    forms = {
        name: params.pop(name) for name in ("dtype", "as_lora", "shard_size") if name in params
    }
    if (name := str(manifest.method)) in METHODS:
        params = with_unrecorded(METHODS[name], params)
    settings = format_settings(params, [expert.settings for expert in manifest.experts])
    for option in _PER_EXPERT_OPTIONS:
        numbers = [getattr(expert, option) for expert in manifest.experts]
        if set(numbers) != {1.0}:
            settings[option] = ",".join(f"{number:.12g}" for number in numbers)
    arguments = ["--method", str(manifest.method)]
    for name, value in sorted(settings.items()):
        arguments += ["--set", f"{name}={value}"]
    for name, value in forms.items():
        unit = "B" if name == "shard_size" else ""
        arguments += [f"--{name.replace('_', '-')}", f"{value}{unit}"]
    for name, value in options.chosen.items():
        arguments += [f"--{name}", value]
    return arguments


def _commands_with_experts(card_input: CardInput, labels: Sequence[str]) -> tuple[str, ...]:
    """The mixture's own command with other experts; empty if it does not name its experts.

    The command is used because the parameters do not record how it named the tasks.
    """
    manifest = card_input.manifest
    replacements = {
        expert.label: label for expert, label in zip(manifest.experts, labels, strict=True)
    }
    try:
        arguments = shlex.split(manifest.command)
    except ValueError:
        return ()
    if not replacements.keys() <= set(arguments):
        return ()
    out = f"./{LAST}-mixture"
    replaced = [replacements.get(argument, argument) for argument in arguments]
    return shlex.join([*replaced, "--out", out]), *_eval_commands(card_input, out)


def _policy_commands(card_input: CardInput, policy: str) -> tuple[str, ...]:
    manifest = card_input.manifest
    command = "moerge" if manifest.is_moe else "merge"
    rank = manifest.params.get("as_lora")
    form = [] if rank is None else ["--as-lora", str(rank)]
    base = ["--base", manifest.base.name] if manifest.base.is_local else []
    arguments = ["--lock", LOCK, "--policy", policy, *base, *form]
    return _build_commands(card_input, command, arguments, policy)


def _build_commands(
    card_input: CardInput, command: str, arguments: Sequence[str], name: str
) -> tuple[str, ...]:
    """Build the model in a folder named after `name`, then evaluate it."""
    out = f"./{name}-{'mixture' if command == 'moerge' else 'merge'}"
    build = shlex.join(["hubmerge", command, *arguments, "--out", out])
    return build, *_eval_commands(card_input, out)


def _select_commands(card_input: CardInput) -> tuple[str, ...]:
    """The selection that finds the best common step; empty if an expert is not on a Hub."""
    manifest = card_input.manifest
    if any(expert.is_local for expert in manifest.experts):
        return ()
    repositories = dict.fromkeys(expert.name for expert in manifest.experts)
    return (shlex.join(["hubmerge", "select", *repositories, "--target", str(manifest.method)]),)


def _eval_commands(card_input: CardInput, model: str) -> tuple[str, ...]:
    """One command for each metric that was chosen, and one for tasks measured by their own."""
    tasks = dict[str, list[str]]()
    for score in card_input.own_scores:
        tasks.setdefault(score.chosen_metric, []).append(_task_to_write(card_input, score))
    return tuple(
        shlex.join(["hubmerge", "eval", model, "--tasks", ",".join(dict.fromkeys(names)),
                    *(["--metric", metric] if metric else [])])
        for metric, names in tasks.items()
    )  # fmt: skip


def _task_to_write(card_input: CardInput, score: Score) -> str:
    """The name of a shipped task; for others an expert that was trained for it, if on a Hub."""
    if score.task_name in catalog() or is_lm_eval(score.task_name):
        return score.task_name
    own_id = metric_of_id(score.task)[0]
    trained = (
        _pinned_reference(expert)
        for expert in card_input.manifest.experts
        if not expert.is_local and expert.task and metric_of_id(expert.task)[0] == own_id
    )
    return next(trained, score.task_name)
