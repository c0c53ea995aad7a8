"""Records of units by key and code, and the locks of runners in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubmerge.errors import Busy
from hubmerge.reproduce.store import ResultStore
from tests.reproduce.trivial import unit


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "c1")
    item = unit("a", unit("b"))
    put = store.put(item, {"tenth": 0.1, "steps": (1, 2)}, 1.23456)
    assert put.result == {"tenth": 0.1, "steps": [1, 2]}  # as it will be read
    got = store.get(item.key)
    assert got
    assert (got.result, got.code, got.seconds, got.kind) == (put.result, "c1", 1.235, "sum")
    record = json.loads((tmp_path / "units" / f"{item.key}.json").read_text())
    assert record["needs"] == {"b": unit("b").key}
    assert record["params"] == {"name": "a", "add": 1}


def test_unreadable_records_are_ignored(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "c1")
    a, b, c = unit("a"), unit("b"), unit("c")
    for item in (a, b):
        store.put(item, {}, 0.0)
    (tmp_path / "units" / f"{a.key}.json").write_text('{"kind": "su')
    (tmp_path / "units" / f"{c.key}.json").write_text("[]")
    assert list(store.records([a, b, c])) == [b.key]


def test_results_of_other_code_are_used_only_on_request(tmp_path: Path) -> None:
    ResultStore(tmp_path, "c1").put(unit("a"), {}, 0.0)
    later = ResultStore(tmp_path, "c2")
    assert later.records([unit("a")]) == {}
    assert list(later.records([unit("a")], any_code=True)) == [unit("a").key]


def test_a_complete_run_locks_the_folder(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "c1")
    with store.lock_all():
        with pytest.raises(Busy, match="Another hubmerge runs recipes"), store.lock_all():
            pass
        with pytest.raises(Busy), store.lock_units(["a"]):
            pass
    with store.lock_all():
        pass


def test_runs_of_different_units_share_the_folder(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "c1")
    with store.lock_units(["a", "b"]), store.lock_units(["c"]):
        with pytest.raises(Busy, match="unit b"), store.lock_units(["b", "d"]):
            pass
        with pytest.raises(Busy), store.lock_all():
            pass
        with store.lock_units(["d"]):  # the refused lock was released
            pass
