"""Charts, tables and claims from the results of units, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.plan import RecipePlan
from hubmerge.reproduce.results_from_units import results_from_units
from hubmerge.results import Cell, Provenance, Results
from tests.reproduce.test_plan import lay_out

PROVENANCE = Provenance("0", "c0de", {}, {}, 0.0)
# Method, step, seed -> validation and test accuracy.
ACCURACIES = {
    ("ties", 2, 0): (0.70, 0.60), ("ties", 2, 1): (0.72, 0.64),
    ("ties", 8, 0): (0.60, 0.55), ("ties", 8, 1): (0.60, 0.57),
}  # fmt: skip
SECTIONS: dict[str, Any] = {
    "charts": [{"name": "accuracy", "title": "Accuracy", "where": {"of": "merges"}}],
    "tables": [{"name": "accuracy", "title": "Accuracy", "where": {"of": "merges"}}],
    "claims": [
        {
            "name": "falls", "statement": "It falls.",
            "a": {"of": "merges", "at": "best"}, "b": {"of": "merges", "at": "last"},
        },
        {
            "name": "high", "statement": "It is high.",
            "a": {"of": "merges", "at": "best"}, "above": 0.7,
        },
    ],
}  # fmt: skip


def make_results(**other: Any) -> Results:
    plan = lay_out([{"of": "merges", "methods": ["ties"]}], **{**SECTIONS, **other})
    return results_from_units(plan, make_unit_results(plan), PROVENANCE)


def make_unit_results(plan: RecipePlan) -> dict[str, Any]:
    unit_results = {}
    for request in plan.requests:
        labels = request.labels
        key = str(labels["method"]), int(labels["step"]), int(labels["seed"])
        validation, test = ACCURACIES[key]
        row = {"validation": validation, "value": test, "note": f"scale {labels['step']}"}
        unit_results[request.unit.key] = {"rows": [row]}
    return unit_results


def test_a_chart_has_a_series_for_each_method_and_a_value_for_each_seed() -> None:
    [chart] = make_results().charts
    [series] = chart.series
    assert series.name == "TIES"
    assert [(point.x, point.values) for point in series.points] == [
        (2, {"0": 0.60, "1": 0.64}),
        (8, {"0": 0.55, "1": 0.57}),
    ]
    assert series.points[0].note == "seed 0: scale 2; seed 1: scale 2"


def test_a_table_has_lines_and_columns_by_label() -> None:
    [table] = make_results().tables
    assert table.columns == ("step", "TIES")
    assert table.rows == (("2", Cell((0.60, 0.64))), ("8", Cell((0.55, 0.57))))


def test_a_table_may_list_its_lines() -> None:
    lines = [
        {"label": "best", "where": {"at": "best"}},
        {"label": "last", "where": {"at": "last"}},
        {"label": "of nothing", "where": {"step": 4}},
    ]
    [table] = make_results(tables=[{"name": "t", "title": "T", "lines": lines}]).tables
    assert table.rows == (("best", Cell((0.60, 0.64))), ("last", Cell((0.55, 0.57))))


def test_a_claim_is_a_difference_per_seed() -> None:
    falls, high = make_results().claims
    assert all(map(math.isclose, falls.values, (0.05, 0.07)))
    assert falls.verdict == "partly"  # p 0.0526, twice that after Holm's correction for two claims
    assert falls.p_value == pytest.approx(2 * 0.05257, abs=1e-4)  # t is 6 with one degree
    assert high.verdict == "not"
    assert make_results().verdict == "partly"


ABSENT = {"name": "absent", "statement": "No row has it.", "a": {"of": "mixtures"}}


def test_a_claim_without_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="no row was measured for the claim 'absent'"):
        make_results(claims=[*SECTIONS["claims"], ABSENT])


def test_a_profile_may_allow_claims_without_rows() -> None:
    measures = [{"of": "merges", "methods": ["ties"]}]
    claims = [*SECTIONS["claims"], ABSENT]
    plan = lay_out(measures, {"claims_all": False}, **{**SECTIONS, "claims": claims})
    assert [
        c.name for c in results_from_units(plan, make_unit_results(plan), PROVENANCE).claims
    ] == [
        "falls",
        "high",
    ]


def test_the_best_step_is_chosen_for_each_cell_of_a_table() -> None:
    methods = ["ties", "average"]
    table_spec = {"name": "t", "title": "T", "where": {"of": "merges", "at": "best"}, "lines": "of"}
    plan = lay_out([{"of": "merges", "methods": methods}], **{**SECTIONS, "tables": [table_spec]})
    unit_results = {}
    for request in plan.requests:
        is_late = request.labels["step"] == 8
        good = is_late if request.labels["method"] == "average" else not is_late
        row = {"validation": 0.8 if good else 0.2, "value": 0.9 if good else 0.1}
        unit_results[request.unit.key] = {"rows": [row]}
    [table] = results_from_units(plan, unit_results, PROVENANCE).tables
    assert table.rows == (("merges", Cell((0.9, 0.9)), Cell((0.9, 0.9))),)


def test_a_single_seed_proves_nothing() -> None:
    plan = lay_out([{"of": "merges", "methods": ["ties"]}], {"seeds": [0]}, **SECTIONS)
    falls, high = results_from_units(plan, make_unit_results(plan), PROVENANCE).claims
    assert (falls.verdict, falls.p_value, falls.interval) == ("partly", None, None)
    assert high.verdict == "not"


def test_a_claim_beyond_the_length_of_the_runs_is_not_tested() -> None:
    falls, high = SECTIONS["claims"]
    reached, beyond = ({**falls, "reach": reach} for reach in (8, 9))
    assert make_results(claims=[reached, high]).claims[0].verdict == "partly"
    results = make_results(claims=[beyond, high])
    assert [claim.verdict for claim in results.claims] == ["untested", "not"]
    assert (results.claims[0].p_value, results.verdict) == (None, "not")
    assert make_results(claims=[beyond]).verdict == "untested"


def test_a_smoke_profile_gives_no_verdicts() -> None:
    plan = lay_out([{"of": "merges", "methods": ["ties"]}], **SECTIONS)
    recipe = plan.recipe.model_copy(update={"suites": {"smoke": plan.settings}})
    smoke = replace(plan, recipe=recipe, profile="smoke")
    results = results_from_units(smoke, make_unit_results(plan), PROVENANCE)
    assert {claim.verdict for claim in results.claims} == {results.verdict} == {"untested"}
