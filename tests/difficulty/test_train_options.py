"""`drop_hardest` in a spec: it needs a difficulty, and a stream is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec, validate_spec

KNOWN = {"base": "b", "task": "t", "to": "o/n"}


def spec(**options: Any) -> TrainSpec:
    return validate_spec(TrainSpec, {**KNOWN, **options}, "train")


def test_rows_are_dropped_with_both_options() -> None:
    train_spec = spec(difficulty="d.json", drop_hardest=0.05)
    assert train_spec.drops_rows
    assert train_spec.settings["drop_hardest"] == 0.05


def test_a_run_that_drops_nothing_has_no_such_settings() -> None:
    assert not spec().drops_rows
    assert not {"difficulty", "drop_hardest"} & spec().settings.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_hardest": 0.05}, "`drop_hardest` has no effect here; `difficulty` and a"),
        ({"difficulty": "d.json"}, "`difficulty` has no effect here"),
        ({"difficulty": "d.json", "drop_hardest": 1.0}, "drop_hardest must be below 1"),
        (
            {"difficulty": "d.json", "drop_hardest": 0.1, "stream": True},
            "needs row numbers, but a stream",
        ),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec(**options)
