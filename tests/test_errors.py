from __future__ import annotations

import pytest

from hubmerge.errors import HubmergeError, UnknownName, UsageError, either, raise_together


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    error = UnknownName("merge method", "tise", ["ties", "dare", "average"])
    assert error.message == "Unknown merge method 'tise'."
    assert error.hint == "Did you mean ties?"
    assert error.exit_code == 2


def test_a_name_near_nothing_is_answered_with_all() -> None:
    assert UnknownName("task", "zzzz", ["b", "a"]).hint == "Known: a, b."


def test_problems_arrive_together() -> None:
    with pytest.raises(UsageError) as one:
        raise_together(UsageError, ["only this"])
    assert one.value.message == "only this"
    with pytest.raises(UsageError) as two:
        raise_together(UsageError, ["first", "second"], "Mend both.")
    assert "first" in two.value.message
    assert "second" in two.value.message
    assert two.value.hint == "Mend both."
    raise_together(UsageError, [])


def test_choices_read_as_people_say_them() -> None:
    assert [either(["a"]), either(["a", "b"]), either(["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]


def test_the_contracts_exit_codes() -> None:
    codes = {error.__name__: error.exit_code for error in _tree(HubmergeError)}
    assert codes == {
        "HubmergeError": 1, "UsageError": 2, "UnknownName": 2, "CheckpointError": 1, "DataError": 1,
        "TrainingDiverged": 1, "OutOfMemory": 1, "Busy": 75, "HubError": 1, "NotOnHub": 1,
        "NoAccess": 1, "HubUnreachable": 75, "IntegrityError": 3,
    }  # fmt: skip


def _tree(error: type[HubmergeError]) -> list[type[HubmergeError]]:
    return [error, *(kin for child in error.__subclasses__() for kin in _tree(child))]
