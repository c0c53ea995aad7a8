"""The template variables of each kind of card: plain data with all text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubmerge.cards import routing, selection
from hubmerge.cards.baselines import missing_score_commands, summary_rows
from hubmerge.cards.card_input import CardInput, StepTag
from hubmerge.cards.controls import control_variables
from hubmerge.cards.cost import cost_rows, describe_trained_parameters
from hubmerge.cards.curve import CSV, PICTURE, curve_rows, curve_tasks, describe_curve, thin_curve
from hubmerge.cards.forgotten import forgotten_section
from hubmerge.cards.headline import expert_headline, headline
from hubmerge.cards.lora import lora_section
from hubmerge.cards.markdown import escape_code, escape_markdown, escape_rows, format_commit
from hubmerge.cards.metadata import hub_datasets, metric_of
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.cards.rows import (
    describe_training_steps,
    expert_rows,
    expert_score_rows,
    normalised_rows,
    task_rows,
)
from hubmerge.cards.training_summary import notes
from hubmerge.manifest import Manifest
from hubmerge.scores import display_names

_MOST_USERS = 20
# What text and table columns call the model, and the same model made from the last steps.
_MERGE_WORDS = {"model": "merge", "column": "merged", "last_steps": "last steps merged"}
_MOE_WORDS = {"model": "mixture", "column": "mixture", "last_steps": "mixture from last steps"}


def template_variables(card_input: CardInput) -> dict[str, Any]:
    """The variables of the template for this kind of model."""
    if card_input.manifest.is_expert:
        return _expert_variables(card_input)
    if card_input.manifest.is_merge:
        return {"names": _MERGE_WORDS, **_upcycled_variables(card_input)}
    return {"names": _MOE_WORDS, **_upcycled_variables(card_input), **_moe_variables(card_input)}


def _upcycled_variables(card_input: CardInput) -> dict[str, Any]:
    """The variables common to merges and mixtures."""
    manifest = card_input.manifest
    return {
        "headline": headline(card_input),
        "mixed_metrics": card_input.has_mixed_metrics,
        "metric": escape_markdown(metric_of(card_input)),
        "summary": summary_rows(card_input),
        "commands": [escape_code(line) for line in missing_score_commands(card_input)],
        "rows": escape_rows(task_rows(card_input)),
        "normalised": escape_rows(normalised_rows(card_input)),
        "experts": escape_rows(expert_rows(card_input)),
        "data": [
            f"{escape_markdown(name)}: {escape_markdown(data)}"
            for name, data in _by_shown_name(hub_datasets(card_input)).items()
        ],
        "selection": _selection_variables(card_input),
        "controls": control_variables(card_input.lock) if card_input.lock else None,
        "training_steps": describe_training_steps(manifest.experts, manifest.noun),
        "notes": [escape_markdown(note) for note in notes(manifest)],
        "locked": manifest.lock is not None,
        "forgotten": forgotten_section(card_input.forgotten) if card_input.forgotten else None,
        "lora": lora_section(manifest),
    }


def _moe_variables(card_input: CardInput) -> dict[str, Any]:
    """The variables of mixtures only: routing, cost and training."""
    return {
        **_curve_variables(card_input.manifest),
        "steps": [_step_row(step) for step in card_input.steps],
        "routing": _routing_variables(card_input),
        "cost": cost_rows(card_input.routing.cost) if card_input.routing else [],
        "trained_parameters": describe_trained_parameters(card_input.routing.cost)
        if card_input.routing
        else "",
    }


def _expert_variables(card_input: CardInput) -> dict[str, Any]:
    manifest = card_input.manifest
    merges = [escape_markdown(name) for name in card_input.used_by]
    return {
        "headline": expert_headline(manifest),
        "lora": lora_section(manifest),
        "notes": [escape_markdown(note) for note in notes(manifest)],
        "rows": escape_rows(expert_score_rows(card_input)),
        **_curve_variables(manifest),
        "steps": [_step_row(step) for step in card_input.steps],
        "used_by": merges[:_MOST_USERS],
        "more_used_by": max(len(merges) - _MOST_USERS, 0),
    }


def _curve_variables(manifest: Manifest) -> dict[str, Any]:
    curve = manifest.validation
    return {
        "curve": curve_rows(curve),
        "curve_tasks": [
            escape_markdown(name) for name in display_names(curve_tasks(curve)).values()
        ],
        "curve_name": escape_markdown(manifest.curve_name),
        "picture": f"![{describe_curve(curve, manifest.curve_name)}]({PICTURE})" if curve else "",
        "csv": CSV,
        "thinned": len(thin_curve(curve)) < len(curve),
    }


def _routing_variables(card_input: CardInput) -> dict[str, Any] | None:
    """The variables of the routing section; None if routing was not measured."""
    if card_input.routing is None:
        return None
    return {
        "description": routing.describe_routing(card_input.routing, card_input.task_ids),
        "picture": f"![{routing.describe_map(card_input.routing)}]({routing.PICTURE})",
        "experts": [escape_markdown(name) for name in routing.shown_experts(card_input.routing)],
        "rows": [
            [escape_markdown(cell) for cell in row]
            for row in routing.mean_rows(card_input.routing, card_input.task_ids)
        ],
        "csv": routing.CSV,
    }


def _selection_variables(card_input: CardInput) -> dict[str, Any] | None:
    """The variables of the selection section; None without a lock."""
    lock = card_input.lock
    if lock is None:
        return None
    heat_map = f"![{selection.describe_heat_map(lock)}]({selection.HEAT_MAP})"
    return {
        "rival": escape_markdown(lock.rival),
        "method": escape_markdown(lock.method),
        "split": escape_markdown(lock.split),
        "seed": lock.seed,
        "tasks": escape_markdown(", ".join(display_names(task.id for task in lock.tasks).values())),
        "policies": escape_rows(selection.policy_rows(lock)),
        "heat_map": heat_map if selection.heat_map(lock).is_measured else "",
        "curves": f"![{selection.describe_selection(lock)}]({selection.CURVES})",
        "csv": selection.CSV,
        "spent": selection.describe_spent(lock),
        "command": escape_code(lock.command),
    }


def _step_row(step: StepTag) -> dict[str, str]:
    return {
        "step": str(step.step),
        "name": escape_markdown(step.name),
        "sha": format_commit(step.sha),
        "accuracy": MISSING if step.accuracy is None else percent(step.accuracy),
    }


def _by_shown_name(data: Mapping[str, str]) -> dict[str, str]:
    names = display_names(data)
    return {names[task]: value for task, value in data.items()}
