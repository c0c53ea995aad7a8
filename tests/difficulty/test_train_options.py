"""`drop_hardest` as a spec says it: with a difficulty, without a stream, silent where unused."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec, validated

KNOWN = {"base": "b", "task": "t", "to": "o/n"}


def spec(**said: Any) -> TrainSpec:
    return validated(TrainSpec, {**KNOWN, **said}, "train")


def test_it_drops_where_both_are_said() -> None:
    said = spec(difficulty="d.json", drop_hardest=0.05)
    assert said.drops
    assert said.settings["drop_hardest"] == 0.05


def test_a_run_that_drops_nothing_is_what_it_was() -> None:
    assert not spec().drops
    assert not {"difficulty", "drop_hardest"} & spec().settings.keys()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"drop_hardest": 0.05}, "`drop_hardest` has no effect here; `difficulty` and a"),
        ({"difficulty": "d.json"}, "`difficulty` has no effect here"),
        ({"difficulty": "d.json", "drop_hardest": 1.0}, "drop_hardest: .* less than 1"),
        ({"difficulty": "d.json", "drop_hardest": 0.1, "stream": True}, "a stream has no numbers"),
    ],
)
def test_what_cannot_be_meant(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec(**said)
