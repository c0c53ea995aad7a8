"""What a routing tells: in words, as a table, as CSV and as a picture, however large it is."""

from __future__ import annotations

import csv
import io
import struct

import matplotlib
import pytest

from hubmerge.cards.routing import map_words, mean_rows, own_words, routing_csv
from hubmerge.cards.routing_map import routing_picture
from hubmerge.routing import Routing
from tests.cards.mixtures import routing
from tests.cards.worlds import TASKS


def test_the_words_by_hand() -> None:
    # Entropies: cats (0.971 + 0.881 + 0.722 + 0.469) / 4, dogs (0.993 + 1 + 1 + 0.993) / 4.
    assert own_words(routing(), TASKS) == (
        "On validation, as a mean over 4 layers, a task's own expert gets this share of its "
        "routing weight: cats 75.00 %, dogs 50.00 %. Were all alike, each of 2 experts would get "
        "50.00 %. The entropy of a layer's mean weights is 0.76 to 1.00 bits, of at most 1.00."
    )
    assert map_words(routing()).endswith(
        "The largest weight is 90.00 %, of cats to cats in blocks.1.mlp."
    )


def test_without_a_known_task_no_expert_is_its_own() -> None:
    for unknown in [(None, None), TASKS[:1]]:
        assert own_words(routing(), unknown).startswith("No expert is known to be a task's own.")
        assert [row[3] for row in mean_rows(routing(), unknown)] == ["-", "-"]


def test_two_experts_of_one_task_are_both_its_own() -> None:
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


def test_a_spreadsheet_takes_a_hostile_name_as_text() -> None:
    bad = routing(tasks=("=cmd()", "dogs@1"), experts=("+a,b", 'c"'), layers=("@x", "b", "c", "d"))
    rows = list(csv.reader(io.StringIO(routing_csv(bad))))
    assert rows[1] == ["'=cmd()", "'@x", "'+a,b", "0.6"]
    assert {len(row) for row in rows} == {4}


@pytest.mark.parametrize("trained_for", [(), TASKS])
def test_a_picture_is_the_same_bytes_again(trained_for: tuple[str, ...]) -> None:
    once = routing_picture(routing(), trained_for)
    assert once.startswith(b"\x89PNG")
    assert struct.unpack(">I", once[16:20]) == (1440,)
    with matplotlib.rc_context({"font.size": 20, "image.cmap": "jet"}):
        assert routing_picture(routing(), trained_for) == once


def test_the_own_experts_are_outlined() -> None:
    assert routing_picture(routing(), TASKS) != routing_picture(routing())


def test_a_routing_of_any_size_is_drawn_at_a_bearable_one() -> None:
    width, height = struct.unpack(">II", routing_picture(huge())[16:24])
    assert width == 1440
    assert height <= 4000


def test_one_of_each_is_drawn() -> None:
    one = routing(tasks=("cats@1",), experts=("cats",), layers=("a",), share=(((1.0,),),))
    assert routing_picture(one, ("cats@1",)).startswith(b"\x89PNG")
    assert "0.00 bits, of at most 0.00" in own_words(one, ("cats@1",))


def huge() -> Routing:
    """Twenty tasks, forty experts and five hundred layers, with long names that are formulas."""
    experts = tuple(f"$\\frac{{{number}}}$-{'x' * 60}" for number in range(40))
    layers = tuple(f"model.layers.{number // 7}.{'y' * 60}.{number % 7}" for number in range(500))
    tasks = tuple(f"task-{number}-{'z' * 60}@1" for number in range(20))
    share = (((1 / 40,) * 40,) * 500,) * 20
    return routing(tasks=tasks, experts=experts, layers=layers, share=share)
