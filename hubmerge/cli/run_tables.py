"""What `hubmerge run` prints: the plan before, failures and verdicts after."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hubmerge.cli.run_progress import lasting
from hubmerge.cli.tables import table
from hubmerge.results import Claim, Results

if TYPE_CHECKING:
    from hubmerge.reproduce.combined_plan import Order
    from hubmerge.reproduce.plan_cost import Cost
    from hubmerge.reproduce.result_files import Told
    from hubmerge.reproduce.runner import Failure, Outcome
    from hubmerge.reproduce.unit import Unit

_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def cost_table(costs: Sequence[Cost], title: str) -> Table:
    """A plan by kind, and in all; times that nothing was measured of are marked."""
    rows = [_cost_row(cost) for cost in costs]
    if len(costs) > 1:
        rows.append(_cost_row(_sum(costs)))
    columns = ("unit", "in all>", "known>", "steps>", "time of one worker>", "commits>", "pushed>")
    return table(columns, rows, title=title)


def _cost_row(cost: Cost) -> tuple[object, ...]:
    time = "-" if cost.units == cost.known else lasting(cost.seconds)
    return (
        cost.kind,
        cost.units,
        cost.known,
        cost.steps or "-",
        time if cost.measured else f"{time} (assumed)",
        cost.commits or "-",
        size(cost.bytes),
    )


def _sum(costs: Sequence[Cost]) -> Cost:
    numbers = {
        name: sum(getattr(cost, name) for cost in costs)
        for name in ("units", "known", "steps", "seconds", "commits", "bytes")
    }
    return dataclasses.replace(
        costs[0], kind="in all", measured=all(cost.measured for cost in costs), **numbers
    )


def size(number: float) -> str:
    """Bytes as people say them, a dash for none."""
    for unit, name in _SIZES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B" if number else "-"


def failure_table(failed: Iterable[Failure]) -> Table:
    """Units that have no result, and why."""
    rows = [
        (one.unit.key, one.unit.kind, one.unit.about, f"{one.message} {one.hint}".strip())
        for one in failed
    ]
    return table(("unit", "kind", "of", "why"), rows, title="failed")


def claim_table(results: Iterable[Results]) -> Table:
    """Claims, what was measured of each, and what it comes to."""
    rows: list[tuple[object, ...]] = []
    for one in results:
        rows += [
            (one.recipe, claim.says, _measured(claim), claim.paper, claim.verdict)
            for claim in one.claims
        ]
    columns = ("recipe", "claim", "measured>", "paper", "verdict")
    return table(columns, rows)


def _measured(claim: Claim) -> str:
    factor = 1 if claim.unit in ("number", "steps") else 100
    return f"{factor * claim.mean:+.1f} ± {factor * claim.stderr:.1f}"


def plan_data(
    ordered: Order, units: Sequence[Unit], known: Collection[str], costs: Sequence[Cost]
) -> dict[str, Any]:
    """A plan as data; `known` are keys."""
    return {
        "recipes": [plan.recipe.name for plan in ordered.plans],
        "profile": ordered.profile,
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


def end_data(outcome: Outcome, told: Iterable[Told]) -> dict[str, Any]:
    """What a run came to, as data; `left` are numbers that left their band."""
    return {
        "made": [unit.key for unit in outcome.made],
        "failed": {one.unit.key: one.message for one in outcome.failed},
        "skipped": [unit.key for unit in outcome.skipped],
        "recipes": [
            {
                "recipe": one.results.recipe,
                "profile": one.results.profile,
                "verdict": one.results.verdict,
                "claims": {claim.name: claim.verdict for claim in one.results.claims},
                "results": str(one.path),
                "left": None if one.left is None else list(one.left),
            }
            for one in told
        ],
    }
