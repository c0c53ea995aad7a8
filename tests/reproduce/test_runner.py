"""The runner: which units of a plan run, which do not, and which events are reported."""

from __future__ import annotations

import cProfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.reproduce import runner
from hubmerge.reproduce.engines.inline import InlineEngine
from hubmerge.reproduce.runner import RunOutcome, UnitEvent, run
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import Unit, with_needs
from tests.reproduce.trivial import make_context, perform, unit


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_RETRY_PAUSES_S", (0.0,))


def run_units(folder: Path, *units: Unit, code: str = "c1", **options: object) -> RunOutcome:
    with closing(InlineEngine(perform, make_context(folder / "work"))) as engine:
        return run(with_needs(units), engine, ResultStore(folder, code), **options)  # type: ignore[arg-type]


def names(units: tuple[Unit, ...]) -> list[str]:
    return [item.about for item in units]


def test_a_unit_gets_the_results_of_the_units_it_needs(tmp_path: Path) -> None:
    a, b = unit("a"), unit("b", add=10)
    top = unit("top", a, b)
    outcome = run_units(tmp_path, top)
    assert names(outcome.completed) == ["a", "b", "top"]
    assert outcome.records[top.key].result == {"sum": 12, "third": 4.0, "name": "top"}


def test_a_rerun_performs_only_missing_units(tmp_path: Path) -> None:
    a = unit("a")
    run_units(tmp_path, unit("b", a))
    again = run_units(tmp_path, unit("b", a), unit("c", a))
    assert names(again.completed) == ["c"]
    assert again.records[a.key].result["sum"] == 1


def test_results_of_other_code_are_measured_again(tmp_path: Path) -> None:
    a = unit("a")
    run_units(tmp_path, a)
    assert names(run_units(tmp_path, a, code="c2", any_code=True).completed) == []
    assert names(run_units(tmp_path, a, code="c2").completed) == ["a"]
    assert names(run_units(tmp_path, a, code="c2").completed) == []


def test_results_from_older_results_are_measured_again(tmp_path: Path) -> None:
    a = unit("a")
    run_units(tmp_path, a)
    mixed = run_units(tmp_path, unit("b", a), code="c2", any_code=True)
    assert (names(mixed.completed), mixed.records[unit("b", a).key].code) == (["b"], "c2+older")
    assert names(run_units(tmp_path, unit("b", a), code="c2").completed) == ["a", "b"]


def test_a_failure_skips_only_the_units_that_need_it(tmp_path: Path) -> None:
    bad = unit("bad", do="fail")
    above = unit("above", bad)
    top = unit("top", above, bad, unit("good"))
    outcome = run_units(tmp_path, top, unit("other", unit("good")))
    assert names(outcome.completed) == ["good", "other"]
    assert [item.unit.about for item in outcome.failed] == ["bad"]
    assert (outcome.failed[0].message, outcome.failed[0].hint) == ("bad has no rows.", "Add rows.")
    assert sorted(names(outcome.skipped)) == ["above", "top"]


def test_only_transient_failures_are_retried(tmp_path: Path) -> None:
    seen: list[UnitEvent] = []
    once, ever, bug = (
        unit("once", do="unreachable-once"), unit("ever", do="unreachable"), unit("bug", do="break")
    )  # fmt: skip
    outcome = run_units(tmp_path, once, ever, bug, retries=2, on_event=seen.append)
    assert names(outcome.completed) == ["once"]
    assert {item.unit.about: item.message for item in outcome.failed} == {
        "ever": "The Hub is away.",
        "bug": "It failed unexpectedly: KeyError: 'surprise'",
    }
    again = [event.unit.about for event in seen if event.status == "retrying"]
    assert sorted(again) == ["ever", "ever", "once"]
    assert "trivial.py" in outcome.failed[0].trace


def test_needed_units_that_are_not_requested_must_have_results(tmp_path: Path) -> None:
    a = unit("a")
    top = unit("top", a)
    with closing(InlineEngine(perform, make_context(tmp_path))) as engine:
        alone = run([top], engine, ResultStore(tmp_path, "c1"))
        assert alone.failed[0].message == f"It needs {a.key}, which has no result yet."
        run([a], engine, ResultStore(tmp_path, "c1"))
        assert names(run([top], engine, ResultStore(tmp_path, "c1")).completed) == ["top"]
        stale = run([unit("other", a)], engine, ResultStore(tmp_path, "c2"))
    assert stale.failed[0].message == f"It needs {a.key}, which has no result yet."


def test_units_are_started_in_plan_order(tmp_path: Path) -> None:
    late, soon = unit("late", unit("x")), unit("soon")
    assert names(run_units(tmp_path, late, soon, unit("last")).completed) == [
        "x",
        "late",
        "soon",
        "last",
    ]


@settings(max_examples=30)
@given(st.data())
def test_any_plan_is_performed_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    units: list[Unit] = []
    for number in range(data.draw(st.integers(1, 9))):
        needs = data.draw(st.lists(st.sampled_from(units), unique=True)) if units else []
        doing = data.draw(st.sampled_from([None, None, None, "fail"]))
        units.append(unit(f"u{number}", *needs, do=doing))
    outcome = run_units(tmp_path_factory.mktemp("work"), *units)
    ends = [*outcome.completed, *(item.unit for item in outcome.failed), *outcome.skipped]
    assert sorted(item.key for item in ends) == sorted(item.key for item in units)
    position = {item.key: number for number, item in enumerate(outcome.completed)}
    for item in outcome.completed:
        assert all(position[needed.key] < position[item.key] for needed in item.needs.values())
    for item in outcome.skipped:
        assert any(needed.key not in position for needed in item.needs.values())


def test_the_work_per_unit_does_not_grow_with_the_plan(tmp_path: Path) -> None:
    """Twice the units cost about twice the calls, not four times."""
    calls = [calls_of_a_run(tmp_path / str(count), count) for count in (100, 200)]
    assert calls[1] < 2.5 * calls[0]


def calls_of_a_run(folder: Path, count: int) -> int:
    """The function calls to perform so many independent units and one that needs them all."""
    top = unit("top", *[unit(f"u{number}") for number in range(count)])
    profile = cProfile.Profile()
    outcome = profile.runcall(run_units, folder, top)
    assert len(outcome.completed) == count + 1
    return sum(entry.callcount for entry in profile.getstats())
