"""What was measured -> charts, tables and claims, as the recipe asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hubmerge.errors import UsageError, raise_together
from hubmerge.reproduce.plan import Plan
from hubmerge.reproduce.rows import AT, Row, by_seed, noise, picked, rows_of, values_of
from hubmerge.reproduce.unit import Result
from hubmerge.results import (
    Axis,
    Cell,
    Chart,
    Claim,
    Paper,
    Point,
    Provenance,
    Results,
    Series,
    Table,
    mean,
    overall,
    verdict_of,
)
from hubmerge.specs.recipe import ChartSpec, ClaimSpec, Side, TableSpec, Where

# Rows that belong to no method are called by what they are of.
METHOD = {
    "experts": "experts, each on its own task",
    "base": "base",
    "mixtures": "mixture",
    "loss share": "loss share",
}
SHOWN = {"average": "Average", "task_arithmetic": "Task arithmetic", "ties": "TIES", "dare": "DARE"}


def tell(plan: Plan, found: Mapping[str, Result], provenance: Provenance) -> Results:
    """Results of a recipe from those of its units; what was not made leaves no rows."""
    recipe, setting = plan.recipe, plan.setting
    rows = [_named(row) for row in rows_of(plan, found)]
    found_of = {spec.name: _claim(spec, rows) for spec in recipe.claims}
    if setting.claims_all:
        _check_claims(recipe.name, found_of)
    claims = tuple(claim for claim in found_of.values() if claim)
    return Results(
        recipe=recipe.name,
        profile=plan.profile,
        title=recipe.title,
        paper=Paper(recipe.where, recipe.says),
        setting={
            "base": setting.base, "tasks": list(setting.tasks), "seeds": list(setting.seeds),
            "steps": setting.last, "train": dict(setting.train),
            "variants": [variant.name for variant in plan.variants],
        },
        notes=(*setting.notes, *setting.assumed),
        charts=tuple(_chart(spec, rows) for spec in recipe.charts),
        tables=tuple(_table(spec, rows) for spec in recipe.tables),
        claims=claims,
        verdict=overall([claim.verdict for claim in claims]) if claims else "not",
        because=" ".join(recipe.because.split()) if plan.profile == "mini" else "",
        provenance=provenance,
        rows=tuple(rows),
    )  # fmt: skip


def _check_claims(recipe: str, found: Mapping[str, Claim | None]) -> None:
    """A claim that no row speaks of is a slip of the recipe, and must not pass for a finding."""
    problems = [
        f"{recipe}: no row was measured for the claim {name!r}."
        for name, claim in found.items()
        if claim is None
    ]
    raise_together(UsageError, problems, "See that its labels are those of `measures`.")


def _named(row: Row) -> Row:
    return {"method": METHOD.get(str(row["of"]), str(row["of"])), **row}


def _chart(spec: ChartSpec, rows: Sequence[Row]) -> Chart:
    """Early-stopped runs have no step of their own to stand at, and are told in tables."""
    fitting = [row for row in picked(rows, spec.where) if _has_place(row, spec)]
    series = []
    for group in values_of(fitting, spec.group) if spec.group else [None]:
        inside = [row for row in fitting if spec.group is None or row.get(spec.group) == group]
        for name in values_of(inside, spec.by):
            own = [row for row in inside if row.get(spec.by) == name]
            points = tuple(
                _point(place, [row for row in own if row[spec.x] == place])
                for place in values_of(own, spec.x)
            )
            series.append(Series(_shown(name), points, "" if group is None else str(group)))
    x = Axis(spec.x_label, "number", spec.scale)
    y = Axis(spec.y_label, spec.unit, "linear")
    return Chart(spec.name, spec.title, x, y, tuple(series), spec.kind)


def _has_place(row: Row, spec: ChartSpec) -> bool:
    place = row.get(spec.x)
    return place is not None and (spec.scale == "category" or not isinstance(place, str))


def _point(place: float | str, rows: Sequence[Row]) -> Point:
    notes = [f"seed {row['seed']}: {row['note']}" for row in rows if row.get("note")]
    seeds = {str(seed): value for seed, value in by_seed(rows).items()}
    return Point(place, seeds, "; ".join(dict.fromkeys(notes)))


def _table(spec: TableSpec, rows: Sequence[Row]) -> Table:
    where = {name: value for name, value in spec.where.items() if name != AT}
    at = {name: value for name, value in spec.where.items() if name == AT}
    fitting = picked(rows, where)
    lines = _sides(spec.lines, fitting)
    columns = _sides(spec.columns, fitting)
    cells = []
    for line in lines:
        found = [_cell(fitting, {**at, **line.where, **column.where}, spec) for column in columns]
        if any(isinstance(cell, Cell) for cell in found):
            cells.append((line.label, *found))
    head = spec.lines if isinstance(spec.lines, str) else ""
    return Table(spec.name, spec.title, (head, *(one.label for one in columns)), tuple(cells))


def _sides(said: str | tuple[Side, ...], rows: Sequence[Row]) -> list[Side]:
    if not isinstance(said, str):
        return list(said)
    return [Side(label=_shown(value), where={said: value}) for value in values_of(rows, said)]


def _cell(rows: Sequence[Row], where: Where, spec: TableSpec) -> str | Cell:
    found = by_seed(picked(rows, where))
    return Cell(tuple(found.values()), spec.unit) if found else "-"


def _claim(spec: ClaimSpec, rows: Sequence[Row]) -> Claim | None:
    """Seed by seed, side a less side b; None where nothing of it was measured."""
    how = math.fsum if spec.sum else mean
    sides = [picked(rows, side, spec.peak) for side in (spec.a, spec.b) if side is not None]
    a, *b = (by_seed(side, how) for side in sides)
    shared = [seed for seed in a if all(seed in other for other in b)]
    values = tuple(a[seed] - sum(other[seed] for other in b) for seed in shared)
    if not values:
        return None
    error = math.hypot(*map(noise, sides)) if len(values) == 1 else 0.0
    verdict = verdict_of(values, spec.above, error)
    return Claim(spec.name, spec.says, values, verdict, spec.unit, spec.paper, spec.above, error)


def _shown(value: object) -> str:
    return SHOWN.get(str(value), str(value))
