"""The selection of a lock: heat map, figures of limited size, words and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import struct

import matplotlib
import pytest

from hubmerge.cards.figures import heat_map_png, selection_png
from hubmerge.cards.selection import (
    describe_heat_map,
    describe_selection,
    experts_alone,
    heat_map,
    policy_rows,
    selection_csv,
)
from hubmerge.lock import Lock, LockedTask, Swap, UniformPoint
from tests.cards.builders import lock, pick, source

PICTURES = [heat_map_png, selection_png]


def test_the_heat_map_marks_the_choice_and_ties() -> None:
    table = heat_map(lock())
    assert (table.tasks, table.steps, table.chosen) == (("cats", "dogs"), (2, 4, 8), (1, 0))
    merged = [[cell.merged if cell else None for cell in row] for row in table.cells]
    assert merged == [[0.60, 0.68, 0.55], [0.68, 0.675, 0.58]]
    ties = [(row, column) for row in (0, 1) for column in range(3) if is_tied(lock(), row, column)]
    assert ties == [(1, 1)]


def is_tied(selection: Lock, row: int, column: int) -> bool:
    cell = heat_map(selection).cells[row][column]
    return cell is not None and cell.tied


def test_the_chosen_one_of_two_candidates_at_a_step_is_shown() -> None:
    better = Swap("e" * 40, "o/rival@step4", 4, 0.9, 0.99)
    swaps = {**lock().swaps, "cats@1": (better, *lock().swaps["cats@1"])}
    cell = heat_map(lock(swaps=swaps)).cells[0][1]
    assert cell is not None
    assert cell.label == "o/cats@step4"


def test_experts_alone_need_every_task() -> None:
    # (70 + 60) / 2, (80 + 75) / 2, (90 + 85) / 2
    assert experts_alone(lock()) == pytest.approx({2: 0.65, 4: 0.775, 8: 0.875})
    assert experts_alone(lock(swaps={"cats@1": lock().swaps["cats@1"]})) == {}


def test_the_rows_of_policies() -> None:
    assert [(r["policy"], r["steps"], r["gain"]) for r in policy_rows(lock())] == [
        ("last", "8", "-"),
        ("uniform", "4", "+6.00 (+2.00 to +10.00)"),
        ("coordinate", "4, 2", "+8.00 (+4.00 to +12.00)"),
    ]


def test_the_descriptions_match_the_pictures() -> None:
    assert describe_heat_map(lock()) == (
        "Heat map of 2 tasks by 3 steps: mean validation accuracy of the merge with one expert at "
        "another step. The choice reaches 68.00 %: cats step 4, dogs step 2. As good within the "
        "noise: dogs step 4. The lowest is 55.00 %, with cats step 8."
    )
    assert describe_selection(lock()) == (
        "Mean validation accuracy over the tasks. Merged at one common step: 62.00 % at step 2 to "
        "60.00 % at step 8, highest at step 4 with 66.00 %. Experts alone: 65.00 % at step 2 to "
        "87.50 % at step 8. Policies: last 60.00 %, uniform 66.00 %, coordinate 68.00 %."
    )


def test_the_csv_has_every_number_of_the_figures() -> None:
    lines = selection_csv(lock()).splitlines()
    cats, dogs = source("cats@1", 4).sha, source("dogs@1", 4).sha
    assert lines[0] == (
        "what,name,step,commit,own_accuracy,merged_accuracy,standard_error,chosen,tied"
    )
    assert f"candidate,cats@1,4,{cats},0.8,0.68,,1,0" in lines
    assert f"candidate,dogs@1,4,{dogs},0.75,0.675,,0,1" in lines
    assert "uniform,,4,,,0.66,0.0166546,," in lines
    assert 'policy,coordinate,"4, 2",,,0.68,0.0163974,1,' in lines
    assert len(lines) == 1 + 6 + 3 + 3


def test_a_hostile_name_is_not_a_formula_in_the_csv() -> None:
    bad = lock(picks=(*lock().picks, pick("=cmd|' /c calc'!A0\n", 4, 2, 0.5)))
    rows = list(csv.reader(io.StringIO(selection_csv(bad))))
    assert rows[-1][1] == "'=cmd|' /c calc'!A0\\n"


@pytest.mark.parametrize("draw", PICTURES)
def test_a_picture_is_reproducible(draw: object) -> None:
    picture = draw(lock())  # type: ignore[operator]
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">I", picture[16:20]) == (1440,)
    with matplotlib.rc_context({"font.size": 20, "image.cmap": "jet"}):
        assert draw(lock()) == picture  # type: ignore[operator]


@pytest.mark.parametrize("draw", PICTURES)
def test_a_lock_without_measurements_is_drawn(draw: object) -> None:
    bare = lock(swaps={}, uniform=())
    assert draw(bare).startswith(b"\x89PNG")  # type: ignore[operator]
    assert not heat_map(bare).is_measured
    unmeasured = {
        task: tuple(dataclasses.replace(swap, merged=None, own=None) for swap in candidates)
        for task, candidates in lock().swaps.items()
    }
    assert draw(lock(swaps=unmeasured)).startswith(b"\x89PNG")  # type: ignore[operator]
    assert "none of those shown" in describe_heat_map(bare)


@pytest.mark.parametrize("draw", [
    pytest.param(draw, marks=pytest.mark.slow if draw is heat_map_png else ()) for draw in PICTURES
])  # fmt: skip
def test_the_size_of_a_picture_is_limited(draw: object) -> None:
    picture = draw(huge())  # type: ignore[operator]
    width, height = struct.unpack(">II", picture[16:24])
    assert width == 1440
    assert height <= 4000


def test_a_huge_error_does_not_flatten_the_curves() -> None:
    def lock_with(stderr: float) -> Lock:
        return lock(uniform=(UniformPoint(2, 0.5, stderr), UniformPoint(4, 0.6, stderr)))

    assert selection_png(lock_with(1e300)) == selection_png(lock_with(1.0))


def huge() -> Lock:
    """A hundred tasks with two hundred steps, long names and huge errors."""
    names = [f"$\\frac{{{number}}}$-{'x' * 60}@1" for number in range(100)]
    picks = [
        dataclasses.replace(
            pick(f"policy-{number}-{'y' * 60}", 4, 2, 0.5),
            experts=tuple(source(name, 4) for name in names),
            stderr=1.7e308,
        )
        for number in range(30)
    ]
    swaps = {
        name: tuple(Swap("a" * 40, "o/x", step, 0.5, 0.5) for step in range(0, 10**12, 5 * 10**9))
        for name in names[:50]
    }
    return lock(
        tasks=tuple(LockedTask(name, None, 1) for name in names), picks=tuple(picks), swaps=swaps,
        chosen=picks[0].policy, rival=picks[1].policy,
        uniform=tuple(UniformPoint(step, 0.5, 1.7e308) for step in range(0, 10**12, 10**10)),
    )  # fmt: skip


def test_many_steps_are_thinned_to_their_doublings_and_the_choice() -> None:
    swaps = {"cats@1": tuple(Swap("a" * 40, "o/x", step, 0.5, 0.5) for step in range(1, 101))}
    swaps["cats@1"] += lock().swaps["cats@1"]
    table = heat_map(lock(swaps=swaps))
    assert table.steps == (1, 2, 4, 8, 16, 32, 64, 100)
    assert table.chosen == (2, None)
