"""The walk over a plan: what runs, what does not, and what is said of it."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.reproduce import runner
from hubmerge.reproduce.engines.inline import Inline
from hubmerge.reproduce.runner import Event, Outcome, run
from hubmerge.reproduce.store import Store
from hubmerge.reproduce.unit import Unit, with_needs
from tests.reproduce.trivial import perform, shop, unit


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PAUSES_S", (0.0,))


def made(folder: Path, *units: Unit, code: str = "c1", **options: object) -> Outcome:
    with closing(Inline(perform, shop(folder / "shop"))) as engine:
        return run(with_needs(units), engine, Store(folder, code), **options)  # type: ignore[arg-type]


def names(units: tuple[Unit, ...]) -> list[str]:
    return [one.about for one in units]


def test_a_unit_is_made_of_those_it_needs(tmp_path: Path) -> None:
    a, b = unit("a"), unit("b", add=10)
    top = unit("top", a, b)
    outcome = made(tmp_path, top)
    assert names(outcome.made) == ["a", "b", "top"]
    assert outcome.records[top.key].result == {"sum": 12, "third": 4.0, "name": "top"}


def test_a_rerun_makes_only_what_is_missing(tmp_path: Path) -> None:
    a = unit("a")
    made(tmp_path, unit("b", a))
    again = made(tmp_path, unit("b", a), unit("c", a))
    assert names(again.made) == ["c"]
    assert again.records[a.key].result["sum"] == 1


def test_what_other_code_measured_is_made_again(tmp_path: Path) -> None:
    a = unit("a")
    made(tmp_path, a)
    assert names(made(tmp_path, a, code="c2", any_code=True).made) == []
    assert names(made(tmp_path, a, code="c2").made) == ["a"]
    assert names(made(tmp_path, a, code="c2").made) == []


def test_what_was_made_of_older_results_is_made_again(tmp_path: Path) -> None:
    a = unit("a")
    made(tmp_path, a)
    mixed = made(tmp_path, unit("b", a), code="c2", any_code=True)
    assert (names(mixed.made), mixed.records[unit("b", a).key].code) == (["b"], "c2+older")
    assert names(made(tmp_path, unit("b", a), code="c2").made) == ["a", "b"]


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    bad = unit("bad", do="fail")
    above = unit("above", bad)
    top = unit("top", above, bad, unit("good"))
    outcome = made(tmp_path, top, unit("other", unit("good")))
    assert names(outcome.made) == ["good", "other"]
    assert [one.unit.about for one in outcome.failed] == ["bad"]
    assert (outcome.failed[0].message, outcome.failed[0].hint) == ("bad has no rows.", "Add rows.")
    assert sorted(names(outcome.skipped)) == ["above", "top"]


def test_passing_trouble_is_tried_again_and_other_trouble_is_not(tmp_path: Path) -> None:
    seen: list[Event] = []
    once, ever, bug = (
        unit("once", do="unreachable-once"), unit("ever", do="unreachable"), unit("bug", do="break")
    )  # fmt: skip
    outcome = made(tmp_path, once, ever, bug, retries=2, watch=seen.append)
    assert names(outcome.made) == ["once"]
    assert {one.unit.about: one.message for one in outcome.failed} == {
        "ever": "The Hub is away.",
        "bug": "It failed in a way it should not: KeyError: 'surprise'",
    }
    again = [event.unit.about for event in seen if event.what == "again"]
    assert sorted(again) == ["ever", "ever", "once"]
    assert "trivial.py" in outcome.failed[0].trace


def test_what_is_needed_but_not_asked_for_must_be_there(tmp_path: Path) -> None:
    a = unit("a")
    top = unit("top", a)
    with closing(Inline(perform, shop(tmp_path))) as engine:
        alone = run([top], engine, Store(tmp_path, "c1"))
        assert alone.failed[0].message == f"It needs {a.key}, not made yet."
        run([a], engine, Store(tmp_path, "c1"))
        assert names(run([top], engine, Store(tmp_path, "c1")).made) == ["top"]
        stale = run([unit("other", a)], engine, Store(tmp_path, "c2"))
    assert stale.failed[0].message == f"It needs {a.key}, not made yet."


def test_units_are_started_in_plan_order(tmp_path: Path) -> None:
    late, soon = unit("late", unit("x")), unit("soon")
    assert names(made(tmp_path, late, soon, unit("last")).made) == ["x", "late", "soon", "last"]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_plan_is_walked_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    units: list[Unit] = []
    for number in range(data.draw(st.integers(1, 9))):
        needs = data.draw(st.lists(st.sampled_from(units), unique=True)) if units else []
        doing = data.draw(st.sampled_from([None, None, None, "fail"]))
        units.append(unit(f"u{number}", *needs, do=doing))
    outcome = made(tmp_path_factory.mktemp("work"), *units)
    ends = [*outcome.made, *(one.unit for one in outcome.failed), *outcome.skipped]
    assert sorted(one.key for one in ends) == sorted(one.key for one in units)
    place = {one.key: number for number, one in enumerate(outcome.made)}
    for one in outcome.made:
        assert all(place[needed.key] < place[one.key] for needed in one.needs.values())
    for one in outcome.skipped:
        assert any(needed.key not in place for needed in one.needs.values())


def test_bookkeeping_of_a_wide_plan_is_cheap(tmp_path: Path) -> None:
    """Ten thousand known units are seen to be known in a second or two, not in a minute."""
    units = [unit(f"u{number}") for number in range(2000)]
    top = unit("top", *units)
    store = Store(tmp_path, "c1")
    for one in units[:5]:
        store.put(one, {"sum": 1}, 0.1)
    begun = time.perf_counter()
    walk = runner._Walk(with_needs([top]), store, lambda event: None, 0, False)
    walk.begin()
    assert len(walk.missing) == 1996
    assert time.perf_counter() - begun < 5
