"""forgotten.json: writing and reading, and rejecting invalid ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.forgetting import FORGOTTEN_JSON, Forgetting, parse_forgetting, read_forgetting
from tests.cards.forgetting_builders import MODEL, cats_forgetting, forgetting


def forgetting_bytes(**changed: Any) -> bytes:
    return json.dumps({**json.loads(forgetting().to_bytes()), **changed}).encode()


def change_expert(**changed: Any) -> dict[str, Any]:
    return {"experts": [{**dataclasses.asdict(cats_forgetting()), **changed}]}


def test_a_forgetting_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = forgetting().to_bytes()
    assert parse_forgetting(data, "here", MODEL) == forgetting()
    assert read_forgetting(tmp_path, MODEL) is None
    (tmp_path / FORGOTTEN_JSON).write_bytes(data)
    assert read_forgetting(tmp_path, MODEL) == forgetting()


def test_unknown_keys_are_ignored() -> None:
    assert isinstance(parse_forgetting(forgetting_bytes(later=1), "here", MODEL), Forgetting)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "b" * 64}, "is about another model \\(bbbbbbbbbbbb, this is "),
        ({"format": 2}, "format 2"),
        ({"experts": []}, "has 0 experts"),
        (change_expert(bins={"counts": [1], "known": [1, 2]}), "has 1 and 2 bins"),
        (
            change_expert(bins={"counts": [2], "known": [1]}),
            "has more forgotten rows than known ones",
        ),
        (change_expert(before=1.5), "experts.0.before"),
        (change_expert(expert="a\u202eb"), "is not a valid name"),
        (
            change_expert(classes=[{"name": "x" * 301, "known": 1, "forgotten": 0}]),
            "is not a valid name",
        ),
    ],
)
def test_an_invalid_forgetting_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        parse_forgetting(forgetting_bytes(**changed), "here", MODEL)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"1" * 16_000_001])
def test_malformed_data_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^here "):
        parse_forgetting(data, "here", MODEL)
