"""Routing weights in words, as a table, as CSV and as a picture of limited size."""

from __future__ import annotations

import csv
import io
import struct

import matplotlib
import pytest

from hubmerge.cards.routing import describe_map, describe_routing, mean_rows, routing_csv
from hubmerge.cards.routing_map import routing_map_png
from hubmerge.routing import Routing
from tests.cards.builders import TASKS
from tests.cards.moe_builders import routing


def test_the_descriptions() -> None:
    # Entropies: cats (0.971 + 0.881 + 0.722 + 0.469) / 4, dogs (0.993 + 1 + 1 + 0.993) / 4.
    assert describe_routing(routing(), TASKS) == (
        "On validation, as a mean over 4 layers, a task's own expert gets this share of its "
        "routing weight: cats 75.00 %, dogs 50.00 %. With equal weights, each of 2 experts would "
        "get 50.00 %. The entropy of a layer's mean weights is 0.76 to 1.00 bits, of at most 1.00."
    )
    assert describe_map(routing()).endswith(
        "The largest weight is 90.00 %, of cats to cats in blocks.1.mlp."
    )


def test_without_known_tasks_there_are_no_own_experts() -> None:
    for unknown in [(None, None), TASKS[:1]]:
        assert describe_routing(routing(), unknown).startswith("It is not known which expert")
        assert [row[3] for row in mean_rows(routing(), unknown)] == ["-", "-"]


def test_two_experts_of_one_task_are_added() -> None:
    assert [row[3] for row in mean_rows(routing(), ("cats@1", "cats@1"))] == ["100.00", "-"]


def test_the_table_has_a_column_for_each_expert() -> None:
    assert mean_rows(routing(), TASKS) == [
        ["cats", "75.00", "25.00", "75.00", "0.76"],
        ["dogs", "50.00", "50.00", "50.00", "1.00"],
    ]
    assert {len(row) for row in mean_rows(huge(), ())} == {1 + 12 + 2}


def test_the_csv_has_every_number() -> None:
    lines = routing_csv(routing()).splitlines()
    assert lines[:3] == [
        "task,layer,expert,share",
        "cats@1,blocks.0.attn,cats,0.6",
        "cats@1,blocks.0.attn,dogs,0.4",
    ]
    assert len(lines) == 1 + 2 * 4 * 2


def test_a_hostile_name_is_not_a_formula_in_the_csv() -> None:
    bad = routing(tasks=("=cmd()", "dogs@1"), experts=("+a,b", 'c"'), layers=("@x", "b", "c", "d"))
    rows = list(csv.reader(io.StringIO(routing_csv(bad))))
    assert rows[1] == ["'=cmd()", "'@x", "'+a,b", "0.6"]
    assert {len(row) for row in rows} == {4}


@pytest.mark.parametrize("trained_for", [(), TASKS])
def test_a_picture_is_reproducible(trained_for: tuple[str, ...]) -> None:
    picture = routing_map_png(routing(), trained_for)
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">I", picture[16:20]) == (1440,)
    with matplotlib.rc_context({"font.size": 20, "image.cmap": "jet"}):
        assert routing_map_png(routing(), trained_for) == picture


def test_the_own_experts_are_outlined() -> None:
    assert routing_map_png(routing(), TASKS) != routing_map_png(routing())


def test_the_size_of_the_picture_is_limited() -> None:
    width, height = struct.unpack(">II", routing_map_png(huge())[16:24])
    assert width == 1440
    assert height <= 4000


def test_one_task_one_expert_one_layer() -> None:
    smallest = routing(tasks=("cats@1",), experts=("cats",), layers=("a",), share=(((1.0,),),))
    assert routing_map_png(smallest, ("cats@1",)).startswith(b"\x89PNG")
    assert "0.00 bits, of at most 0.00" in describe_routing(smallest, ("cats@1",))


def huge() -> Routing:
    """Ten tasks, forty experts and seventy layers, with long formulas as names."""
    experts = tuple(f"$\\frac{{{number}}}$-{'x' * 60}" for number in range(40))
    layers = tuple(f"model.layers.{number // 7}.{'y' * 60}.{number % 7}" for number in range(70))
    tasks = tuple(f"task-{number}-{'z' * 60}@1" for number in range(10))
    share = (((1 / 40,) * 40,) * 70,) * 10
    return routing(tasks=tasks, experts=experts, layers=layers, share=share)
