"""Write the results of recipes whose units are all done, and compare them with expected.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hubmerge.reports.figures import write_figures
from hubmerge.reproduce.combined_plan import CombinedPlan
from hubmerge.reproduce.expected import NAME, check_results
from hubmerge.reproduce.plan import RecipePlan
from hubmerge.reproduce.provenance import make_provenance
from hubmerge.reproduce.results_from_units import results_from_units
from hubmerge.reproduce.store import UnitRecord
from hubmerge.results import Results, write_results


@dataclass(frozen=True)
class RecipeResults:
    """The results of a recipe, their file, and a sentence for each number outside its band.

    `out_of_band` is None if the recipe has no expected.json.
    """

    results: Results
    path: Path
    out_of_band: tuple[str, ...] | None


def write_all_results(
    combined: CombinedPlan, records: Mapping[str, UnitRecord], work: Path
) -> list[RecipeResults]:
    """Write the results of the recipes that miss no unit, in folders NAME-PROFILE of `work`."""
    return [
        _write_recipe(plan, records, work / f"{plan.recipe.name}-{plan.profile}")
        for plan in combined.plans
        if not count_missing(plan, records)
    ]


def count_missing(plan: RecipePlan, records: Mapping[str, UnitRecord]) -> int:
    """How many units of a plan have no result."""
    return sum(unit.key not in records for unit in plan.units)


def _write_recipe(
    plan: RecipePlan, records: Mapping[str, UnitRecord], folder: Path
) -> RecipeResults:
    used = {unit.key: records[unit.key] for unit in plan.units}
    unit_results = {key: record.result for key, record in used.items()}
    results = results_from_units(plan, unit_results, make_provenance(used.values()))
    path = write_results(folder, results)
    write_figures(results, folder)
    expected = plan.recipe.folder / NAME
    out_of_band = tuple(check_results(results, expected)) if expected.is_file() else None
    return RecipeResults(results, path, out_of_band)
