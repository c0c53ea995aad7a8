"""Results are told from units' results alone: hand-worked numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.plan import Plan
from hubmerge.reproduce.results_from_units import tell
from hubmerge.results import Cell, Provenance, Results
from tests.reproduce.test_plan import laid

PROVENANCE = Provenance("0", "c0de", {}, {}, 0.0)
# Method, step, seed -> validation and test accuracy.
FOUND = {
    ("ties", 2, 0): (0.70, 0.60), ("ties", 2, 1): (0.72, 0.64),
    ("ties", 8, 0): (0.60, 0.55), ("ties", 8, 1): (0.60, 0.57),
}  # fmt: skip
ASKED: dict[str, Any] = {
    "charts": [{"name": "accuracy", "title": "Accuracy", "where": {"of": "merges"}}],
    "tables": [{"name": "accuracy", "title": "Accuracy", "where": {"of": "merges"}}],
    "claims": [
        {
            "name": "falls", "says": "It falls.",
            "a": {"of": "merges", "at": "best"}, "b": {"of": "merges", "at": "last"},
        },
        {"name": "high", "says": "It is high.", "a": {"of": "merges", "at": "best"}, "above": 0.7},
    ],
}  # fmt: skip


def told(**other: Any) -> Results:
    found = laid([{"of": "merges", "methods": ["ties"]}], **{**ASKED, **other})
    return tell(found, results(found), PROVENANCE)


def results(found: Plan) -> dict[str, Any]:
    said = {}
    for asked in found.asked:
        at = asked.labels
        validation, test = FOUND[str(at["method"]), int(at["step"]), int(at["seed"])]
        row = {"validation": validation, "value": test, "note": f"scale {at['step']}"}
        said[asked.unit.key] = {"rows": [row]}
    return said


def test_a_chart_has_a_series_for_each_method_and_a_value_for_each_seed() -> None:
    [chart] = told().charts
    [series] = chart.series
    assert series.name == "TIES"
    assert [(point.x, point.values) for point in series.points] == [
        (2, {"0": 0.60, "1": 0.64}),
        (8, {"0": 0.55, "1": 0.57}),
    ]
    assert series.points[0].note == "seed 0: scale 2; seed 1: scale 2"


def test_a_table_has_lines_and_columns_by_label() -> None:
    [table] = told().tables
    assert table.columns == ("step", "TIES")
    assert table.rows == (("2", Cell((0.60, 0.64))), ("8", Cell((0.55, 0.57))))


def test_a_table_may_name_its_sides() -> None:
    lines = [
        {"label": "best", "where": {"at": "best"}},
        {"label": "last", "where": {"at": "last"}},
        {"label": "of nothing", "where": {"step": 4}},
    ]
    [table] = told(tables=[{"name": "t", "title": "T", "lines": lines}]).tables
    assert table.rows == (("best", Cell((0.60, 0.64))), ("last", Cell((0.55, 0.57))))


def test_a_claim_is_a_difference_seed_by_seed() -> None:
    falls, high = told().claims
    assert all(map(math.isclose, falls.values, (0.05, 0.07)))
    assert falls.verdict == "reproduced"  # 0.06 with a standard error of 0.01
    assert high.verdict == "not"
    assert told().verdict == "partly"


ABSENT = {"name": "absent", "says": "No row tells.", "a": {"of": "mixtures"}}


def test_a_claim_that_no_row_speaks_of_is_refused() -> None:
    with pytest.raises(UsageError, match="no row was measured for the claim 'absent'"):
        told(claims=[*ASKED["claims"], ABSENT])


def test_a_smoke_may_leave_claims_out() -> None:
    measures = [{"of": "merges", "methods": ["ties"]}]
    claims = [*ASKED["claims"], ABSENT]
    found = laid(measures, {"claims_all": False}, **{**ASKED, "claims": claims})
    assert [c.name for c in tell(found, results(found), PROVENANCE).claims] == ["falls", "high"]


def test_the_best_step_of_a_table_is_that_of_each_cell() -> None:
    methods = ["ties", "average"]
    table = {"name": "t", "title": "T", "where": {"of": "merges", "at": "best"}, "lines": "of"}
    found = laid([{"of": "merges", "methods": methods}], **{**ASKED, "tables": [table]})
    said = {}
    for asked in found.asked:
        is_late = asked.labels["step"] == 8
        good = is_late if asked.labels["method"] == "average" else not is_late
        row = {"validation": 0.8 if good else 0.2, "value": 0.9 if good else 0.1}
        said[asked.unit.key] = {"rows": [row]}
    [told] = tell(found, said, PROVENANCE).tables
    assert told.rows == (("merges", Cell((0.9, 0.9)), Cell((0.9, 0.9))),)


def test_a_single_seed_is_judged_by_the_noise_of_its_test_rows() -> None:
    found = laid([{"of": "merges", "methods": ["ties"]}], {"seeds": [0]}, **ASKED)
    said = results(found)
    for result in said.values():
        result["rows"][0]["stderr"] = 0.02
    falls, high = tell(found, said, PROVENANCE).claims
    assert math.isclose(falls.stderr, 0.02 * math.sqrt(2))  # of a difference
    assert falls.verdict == "partly"  # 0.05 is less than two of them
    assert math.isclose(high.stderr, 0.02)


def test_a_single_seed_of_unknown_noise_proves_nothing() -> None:
    found = laid([{"of": "merges", "methods": ["ties"]}], {"seeds": [0]}, **ASKED)
    falls, _ = tell(found, results(found), PROVENANCE).claims
    assert falls.verdict == "partly"
