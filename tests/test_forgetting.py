"""forgotten.json: the same bytes again, and whatever is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.forgetting import NAME, Forgetting, forgetting_beside, parse_forgetting
from tests.cards.forgettings import MODEL, cats, forgetting


def said(**changed: Any) -> bytes:
    return json.dumps({**json.loads(forgetting().to_bytes()), **changed}).encode()


def one(**changed: Any) -> dict[str, Any]:
    return {"experts": [{**dataclasses.asdict(cats()), **changed}]}


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    once = forgetting().to_bytes()
    assert parse_forgetting(once, "here", MODEL) == forgetting()
    assert forgetting_beside(tmp_path, MODEL) is None
    (tmp_path / NAME).write_bytes(once)
    assert forgetting_beside(tmp_path, MODEL) == forgetting()


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert isinstance(parse_forgetting(said(later=1), "here", MODEL), Forgetting)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "b" * 64}, "is about another model \\(bbbbbbbbbbbb, this is "),
        ({"format": 2}, "format 2"),
        ({"experts": []}, "tells of 0 experts"),
        (one(bins={"counts": [1], "known": [1, 2]}), "has 1 and 2 bins"),
        (one(bins={"counts": [2], "known": [1]}), "forgot more than it knew"),
        (one(before=1.5), "experts.0.before"),
        (one(expert="a\u202eb"), "is no name"),
        (one(classes=[{"name": "x" * 301, "known": 1, "forgotten": 0}]), "is no name"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        parse_forgetting(said(**changed), "here", MODEL)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"1" * 16_000_001])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^here "):
        parse_forgetting(data, "here", MODEL)
