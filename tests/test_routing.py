"""routing.json: writing and reading, its means worked out by hand, and rejecting invalid ones."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError
from hubmerge.routing import ROUTING_JSON, Routing, parse_routing, read_routing
from tests.cards.moe_builders import routing


def routing_bytes(**changed: Any) -> bytes:
    return json.dumps({**json.loads(routing().to_bytes()), **changed}).encode()


def test_a_routing_is_read_as_it_was_written() -> None:
    data = routing().to_bytes()
    assert parse_routing(data, "here") == routing()
    assert parse_routing(data, "here").to_bytes() == data


def test_shares_are_written_to_six_digits() -> None:
    thirds = routing(layers=("a",), share=(((1 / 3, 2 / 3),), ((0.5, 0.5),)))
    assert json.loads(thirds.to_bytes())["share"] == [[[0.333333, 0.666667]], [[0.5, 0.5]]]


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=2 * 40))
def test_a_rounded_routing_can_be_read(weights: list[float]) -> None:
    total = math.fsum(weights)
    row = tuple(weight / total for weight in weights)
    names = tuple(f"e{index}" for index in range(len(row)))
    one_row = routing(tasks=("cats@1",), experts=names, layers=("a",), share=((row,),))
    assert parse_routing(one_row.to_bytes(), "here").to_bytes() == one_row.to_bytes()


def test_means_and_entropies_by_hand() -> None:
    # (0.6 + 0.7 + 0.8 + 0.9) / 4 and (0.45 + 0.5 + 0.5 + 0.55) / 4
    assert routing().mean_over_layers == [pytest.approx([0.75, 0.25]), pytest.approx([0.5, 0.5])]
    sparse = routing(layers=("a", "b"), share=(((1.0, 0.0), (0.5, 0.5)), ((1.0, 0.0), (1.0, 0.0))))
    assert sparse.entropies == [0.5, 0.0]


def test_unknown_keys_are_ignored() -> None:
    assert parse_routing(routing_bytes(later=1), "here") == routing()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": [[[0.5, 0.5]]]}, "not tasks x layers x experts"),
        ({"share": [[[0.5, 0.5, 0.0]] * 4] * 2}, "not tasks x layers x experts"),
        ({"share": [[[0.5, 0.4]] * 4] * 2}, "8 of its 8 rows of shares add up to 0.9"),
        ({"share": [[[1.5, -0.5]] * 4] * 2}, "share.0.0.0 must "),
        ({"share": [[["1", 0]] * 4] * 2}, "share.0.0.0 must "),
        ({"experts": ["cats", "cats"]}, "'cats' is 2 times among its experts"),
        (
            {"experts": ["cats", "a\x1b[31m"]},
            r"'a\\\\x1b\[31m' among its experts is not a valid name",
        ),
        ({"tasks": ["", "dogs@1"]}, "'' among its tasks is not a valid name"),
        ({"split": "x" * 301}, "among its split is not a valid name"),
        ({"layers": []}, "it has 0 layers"),
        (
            {"experts": [f"e{n}" for n in range(257)]},
            "it has 257 experts, and 1 to 256 are allowed",
        ),
        ({"format": 2}, "it has format 2, and this hubmerge knows 1"),
        ({"cost": {}}, "cost.parameters"),
        ({"cost": None}, "cost must "),
    ],
)
def test_an_invalid_routing_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        parse_routing(routing_bytes(**changed), "here")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"[" * 100_000, b"\xff", b"{}", b" " * 16_000_001,
     routing_bytes().replace(b"0.6", b"NaN"), routing_bytes().replace(b"0.6", b"1e999")],
)  # fmt: skip
def test_malformed_data_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"here is .*not a (valid )?routing\.json"):
        parse_routing(data, "here")


def test_all_problems_are_raised_at_once() -> None:
    with pytest.raises(IntegrityError, match=r"(?s)2 problems:.*among its tasks.*rows of shares"):
        parse_routing(routing_bytes(tasks=["a", "a"], share=[[[0.5, 0.4]] * 4] * 2), "here")


def test_the_routing_of_a_folder(tmp_path: Any) -> None:
    assert read_routing(tmp_path) is None
    (tmp_path / ROUTING_JSON).write_bytes(routing().to_bytes())
    assert read_routing(tmp_path) == routing()


def test_a_routing_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        routing().split = "test"  # type: ignore[misc]
    assert isinstance(routing(), Routing)
