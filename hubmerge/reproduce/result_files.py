"""Recipes whose units are all known, told: results.json, figures, what left its band."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hubmerge.reports.figures import draw
from hubmerge.reproduce.combined_plan import Order
from hubmerge.reproduce.expected import NAME, check
from hubmerge.reproduce.plan import Plan
from hubmerge.reproduce.provenance import provenance
from hubmerge.reproduce.results_from_units import tell
from hubmerge.reproduce.store import Record
from hubmerge.results import Results, write_results


@dataclass(frozen=True)
class Told:
    """Results, the file they are in, and a sentence for each number that left its band.

    None for `left` says that the recipe has no expected.json.
    """

    results: Results
    path: Path
    left: tuple[str, ...] | None


def tell_all(ordered: Order, records: Mapping[str, Record], work: Path) -> list[Told]:
    """Tell the recipes that lack no unit; each gets a folder NAME-PROFILE in `work`."""
    return [
        _tell(plan, records, work / f"{plan.recipe.name}-{plan.profile}")
        for plan in ordered.plans
        if not lacking(plan, records)
    ]


def lacking(plan: Plan, records: Mapping[str, Record]) -> int:
    """How many units of a plan are not known."""
    return sum(unit.key not in records for unit in plan.units)


def _tell(plan: Plan, records: Mapping[str, Record], folder: Path) -> Told:
    its = {unit.key: records[unit.key] for unit in plan.units}
    found = {key: record.result for key, record in its.items()}
    results = tell(plan, found, provenance(its.values()))
    path = write_results(folder, results)
    draw(results, folder)
    expected = plan.recipe.folder / NAME
    left = tuple(check(results, expected)) if expected.is_file() else None
    return Told(results, path, left)
