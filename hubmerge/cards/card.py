"""Manifest + scores + lock -> README.md. Nothing else goes in, so the same give the same card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from hubmerge.cards import selection
from hubmerge.cards.curve import CSV, PICTURE, curve_rows, curve_words, thinned
from hubmerge.cards.kept import BEGIN, END, whole_card
from hubmerge.cards.licence import clashes
from hubmerge.cards.making import adapter_name, annealed, notes, provenance, stopped_early
from hubmerge.cards.markdown import code, commit, plain, without_tokens
from hubmerge.cards.metadata import data_sets, eval_results, front_matter, licence, metric_name
from hubmerge.cards.numbers import MISSING, percent
from hubmerge.cards.rivals import summary_rows, todo
from hubmerge.cards.rows import expert_rows, normalised_rows, own_rows, steps_words, task_rows
from hubmerge.cards.told import CardInput, StepTag
from hubmerge.cards.usage import loading
from hubmerge.manifest import Manifest
from hubmerge.scores import Score, shown_names, upcycling

__all__ = ["BEGIN", "END", "CardInput", "StepTag", "eval_results", "render_card"]

_TEMPLATE = files("hubmerge") / "cards"
_MOST_USERS = 20


def render_card(told: CardInput, before: str = "") -> str:
    """The card as Markdown; what its author wrote outside the markers of `before` stays.

    Every string from outside is escaped: it can neither break the front matter nor a table, and a
    token in it is not repeated.
    """
    manifest = told.manifest
    # A fixed template over plain data; nothing from a Hub is ever used as a template.
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    template = (_TEMPLATE / f"{manifest.kind}.md").read_text(encoding="utf-8")
    about = _about_merge(told) if manifest.kind == "merge" else _about_expert(told)
    part = environment.from_string(template).render(
        title=plain(_title(manifest)),
        split=told.split,
        provenance=[plain(line) for line in provenance(manifest)],
        command=code(manifest.command),
        loading=loading(manifest),
        licence=list(_licence(manifest)),
        version=plain(str(manifest.versions.get("hubmerge", ""))),
        **about,
    )
    said = front_matter(told, _title(manifest))
    return without_tokens(whole_card(said, part, before))


def _about_merge(told: CardInput) -> dict[str, Any]:
    manifest = told.manifest
    return {
        "headline": _headline(told),
        "mixed": told.mixed,
        "summary": summary_rows(told),
        "todo": [code(line) for line in todo(told)],
        "rows": _escaped(task_rows(told)),
        "normalised": _escaped(normalised_rows(told)),
        "experts": _escaped(expert_rows(told)),
        "data": [f"{plain(name)}: {plain(data)}" for name, data in _named(data_sets(told)).items()],
        "chosen": _chosen(told),
        "steps_words": steps_words(manifest.experts),
        "notes": [plain(note) for note in notes(manifest)],
        "locked": manifest.lock is not None,
    }


def _about_expert(told: CardInput) -> dict[str, Any]:
    manifest = told.manifest
    curve = manifest.validation
    users = [plain(name) for name in told.used_by]
    return {
        "headline": _expert_headline(manifest),
        "rows": _escaped(own_rows(told)),
        "curve": curve_rows(curve),
        "picture": f"![{curve_words(curve)}]({PICTURE})" if curve else "",
        "csv": CSV,
        "thinned": len(thinned(curve)) < len(curve),
        "steps": [_step_row(step) for step in told.steps],
        "users": users[:_MOST_USERS],
        "more_users": max(len(users) - _MOST_USERS, 0),
    }


def _chosen(told: CardInput) -> dict[str, Any] | None:
    """What the lock tells of the choice; None for a merge that was made without one."""
    lock = told.lock
    if lock is None:
        return None
    shown = selection.grid(lock)
    heat_map = f"![{selection.heat_map_words(lock)}]({selection.HEAT_MAP})"
    return {
        "rival": plain(lock.rival),
        "method": plain(lock.method),
        "split": plain(lock.split),
        "seed": lock.seed,
        "tasks": plain(", ".join(shown_names(task.id for task in lock.tasks).values())),
        "policies": _escaped(selection.policy_rows(lock)),
        "heat_map": heat_map if shown.is_measured else "",
        "curves": f"![{selection.selection_words(lock)}]({selection.CURVES})",
        "csv": selection.CSV,
        "spent": selection.spent_words(lock),
        "command": code(lock.command),
    }


def _title(manifest: Manifest) -> str:
    if manifest.kind == "merge":
        names = shown_names(expert.task for expert in manifest.experts if expert.task)
        tasks = ", ".join(names.get(e.task or "") or e.name for e in manifest.experts)
        return f"{manifest.method} merge of {len(manifest.experts)} experts: {tasks}"
    return f"Expert for {manifest.task_name or 'one task'} at step {manifest.step}"


def _headline(told: CardInput) -> str:
    score = upcycling(told.own)
    if told.mixed:
        said = _mixed_headline(told.own)
    elif score is None:
        said = "Not evaluated yet."
    else:
        ours, *others = summary_rows(told)
        gains = "; ".join(f"{row['gain']} {row['versus']}" for row in others)
        said = (
            f"**Upcycling score {percent(score.value)} %** (95 % interval {ours['interval']}), "
            f"raw mean {told.split} accuracy over {score.tasks} tasks"
        )
        said += f": {gains}." if gains else "."
    return "\n\n".join([said, *_choice(told)])


def _choice(told: CardInput) -> Iterator[str]:
    """Whose choice the merge is, by the lock beside it."""
    if told.lock is None:
        return
    if told.pick is None:
        yield "It is none of the picks of the lock beside it, which are told of below."
    elif told.pick.policy != told.lock.chosen:
        policy, chosen = plain(told.pick.policy), plain(told.lock.chosen)
        yield f"It is what the policy {policy} picked; the lock's choice is that of {chosen}."
    else:
        yield selection.verdict(told.lock)


def _mixed_headline(scores: Sequence[Score]) -> str:
    """Says which task is measured how: the table has accuracies of both kinds in one column."""
    names = shown_names(score.task for score in scores)
    how = ", ".join(f"{names[score.task]} by {metric_name(score).lower()}" for score in scores)
    return f"The tasks are measured differently, {plain(how)}, so there is no mean over them."


def _expert_headline(manifest: Manifest) -> str:
    adapter = adapter_name(manifest)
    an_adapter = f"an adapter ({plain(adapter)}) on" if adapter else "an adapter on"
    made = an_adapter if manifest.layout == "peft" else "fine-tuned from"
    mode = f": {said}" if (said := annealed(manifest)) else ""
    stop = f"The run was stopped early at step {manifest.step}. " if stopped_early(manifest) else ""
    return (
        f"Step {manifest.step} of {manifest.last_step}, {made} {plain(manifest.base.label)}{mode}. "
        f"{stop}Every pushed step is a tag of this repository: an early one often merges better "
        "than the last."
    )


def _licence(manifest: Manifest) -> Iterator[str]:
    """What it is under, and what its sources are under, a line each."""
    named = licence(manifest)
    sources = {source.name: source.licence for source in (manifest.base, *manifest.experts)}
    problems = [plain(problem) for problem in clashes(sources)]
    if manifest.licence:
        yield f"{plain(manifest.licence)}, as stated by whoever merged."
    elif named and manifest.kind == "merge":
        yield f"{plain(named)}, the most restrictive of the sources' licences."
    elif named:
        yield f"{plain(named)}, that of its base."
    elif problems:
        yield "None is named, as the sources' licences clash."
    else:
        yield "Unknown: not every source names one. Ask its authors before you rely on it."
    yield from problems
    for name, said in sources.items():
        yield f"{plain(name)}: {plain(said or 'unknown')}"


def _step_row(step: StepTag) -> dict[str, str]:
    return {
        "step": str(step.step),
        "name": plain(step.name),
        "sha": commit(step.sha),
        "accuracy": MISSING if step.accuracy is None else percent(step.accuracy),
    }


def _named(data: Mapping[str, str]) -> dict[str, str]:
    names = shown_names(data)
    return {names[task]: said for task, said in data.items()}


def _escaped(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [
        {key: commit(value) if key == "sha" else plain(value) for key, value in row.items()}
        for row in rows
    ]
