"""Numbers of a lock that follow from others: edited ones are refused, honest ones are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError
from hubmerge.lock_file import parse_lock
from tests.cards.builders import lock

Fields = dict[str, Any]
MODEL_CARDS = Path(__file__).parents[1] / "model_cards"


def chosen(fields: Fields) -> Any:
    return fields["picks"][2]


def refusal(change: Callable[[Fields], object]) -> str:
    """The message for a lock with this change."""
    fields = json.loads(lock().to_bytes())
    change(fields)
    with pytest.raises(IntegrityError) as error:
        parse_lock(json.dumps(fields).encode(), "the.lock")
    return error.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: chosen(f).update(accuracy=0.9), "the accuracy of pick 'coordinate' is 0.9, and"),
        (lambda f: chosen(f).update(stderr=0.001), "the standard error of pick 'coordinate'"),
        (lambda f: chosen(f)["tasks"].update({"cats@1": 0.7311}), "is no share of its 400 rows"),
        (lambda f: chosen(f)["tasks"].pop("cats@1"), "has no accuracy on 'cats@1'"),
        (lambda f: chosen(f).update(gain=[0.3, 0.26, 0.34]), "the gain of pick 'coordinate'"),
        (lambda f: chosen(f).update(gain=[0.08, 0.079, 0.081]), "the interval of pick"),
        (lambda f: chosen(f).update(gain=[0.08, -0.4, 0.56]), "the interval of pick"),
        (lambda f: chosen(f).update(gain=[0.08, 0.12, 0.04]), "the interval of pick"),
        (lambda f: f["picks"][0].update(gain=[0.0, -0.1, 0.1]), "is the one to beat"),
        (lambda f: chosen(f).update(gain=None), "conclusive = True"),
        (lambda f: f.update(conclusive=False), "conclusive = False"),
        (lambda f: f.update(chosen="last"), "conclusive = True"),
        (lambda f: f.update(rival="uniform"), "the gain of pick"),
        (lambda f: chosen(f).update(evaluations=99), "after 99 merges"),
        (lambda f: f["spent"].update(evaluations=2), "after 12 merges"),
        (lambda f: f["tasks"][0].update(rows=40), "the standard error of"),
        (lambda f: f["tasks"][0].update(rows=0), "is no share of its 0 rows"),
        (lambda f: f["swaps"]["cats@1"][1].update(merged=0.99), "the merge with"),
        (lambda f: f["swaps"]["cats@1"][1].update(step=7), "and it is step 7"),
        (lambda f: f["swaps"]["cats@1"].pop(1), "no candidate of its task"),
        (lambda f: f["swaps"]["dogs@1"][1].update(merged=None), "was not measured"),
        (lambda f: f["swaps"].update(birds=[]), "'birds', which is not a task"),
        (lambda f: f["uniform"][1].update(accuracy=0.9), "the curve at its best step"),
        (lambda f: f["uniform"][1].update(stderr=0.9), "the error of the curve"),
        (lambda f: f["uniform"].reverse(), "do not rise"),
        (lambda f: chosen(f)["experts"][0].update(step=2), "another step than its pin"),
        (lambda f: chosen(f)["experts"][0].update(last_step=4), "another last_step than its pin"),
        (lambda f: chosen(f)["experts"][0].update(task="cows@1"), "another task than its pin"),
    ],
)
def test_an_edited_number_is_refused(change: Callable[[Fields], object], message: str) -> None:
    assert message in refusal(change)


@given(
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["accuracy", "stderr", "cats@1", "dogs@1"]),
    st.floats(-0.5, 0.5).filter(lambda change: abs(change) > 1e-6),
)
def test_no_number_of_a_pick_can_change_alone(number: int, name: str, change: float) -> None:
    def edit(fields: Fields) -> None:
        pick = fields["picks"][number]
        where = pick["tasks"] if "@" in name else pick
        where[name] = min(max(where[name] + change, 0.0), 1.0)

    assert refusal(edit)


def fitted(change: Callable[[Fields], object] = lambda f: None) -> bytes:
    """A lock whose gain of 8 points is cross-fitted, with a control and this change."""
    fields = json.loads(lock().to_bytes())
    fields["cross_fit"] = {
        "chosen": ["coordinate", "uniform"],
        "steps": [[4, 2], [4, 4]],
        "accuracy": 0.67,
        "rival": 0.59,
        "seed_stderr": 0.01,
        "counts": {"cats@1": [28, 312, 60], "dogs@1": [28, 312, 60]},
    }
    fields["controls"] = [
        {"kind": "base", "name": "o/base", "accuracy": 0.5, "gain": [0.17, 0.12, 0.22]}
    ]
    fields["predicted_gain"] = 0.02
    change(fields)
    return json.dumps(fields).encode()


def test_a_cross_fitted_lock_is_read() -> None:
    assert parse_lock(fitted(), "the.lock").controls[0].accuracy == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["controls"][0].update(accuracy=0.1), "the gain over the control 'base' is"),
        (lambda f: f["controls"][0].update(gain=[0.17, 0.18, 0.22]), "does not hold the gain"),
        (lambda f: f["controls"][0].update(gain=[0.3, 0.2, 0.4]), "the gain over the control"),
        (lambda f: f["cross_fit"].update(seed_stderr=0.2), "20.00 points between seeds"),
        (lambda f: f["cross_fit"].update(seed_stderr=-0.1), "not a valid lock"),
        (lambda f: f["cross_fit"].update(accuracy=0.97, rival=0.89), "by what was counted"),
        (lambda f: f["cross_fit"].update(accuracy=0.12, rival=0.04), "by what was counted"),
        (lambda f: f["cross_fit"].update(steps=[[4], [4, 4]]), "not one step for each of 2"),
        (lambda f: f["cross_fit"].update(chosen=["uniform"]), "not one step for each of 2"),
        (lambda f: f.update(predicted_gain=-0.5), "not a valid lock"),
    ],
)
def test_an_edited_number_of_the_evidence_is_refused(
    change: Callable[[Fields], object], message: str
) -> None:
    with pytest.raises(IntegrityError) as error:
        parse_lock(fitted(change), "the.lock")
    assert message in error.value.message


def test_a_control_without_rows_that_did_not_choose_is_refused() -> None:
    controls = [{"kind": "base", "name": "o/base", "accuracy": 0.5, "gain": [0.1, 0.0, 0.2]}]
    assert "did not choose" in refusal(lambda f: f.update(controls=controls))


def test_all_wrong_numbers_are_named_at_once() -> None:
    def edit(fields: Fields) -> None:
        chosen(fields)["accuracy"] = 0.9
        fields["picks"][1]["stderr"] = 0.5

    assert "problems" in refusal(edit)


@pytest.mark.parametrize("path", sorted(MODEL_CARDS.glob("*/hubmerge.lock")), ids=str)
def test_locks_of_earlier_versions_are_read(path: Path) -> None:
    assert parse_lock(path.read_bytes(), "old").to_bytes()


def graded(change: Callable[[Fields], object]) -> Fields:
    """A lock whose tasks are measured by numbers between 0 and 1, with this change."""
    fields: Fields = json.loads(lock().to_bytes())
    for locked in fields["tasks"]:
        locked["metric"] = "f1"
    change(fields)
    return fields


def test_numbers_between_right_and_wrong_need_not_be_shares_of_rows() -> None:
    data = json.dumps(graded(lambda f: chosen(f).update(stderr=0.001))).encode()
    read = parse_lock(data, "the.lock")
    assert [task.metric for task in read.tasks] == ["f1"] * len(read.tasks)
    assert parse_lock(read.to_bytes(), "the.lock") == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: chosen(f).update(accuracy=0.9), "the accuracy of pick 'coordinate' is 0.9, and"),
        (lambda f: chosen(f).update(stderr=0.4), "is 0.4, and at most"),
        (lambda f: chosen(f).update(gain=[0.3, 0.26, 0.34]), "the gain of pick 'coordinate'"),
        (lambda f: f["tasks"][0].update(rows=0), "is no share of its 0 rows"),
    ],
)
def test_numbers_between_right_and_wrong_still_follow_from_each_other(
    change: Callable[[Fields], object], message: str
) -> None:
    with pytest.raises(IntegrityError) as error:
        parse_lock(json.dumps(graded(change)).encode(), "the.lock")
    assert message in error.value.message
