"""The engine for one machine: worker processes, lost workers, threads and GPUs."""

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
from hubmerge.reproduce.engines.gpus import GpuPool
from hubmerge.reproduce.engines.inline import InlineEngine
from hubmerge.reproduce.engines.job import (
    decode_outcome,
    encode_job,
    find_function,
    function_name,
    run_job,
)
from hubmerge.reproduce.engines.local import LocalEngine
from hubmerge.reproduce.runner import UnitEvent, run
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import Result, Unit, WorkContext, with_needs
from tests.reproduce.trivial import describe_process, make_context, perform, unit


def local(folder: Path, work: Perform = perform, **options: object) -> LocalEngine:
    arguments = {"cores": 2, "logs": folder / "logs", "environment": dict(os.environ)} | options
    return LocalEngine(work, make_context(folder / "work"), **arguments)  # type: ignore[arg-type]


def plan() -> list[Unit]:
    firsts = [unit(f"a{number}", add=0.1 * number) for number in range(4)]
    return with_needs([unit("left", *firsts[:2]), unit("right", *firsts[1:])])


def test_a_job_survives_encoding(tmp_path: Path) -> None:
    needed = unit("a")
    top = unit("top", needed, gpus=0.5)
    seen = []

    def look(unit: Unit, inputs: dict[str, Result], context: WorkContext) -> Result:
        seen.append((unit, inputs, context))
        return {"tenth": 0.1}

    context = WorkContext("local", "me", tmp_path, tmp_path / "recipes", "cpu")
    done = decode_outcome(run_job(encode_job(top, {"a": {"sum": 0.3}}, context), look))  # type: ignore[arg-type]
    (got, inputs, where) = seen[0]
    assert (got.key, got.params, got.gpus) == (top.key, top.params, 0.5)
    assert got.needs["a"].key == needed.key
    assert inputs == {"a": {"sum": 0.3}}
    assert where == context
    assert (done.key, done.result) == (top.key, {"tenth": 0.1})
    assert find_function(function_name(perform)) is perform


def test_local_and_inline_engines_give_the_same_results(tmp_path: Path) -> None:
    units = plan()
    for name, engine in {
        "local": local(tmp_path), "inline": InlineEngine(perform, make_context(tmp_path))
    }.items():  # fmt: skip
        with closing(engine):
            assert len(run(units, engine, ResultStore(tmp_path / name, "c")).completed) == 6
    for item in units:
        both = [ResultStore(tmp_path / name, "c").get(item.key) for name in ("local", "inline")]
        assert both[0].result == both[1].result  # type: ignore[union-attr]


def test_workers_are_reused_and_have_the_right_threads(tmp_path: Path) -> None:
    units = [unit(f"u{number}", cpus=cpus) for number, cpus in enumerate((1, 1, 3, 3))]
    environment = {**os.environ, "GREETING": "hello"}
    with closing(local(tmp_path, describe_process, workers=1, environment=environment)) as engine:
        records = run(units, engine, ResultStore(tmp_path, "c")).records
    results = [records[item.key].result for item in units]
    assert [item["OMP_NUM_THREADS"] for item in results] == ["1", "1", "3", "3"]
    assert [item["MKL_NUM_THREADS"] for item in results] == ["1", "1", "3", "3"]
    assert results[0]["pid"] == results[1]["pid"] != results[2]["pid"] == results[3]["pid"]
    assert {item["GREETING"] for item in results} == {"hello"}
    assert {item["CUDA_VISIBLE_DEVICES"] for item in results} == {""}
    printed = "".join(log.read_text() for log in (tmp_path / "logs").iterdir())
    assert printed.count("a library that prints") == 4


def test_each_unit_sees_its_own_gpu(tmp_path: Path) -> None:
    units = [unit(f"u{number}", gpus=1, sleep=0.3) for number in range(2)]
    with closing(local(tmp_path, describe_process, gpus=("4", "7"))) as engine:
        records = run(units, engine, ResultStore(tmp_path, "c")).records
    seen = [records[item.key].result["CUDA_VISIBLE_DEVICES"] for item in units]
    assert sorted(seen) == ["4", "7"]


def test_gpus_are_acquired_whole_and_in_fractions() -> None:
    gpus = GpuPool(["0", "1"])
    assert gpus.acquire(0.5) == gpus.acquire(0.5) == ("0",)
    assert gpus.acquire(1.0) == ("1",)
    assert not gpus.has_free(0.5)
    assert gpus.has_free(0)
    gpus.release(0.5, ["0"])
    assert gpus.has_free(0.5)
    assert not gpus.has_free(1.0)
    gpus.release(0.5, ["0"])
    gpus.release(1.0, ["1"])
    assert gpus.acquire(2) == ("0", "1")


def test_units_that_need_more_gpus_than_there_are_are_refused(tmp_path: Path) -> None:
    engine = local(tmp_path)
    with closing(engine), pytest.raises(UsageError, match="need 1 GPUs, and this machine shows 0"):
        run([unit("a", gpus=1)], engine, ResultStore(tmp_path, "c"))


def test_a_unit_is_retried_when_its_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_RETRY_PAUSES_S", (0.01,))
    seen: list[UnitEvent] = []
    units = [unit("a", do="die-once"), unit("b", do="die"), unit("c")]
    with closing(local(tmp_path)) as engine:
        outcome = run(units, engine, ResultStore(tmp_path, "c"), seen.append, retries=1)
    assert sorted(item.about for item in outcome.completed) == ["a", "c"]
    assert outcome.failed[0].message == "Its worker was killed by SIGKILL."
    assert "runs out of memory" in outcome.failed[0].hint
    assert sorted(item.unit.about for item in seen if item.status == "retrying") == ["a", "b"]


_DRIVER = """
import os, sys
from pathlib import Path
from hubmerge.reproduce.runner import run
from hubmerge.reproduce.store import ResultStore
from tests.reproduce.test_engines import local
from tests.reproduce.trivial import describe_process, unit
folder = Path(sys.argv[1])
units = [unit("a"), unit("b"), *(unit(f"long{n}", sleep=60) for n in range(3))]
store = ResultStore(folder, "c")
run(units, local(folder, describe_process), store, lambda e: print(e.status, flush=True))
"""


def test_an_idle_worker_that_dies_is_replaced(tmp_path: Path) -> None:
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


def test_a_killed_run_keeps_its_results_and_leaves_no_worker(tmp_path: Path) -> None:
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
    records = [ResultStore(tmp_path, "c").get(item.key) for item in (unit("a"), unit("b"))]
    pids = {record.result["pid"] for record in records if record}
    assert len(list(tmp_path.glob("units/*"))) == 2
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
