"""The tables of `hubmerge run`: the plan before a run, failures and verdicts after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hubmerge.cli.run_progress import format_duration
from hubmerge.cli.tables import make_table
from hubmerge.reports.number_format import format_claim
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.results import Results

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import CombinedPlan
    from hubmerge.reproduce.plan_cost import PlanCost
    from hubmerge.reproduce.result_files import RecipeResults
    from hubmerge.reproduce.runner import Failure, RunOutcome
    from hubmerge.reproduce.unit import Unit

_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def cost_table(costs: Sequence[PlanCost], title: str) -> Table:
    """The cost of a plan by kind and in total; times without measurements are marked."""
    rows = [_cost_row(cost) for cost in costs]
    if len(costs) > 1:
        rows.append(_cost_row(_total_cost(costs)))
    columns = ("unit", "in all>", "known>", "steps>", "time of one worker>", "commits>", "pushed>")
    return make_table(columns, rows, title=title)


def _cost_row(cost: PlanCost) -> tuple[object, ...]:
    time = "-" if cost.units == cost.known else format_duration(cost.seconds)
    return (
        cost.kind,
        cost.units,
        cost.known,
        cost.steps or "-",
        time if cost.measured else f"{time} (assumed)",
        cost.commits or "-",
        format_size(cost.bytes),
    )


def _total_cost(costs: Sequence[PlanCost]) -> PlanCost:
    numbers = {
        name: sum(getattr(cost, name) for cost in costs)
        for name in ("units", "known", "steps", "seconds", "commits", "bytes")
    }
    return dataclasses.replace(
        costs[0], kind="in all", measured=all(cost.measured for cost in costs), **numbers
    )


def format_size(number: float) -> str:
    """A number of bytes with its unit, or a dash."""
    for unit, name in _SIZES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B" if number else "-"


def failure_table(failed: Iterable[Failure]) -> Table:
    """The units that failed, and why."""
    rows = [
        (
            failure.unit.key, failure.unit.kind, failure.unit.about,
            f"{failure.message} {failure.hint}".strip(),
        )
        for failure in failed
    ]  # fmt: skip
    return make_table(("unit", "kind", "of", "why"), rows, title="failed")


def claim_table(results: Iterable[Results]) -> Table:
    """The claims of recipes, with the measured value and the verdict."""
    rows: list[tuple[object, ...]] = []
    for of_recipe in results:
        rows += [
            (
                of_recipe.recipe,
                claim.statement,
                format_claim(claim),
                claim.paper,
                symbol_and_word(claim.verdict),
            )
            for claim in of_recipe.claims
        ]
    columns = ("recipe", "claim", "measured, 95 % interval>", "paper", "verdict")
    return make_table(columns, rows)


def plan_to_json(
    combined: CombinedPlan, units: Sequence[Unit], known: Collection[str], costs: Sequence[PlanCost]
) -> dict[str, Any]:
    """A plan for --json; `known` are the keys of units that have a result."""
    return {
        "recipes": [plan.recipe.name for plan in combined.plans],
        "profile": combined.profile,
        "kinds": [dataclasses.asdict(cost) for cost in costs],
        "units": [
            {
                "key": unit.key,
                "kind": unit.kind,
                "about": unit.about,
                "needs": sorted(needed.key for needed in unit.needs.values()),
                "known": unit.key in known,
            }
            for unit in units
        ],
    }


def outcome_to_json(outcome: RunOutcome, written: Iterable[RecipeResults]) -> dict[str, Any]:
    """The outcome of a run for --json; `left` are numbers outside their band."""
    return {
        "made": [unit.key for unit in outcome.completed],
        "failed": {failure.unit.key: failure.message for failure in outcome.failed},
        "skipped": [unit.key for unit in outcome.skipped],
        "recipes": [
            {
                "recipe": item.results.recipe,
                "profile": item.results.profile,
                "verdict": item.results.verdict,
                "claims": {claim.name: claim.verdict for claim in item.results.claims},
                "results": str(item.path),
                "left": None if item.out_of_band is None else list(item.out_of_band),
            }
            for item in written
        ],
    }
