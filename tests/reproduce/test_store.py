"""Records of units: whole or not there, known by key and code; who may run beside whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubmerge.errors import Busy
from hubmerge.reproduce.store import Store
from tests.reproduce.trivial import unit


def test_a_record_is_read_as_it_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path, "c1")
    one = unit("a", unit("b"))
    put = store.put(one, {"tenth": 0.1, "steps": (1, 2)}, 1.23456)
    assert put.result == {"tenth": 0.1, "steps": [1, 2]}  # as it will be read
    got = store.get(one.key)
    assert got
    assert (got.result, got.code, got.seconds, got.kind) == (put.result, "c1", 1.235, "sum")
    said = json.loads((tmp_path / "units" / f"{one.key}.json").read_text())
    assert said["needs"] == {"b": unit("b").key}
    assert said["params"] == {"name": "a", "add": 1}


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    store = Store(tmp_path, "c1")
    a, b, c = unit("a"), unit("b"), unit("c")
    for one in (a, b):
        store.put(one, {}, 0.0)
    (tmp_path / "units" / f"{a.key}.json").write_text('{"kind": "su')
    (tmp_path / "units" / f"{c.key}.json").write_text("[]")
    assert list(store.known([a, b, c])) == [b.key]


def test_results_of_other_code_are_known_only_if_asked_for(tmp_path: Path) -> None:
    Store(tmp_path, "c1").put(unit("a"), {}, 0.0)
    later = Store(tmp_path, "c2")
    assert later.known([unit("a")]) == {}
    assert list(later.known([unit("a")], any_code=True)) == [unit("a").key]


def test_a_whole_run_is_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, "c1")
    with store.alone():
        with pytest.raises(Busy, match="Another hubmerge runs recipes"), store.alone():
            pass
        with pytest.raises(Busy), store.claimed(["a"]):
            pass
    with store.alone():
        pass


def test_runs_of_single_units_go_side_by_side(tmp_path: Path) -> None:
    store = Store(tmp_path, "c1")
    with store.claimed(["a", "b"]), store.claimed(["c"]):
        with pytest.raises(Busy, match="unit b"), store.claimed(["b", "d"]):
            pass
        with pytest.raises(Busy), store.alone():
            pass
        with store.claimed(["d"]):  # what was refused has let go of everything
            pass
