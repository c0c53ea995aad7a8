"""The engine of one machine: real processes, their deaths, their threads and their GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce import runner
from hubmerge.reproduce.engines.engine import Perform
from hubmerge.reproduce.engines.gpus import Gpus
from hubmerge.reproduce.engines.inline import Inline
from hubmerge.reproduce.engines.job import do_job, find, name_of, read_done, say_job
from hubmerge.reproduce.engines.local import Local
from hubmerge.reproduce.runner import Event, run
from hubmerge.reproduce.store import Store
from hubmerge.reproduce.unit import Result, Shop, Unit, with_needs
from tests.reproduce.trivial import perform, shop, unit, whereabouts


def local(folder: Path, work: Perform = perform, **options: object) -> Local:
    said = {"cores": 2, "logs": folder / "logs", "environment": dict(os.environ)} | options
    return Local(work, shop(folder / "shop"), **said)  # type: ignore[arg-type]


def plan() -> list[Unit]:
    firsts = [unit(f"a{number}", add=0.1 * number) for number in range(4)]
    return with_needs([unit("left", *firsts[:2]), unit("right", *firsts[1:])])


def test_a_job_is_the_same_after_its_way_as_text(tmp_path: Path) -> None:
    needed = unit("a")
    top = unit("top", needed, gpus=0.5)
    seen = []

    def look(unit: Unit, inputs: dict[str, Result], shop: Shop) -> Result:
        seen.append((unit, inputs, shop))
        return {"tenth": 0.1}

    place = Shop("local", "me", tmp_path, tmp_path / "recipes", "cpu")
    done = read_done(do_job(say_job(top, {"a": {"sum": 0.3}}, place), look))  # type: ignore[arg-type]
    (got, inputs, where) = seen[0]
    assert (got.key, got.params, got.gpus) == (top.key, top.params, 0.5)
    assert got.needs["a"].key == needed.key
    assert inputs == {"a": {"sum": 0.3}}
    assert where == place
    assert (done.key, done.result) == (top.key, {"tenth": 0.1})
    assert find(name_of(perform)) is perform


def test_local_and_inline_come_to_the_same_bytes(tmp_path: Path) -> None:
    units = plan()
    for name, engine in {
        "local": local(tmp_path), "inline": Inline(perform, shop(tmp_path))
    }.items():  # fmt: skip
        with closing(engine):
            assert len(run(units, engine, Store(tmp_path / name, "c")).made) == 6
    for one in units:
        both = [Store(tmp_path / name, "c").get(one.key) for name in ("local", "inline")]
        assert both[0].result == both[1].result  # type: ignore[union-attr]


def test_workers_live_on_and_know_their_threads(tmp_path: Path) -> None:
    units = [unit(f"u{number}", cpus=cpus) for number, cpus in enumerate((1, 1, 3, 3))]
    environment = {**os.environ, "GREETING": "hello"}
    with closing(local(tmp_path, whereabouts, workers=1, environment=environment)) as engine:
        records = run(units, engine, Store(tmp_path, "c")).records
    found = [records[one.key].result for one in units]
    assert [one["OMP_NUM_THREADS"] for one in found] == ["1", "1", "3", "3"]
    assert [one["MKL_NUM_THREADS"] for one in found] == ["1", "1", "3", "3"]
    assert found[0]["pid"] == found[1]["pid"] != found[2]["pid"] == found[3]["pid"]
    assert {one["GREETING"] for one in found} == {"hello"}
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} == {""}
    printed = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert printed.count("a library that prints") == 4


def test_each_unit_sees_a_gpu_of_its_own(tmp_path: Path) -> None:
    units = [unit(f"u{number}", gpus=1, sleep=0.3) for number in range(2)]
    with closing(local(tmp_path, whereabouts, gpus=("4", "7"))) as engine:
        records = run(units, engine, Store(tmp_path, "c")).records
    seen = [records[one.key].result["CUDA_VISIBLE_DEVICES"] for one in units]
    assert sorted(seen) == ["4", "7"]


def test_gpus_are_shared_out_in_parts_and_whole() -> None:
    gpus = Gpus(["0", "1"])
    assert gpus.take(0.5) == gpus.take(0.5) == ("0",)
    assert gpus.take(1.0) == ("1",)
    assert not gpus.free(0.5)
    assert gpus.free(0)
    gpus.give(0.5, ["0"])
    assert gpus.free(0.5)
    assert not gpus.free(1.0)
    gpus.give(0.5, ["0"])
    gpus.give(1.0, ["1"])
    assert gpus.take(2) == ("0", "1")


def test_units_that_ask_for_more_gpus_than_there_are_never_start(tmp_path: Path) -> None:
    engine = local(tmp_path)
    with closing(engine), pytest.raises(UsageError, match="ask for 1 GPUs, and 0 can be seen"):
        run([unit("a", gpus=1)], engine, Store(tmp_path, "c"))


def test_a_worker_that_dies_costs_its_unit_one_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_PAUSES_S", (0.01,))
    seen: list[Event] = []
    units = [unit("a", do="die-once"), unit("b", do="die"), unit("c")]
    with closing(local(tmp_path)) as engine:
        outcome = run(units, engine, Store(tmp_path, "c"), seen.append, retries=1)
    assert sorted(one.about for one in outcome.made) == ["a", "c"]
    assert outcome.failed[0].message == "Its worker was killed by SIGKILL."
    assert "runs out of memory" in outcome.failed[0].hint
    assert sorted(one.unit.about for one in seen if one.what == "again") == ["a", "b"]


_DRIVER = """
import os, sys
from pathlib import Path
from hubmerge.reproduce.runner import run
from hubmerge.reproduce.store import Store
from tests.reproduce.test_engines import local
from tests.reproduce.trivial import unit, whereabouts
folder = Path(sys.argv[1])
units = [unit("a"), unit("b"), *(unit(f"long{n}", sleep=60) for n in range(3))]
run(units, local(folder, whereabouts), Store(folder, "c"), lambda e: print(e.what, flush=True))
"""


def test_a_worker_that_dies_idle_is_not_missed(tmp_path: Path) -> None:
    first, second = unit("first"), unit("second")
    with closing(local(tmp_path, workers=2)) as engine:
        engine.start(first, {})
        assert [done.key for done in engine.wait(None)] == [first.key]
        [idle] = engine._idle
        idle.process.kill()
        idle.process.wait()
        assert list(engine.wait(0.1)) == []
        engine.start(second, {})
        assert [done.key for done in engine.wait(None)] == [second.key]


def test_a_killed_run_keeps_what_was_finished_and_leaves_no_worker(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path)],
        cwd=root, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdout
    for line in driver.stdout:
        if line == "started\n" and len(list(tmp_path.glob("units/*.json"))) == 2:
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    records = [Store(tmp_path, "c").get(one.key) for one in (unit("a"), unit("b"))]
    pids = {record.result["pid"] for record in records if record}
    assert len(list(tmp_path.glob("units/*"))) == 2
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
