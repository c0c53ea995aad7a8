from __future__ import annotations

import pytest

from hubmerge.errors import HubmergeError, UnknownName, UsageError, join_with_or, raise_together


def test_an_unknown_name_suggests_close_ones() -> None:
    error = UnknownName("merge method", "tise", ["ties", "dare", "average"])
    assert error.message == "Unknown merge method 'tise'."
    assert error.hint == "Did you mean ties?"
    assert error.exit_code == 2


def test_a_name_close_to_none_lists_all() -> None:
    assert UnknownName("task", "zzzz", ["b", "a"]).hint == "Known: a, b."


def test_problems_are_raised_together() -> None:
    with pytest.raises(UsageError) as single:
        raise_together(UsageError, ["only this"])
    assert single.value.message == "only this"
    with pytest.raises(UsageError) as several:
        raise_together(UsageError, ["first", "second"], "Fix both.")
    assert "first" in several.value.message
    assert "second" in several.value.message
    assert several.value.hint == "Fix both."
    raise_together(UsageError, [])


def test_names_are_joined_with_or() -> None:
    assert [join_with_or(["a"]), join_with_or(["a", "b"]), join_with_or(["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]


def test_exit_codes() -> None:
    codes = {error.__name__: error.exit_code for error in _subclasses(HubmergeError)}
    assert codes == {
        "HubmergeError": 1, "UsageError": 2, "UnknownName": 2, "CheckpointError": 1, "DataError": 1,
        "TrainingDiverged": 1, "OutOfMemory": 1, "Busy": 75, "HubError": 1, "NotOnHub": 1,
        "NoAccess": 1, "HubUnreachable": 75, "HubOffline": 75, "IntegrityError": 3,
    }  # fmt: skip


def _subclasses(error: type[HubmergeError]) -> list[type[HubmergeError]]:
    return [error, *(error for child in error.__subclasses__() for error in _subclasses(child))]
