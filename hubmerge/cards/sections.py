"""What a card of each kind is filled with: plain data for its template, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubmerge.cards import routing, selection
from hubmerge.cards.baselines import summary_rows, todo
from hubmerge.cards.card_input import CardInput, StepTag
from hubmerge.cards.cost import cost_rows, trained_words
from hubmerge.cards.curve import CSV, PICTURE, curve_rows, curve_tasks, curve_words, thinned
from hubmerge.cards.forgotten import forgotten_section
from hubmerge.cards.headline import expert_headline, headline
from hubmerge.cards.markdown import code, commit, escaped, plain
from hubmerge.cards.metadata import data_sets
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.cards.rows import expert_rows, normalised_rows, own_rows, steps_words, task_rows
from hubmerge.cards.training_summary import notes
from hubmerge.manifest import Manifest
from hubmerge.scores import shown_names

_MOST_USERS = 20
# What the tables call the model, and the same made of the last steps.
_MERGE = {"noun": "merge", "own": "merged", "last": "last steps merged"}
_MIXTURE = {"noun": "mixture", "own": "mixture", "last": "mixture from last steps"}


def about(told: CardInput) -> dict[str, Any]:
    """What the template of its kind is filled with."""
    match told.manifest.kind:
        case "expert":
            return _about_expert(told)
        case "merge":
            return {"words": _MERGE, **_about_upcycled(told)}
        case "moe":
            return {"words": _MIXTURE, **_about_upcycled(told), **_about_mixture(told)}


def _about_upcycled(told: CardInput) -> dict[str, Any]:
    """What a merge and a mixture have in common."""
    manifest = told.manifest
    return {
        "headline": headline(told),
        "mixed": told.mixed,
        "summary": summary_rows(told),
        "todo": [code(line) for line in todo(told)],
        "rows": escaped(task_rows(told)),
        "normalised": escaped(normalised_rows(told)),
        "experts": escaped(expert_rows(told)),
        "data": [f"{plain(name)}: {plain(data)}" for name, data in _named(data_sets(told)).items()],
        "chosen": _chosen(told),
        "steps_words": steps_words(manifest.experts, manifest.noun),
        "notes": [plain(note) for note in notes(manifest)],
        "locked": manifest.lock is not None,
        "forgotten": forgotten_section(told.forgotten) if told.forgotten else None,
    }


def _about_mixture(told: CardInput) -> dict[str, Any]:
    """What a mixture has beside that: where tokens went and at what cost, and its training."""
    return {
        **_curve(told.manifest),
        "steps": [_step_row(step) for step in told.steps],
        "routed": _routed(told),
        "cost": cost_rows(told.routing.cost) if told.routing else [],
        "trained": trained_words(told.routing.cost) if told.routing else "",
    }


def _about_expert(told: CardInput) -> dict[str, Any]:
    manifest = told.manifest
    users = [plain(name) for name in told.used_by]
    return {
        "headline": expert_headline(manifest),
        "rows": escaped(own_rows(told)),
        **_curve(manifest),
        "steps": [_step_row(step) for step in told.steps],
        "users": users[:_MOST_USERS],
        "more_users": max(len(users) - _MOST_USERS, 0),
    }


def _curve(manifest: Manifest) -> dict[str, Any]:
    curve = manifest.validation
    return {
        "curve": curve_rows(curve),
        "curve_tasks": [plain(name) for name in shown_names(curve_tasks(curve)).values()],
        "picture": f"![{curve_words(curve)}]({PICTURE})" if curve else "",
        "csv": CSV,
        "thinned": len(thinned(curve)) < len(curve),
    }


def _routed(told: CardInput) -> dict[str, Any] | None:
    """What routing.json tells; None for a mixture of which it was not measured."""
    if told.routing is None:
        return None
    return {
        "words": routing.own_words(told.routing, told.tasks),
        "picture": f"![{routing.map_words(told.routing)}]({routing.PICTURE})",
        "experts": [plain(name) for name in routing.shown_experts(told.routing)],
        "rows": [
            [plain(cell) for cell in row] for row in routing.mean_rows(told.routing, told.tasks)
        ],
        "csv": routing.CSV,
    }


def _chosen(told: CardInput) -> dict[str, Any] | None:
    """What the lock tells of the choice; None for what was made without one."""
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
        "policies": escaped(selection.policy_rows(lock)),
        "heat_map": heat_map if shown.is_measured else "",
        "curves": f"![{selection.selection_words(lock)}]({selection.CURVES})",
        "csv": selection.CSV,
        "spent": selection.spent_words(lock),
        "command": code(lock.command),
    }


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
