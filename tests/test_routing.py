"""routing.json: the same bytes again, its means by hand, and whatever is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError
from hubmerge.routing import NAME, Routing, parse_routing, routing_beside
from tests.cards.mixtures import routing


def said(**changed: Any) -> bytes:
    return json.dumps({**json.loads(routing().to_bytes()), **changed}).encode()


def test_it_is_read_as_it_was_written() -> None:
    once = routing().to_bytes()
    assert parse_routing(once, "here") == routing()
    assert parse_routing(once, "here").to_bytes() == once


def test_shares_are_written_to_six_digits() -> None:
    thirds = routing(layers=("a",), share=(((1 / 3, 2 / 3),), ((0.5, 0.5),)))
    assert json.loads(thirds.to_bytes())["share"] == [[[0.333333, 0.666667]], [[0.5, 0.5]]]


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=2 * 40))
def test_rounding_never_makes_it_unreadable(weights: list[float]) -> None:
    total = math.fsum(weights)
    row = tuple(weight / total for weight in weights)
    names = tuple(f"e{place}" for place in range(len(row)))
    made = routing(tasks=("cats@1",), experts=names, layers=("a",), share=((row,),))
    assert parse_routing(made.to_bytes(), "here").to_bytes() == made.to_bytes()


def test_means_and_entropies_by_hand() -> None:
    # (0.6 + 0.7 + 0.8 + 0.9) / 4 and (0.45 + 0.5 + 0.5 + 0.55) / 4
    assert routing().over_layers == [pytest.approx([0.75, 0.25]), pytest.approx([0.5, 0.5])]
    sure = routing(layers=("a", "b"), share=(((1.0, 0.0), (0.5, 0.5)), ((1.0, 0.0), (1.0, 0.0))))
    assert sure.entropies == [0.5, 0.0]


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert parse_routing(said(later=1), "here") == routing()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"share": [[[0.5, 0.5]]]}, "not tasks x layers x experts"),
        ({"share": [[[0.5, 0.5, 0.0]] * 4] * 2}, "not tasks x layers x experts"),
        ({"share": [[[0.5, 0.4]] * 4] * 2}, "8 of its 8 rows of shares add up to 0.9"),
        ({"share": [[[1.5, -0.5]] * 4] * 2}, "share.0.0.0: "),
        ({"share": [[["1", 0]] * 4] * 2}, "share.0.0.0: "),
        ({"experts": ["cats", "cats"]}, "'cats' is 2 times among its experts"),
        ({"experts": ["cats", "a\x1b[31m"]}, r"'a\\\\x1b\[31m' is no name among its experts"),
        ({"tasks": ["", "dogs@1"]}, "'' is no name among its tasks"),
        ({"split": "x" * 301}, "is no name among its split"),
        ({"layers": []}, "it has 0 layers"),
        ({"experts": [f"e{n}" for n in range(257)]}, "it has 257 experts, and may have 1 to 256"),
        ({"format": 2}, "it has format 2, and this hubmerge knows 1"),
        ({"cost": {}}, "cost.parameters"),
        ({"cost": None}, "cost: "),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        parse_routing(said(**changed), "here")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"[" * 100_000, b"\xff", b"{}", b" " * 16_000_001, said().replace(b"0.6", b"NaN"),
     said().replace(b"0.6", b"1e999")],
)  # fmt: skip
def test_bytes_that_are_no_routing(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"here is .*no routing"):
        parse_routing(data, "here")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(IntegrityError, match=r"(?s)2 problems:.*among its tasks.*rows of shares"):
        parse_routing(said(tasks=["a", "a"], share=[[[0.5, 0.4]] * 4] * 2), "here")


def test_the_routing_of_a_folder(tmp_path: Any) -> None:
    assert routing_beside(tmp_path) is None
    (tmp_path / NAME).write_bytes(routing().to_bytes())
    assert routing_beside(tmp_path) == routing()


def test_it_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        routing().split = "test"  # type: ignore[misc]
    assert isinstance(routing(), Routing)
