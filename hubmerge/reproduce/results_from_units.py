"""The results of units -> the charts, tables and claims that a recipe defines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hubmerge.errors import UsageError, raise_together
from hubmerge.reproduce.plan import RecipePlan
from hubmerge.reproduce.rows import (
    AT_LABEL,
    Row,
    collect_rows,
    label_values,
    reached_step,
    select_rows,
    values_by_seed,
)
from hubmerge.reproduce.unit import Result
from hubmerge.results import (
    SMOKE,
    Axis,
    Cell,
    Chart,
    ChartPoint,
    Claim,
    Paper,
    Provenance,
    Results,
    Series,
    Table,
    judge_claims,
    overall_verdict,
)
from hubmerge.seed_statistics import mean
from hubmerge.specs.recipe import (
    ChartSpec,
    ClaimSpec,
    Recipe,
    TableSide,
    TableSpec,
    Where,
)

# The method label of rows that have no merge method, by what they measure.
METHOD_LABELS = {
    "experts": "experts, each on its own task",
    "base": "base",
    "mixtures": "mixture",
    "loss share": "loss share",
}
METHOD_NAMES = {
    "average": "Average",
    "task_arithmetic": "Task arithmetic",
    "ties": "TIES",
    "dare": "DARE",
}


def results_from_units(
    plan: RecipePlan, unit_results: Mapping[str, Result], provenance: Provenance
) -> Results:
    """The results of a recipe from those of its units; missing units give no rows.

    Raises UsageError for a claim without rows, unless the profile allows it.
    """
    recipe, setting = plan.recipe, plan.settings
    rows = [_with_method(row) for row in collect_rows(plan, unit_results)]
    claims = claims_from_rows(recipe, plan.profile, rows)
    return Results(
        recipe=recipe.name,
        profile=plan.profile,
        title=recipe.title,
        paper=Paper(recipe.where, recipe.statement),
        setting={
            "base": setting.base, "tasks": list(setting.tasks), "seeds": list(setting.seeds),
            "steps": setting.last, "train": dict(setting.train),
            "variants": [variant.name for variant in plan.variants],
        },
        notes=(*setting.notes, *setting.assumed),
        charts=tuple(_chart(spec, rows) for spec in recipe.charts),
        tables=tuple(_table(spec, rows) for spec in recipe.tables),
        claims=claims,
        verdict=overall_verdict([claim.verdict for claim in claims]),
        explanation=" ".join(recipe.explanation.split()) if plan.profile == "mini" else "",
        provenance=provenance,
        rows=tuple(rows),
    )  # fmt: skip


def claims_from_rows(recipe: Recipe, profile: str, rows: Sequence[Row]) -> tuple[Claim, ...]:
    """The claims of a recipe with their verdicts, from its rows.

    Raises UsageError for a claim without rows, unless the profile allows it.
    """
    claims = {spec.name: _claim(spec, rows) for spec in recipe.claims}
    if recipe.settings_for(profile).claims_all:
        _check_claims(recipe.name, claims)
    tested = [
        profile != SMOKE and _reaches(spec, rows) for spec in recipe.claims if claims[spec.name]
    ]
    return judge_claims([claim for claim in claims.values() if claim], tested)


def _check_claims(recipe: str, claims: Mapping[str, Claim | None]) -> None:
    """A claim without rows is a mistake in the recipe and must not count as a finding."""
    problems = [
        f"{recipe}: no row was measured for the claim {name!r}."
        for name, claim in claims.items()
        if claim is None
    ]
    raise_together(UsageError, problems, "Check that its labels are those of `measures`.")


def _reaches(spec: ClaimSpec, rows: Sequence[Row]) -> bool:
    """Whether the runs of both sides are as long as the claim needs."""
    sides = [side for side in (spec.a, spec.b) if side is not None]
    return all(reached_step(rows, side) >= spec.reach for side in sides)


def _with_method(row: Row) -> Row:
    return {"method": METHOD_LABELS.get(str(row["of"]), str(row["of"])), **row}


def _chart(spec: ChartSpec, rows: Sequence[Row]) -> Chart:
    """A chart of the rows with a numeric x; early-stopped runs have none and are in tables only."""
    selected = [row for row in select_rows(rows, spec.where) if _has_x(row, spec)]
    series = []
    for group in label_values(selected, spec.group) if spec.group else [None]:
        of_group = [row for row in selected if spec.group is None or row.get(spec.group) == group]
        for name in label_values(of_group, spec.by):
            of_series = [row for row in of_group if row.get(spec.by) == name]
            points = tuple(
                _point(x, [row for row in of_series if row[spec.x] == x])
                for x in label_values(of_series, spec.x)
            )
            series.append(Series(_display_name(name), points, "" if group is None else str(group)))
    x_axis = Axis(spec.x_label, "number", spec.scale)
    y_axis = Axis(spec.y_label, spec.unit, "linear")
    return Chart(spec.name, spec.title, x_axis, y_axis, tuple(series), spec.kind)


def _has_x(row: Row, spec: ChartSpec) -> bool:
    x = row.get(spec.x)
    return x is not None and (spec.scale == "category" or not isinstance(x, str))


def _point(x: float | str, rows: Sequence[Row]) -> ChartPoint:
    notes = [f"seed {row['seed']}: {row['note']}" for row in rows if row.get("note")]
    seeds = {str(seed): value for seed, value in values_by_seed(rows).items()}
    return ChartPoint(x, seeds, "; ".join(dict.fromkeys(notes)))


def _table(spec: TableSpec, rows: Sequence[Row]) -> Table:
    where = {name: value for name, value in spec.where.items() if name != AT_LABEL}
    at = {name: value for name, value in spec.where.items() if name == AT_LABEL}
    selected = select_rows(rows, where)
    lines = _table_sides(spec.lines, selected)
    columns = _table_sides(spec.columns, selected)
    table_rows = []
    for line in lines:
        cells = [_cell(selected, {**at, **line.where, **column.where}, spec) for column in columns]
        if any(isinstance(cell, Cell) for cell in cells):
            table_rows.append((line.label, *cells))
    corner = spec.lines if isinstance(spec.lines, str) else ""
    head = (corner, *(column.label for column in columns))
    return Table(spec.name, spec.title, head, tuple(table_rows))


def _table_sides(sides: str | tuple[TableSide, ...], rows: Sequence[Row]) -> list[TableSide]:
    if not isinstance(sides, str):
        return list(sides)
    return [
        TableSide(label=_display_name(value), where={sides: value})
        for value in label_values(rows, sides)
    ]


def _cell(rows: Sequence[Row], where: Where, spec: TableSpec) -> str | Cell:
    values = values_by_seed(select_rows(rows, where))
    return Cell(tuple(values.values()), spec.unit) if values else "-"


def _claim(spec: ClaimSpec, rows: Sequence[Row]) -> Claim | None:
    """Side a minus side b for each seed; None if no seed has both."""
    aggregate = math.fsum if spec.sum else mean
    sides = [select_rows(rows, side, spec.peak) for side in (spec.a, spec.b) if side is not None]
    a, *b = (values_by_seed(side, aggregate) for side in sides)
    shared = [seed for seed in a if all(seed in other for other in b)]
    values = tuple(a[seed] - sum(other[seed] for other in b) for seed in shared)
    if not values:
        return None
    return Claim(
        spec.name,
        spec.statement,
        values,
        unit=spec.unit,
        paper=spec.paper,
        threshold=spec.above,
    )


def _display_name(value: object) -> str:
    return METHOD_NAMES.get(str(value), str(value))
