"""The engine of a Ray cluster: two nodes of one CPU each, of which one is killed mid-run."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce import runner
from hubmerge.reproduce.engines.inline import Inline
from hubmerge.reproduce.engines.ray import PRIVATE, QUIET, open_ray
from hubmerge.reproduce.runner import Event, run
from hubmerge.reproduce.store import Store
from hubmerge.reproduce.unit import with_needs
from tests.reproduce.trivial import perform, shop, unit, whereabouts

# Before Ray is there, which reads its token once, in whichever home it finds itself first.
os.environ.update({**QUIET, **PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(runner, "_PAUSES_S", (0.1,))
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_that_goes_away_changes_no_bit(cluster: Any, tmp_path: Path) -> None:
    firsts = [unit(f"a{n}", do="mark", add=0.1 * n, sleep=1) for n in range(6)]
    units = with_needs([unit("left", *firsts[:4]), unit("right", *firsts[3:])])
    node = cluster.second.all_processes["raylet"][0].process.pid
    seen: list[Event] = []
    killer = threading.Thread(target=_kill_once_busy, args=(node, tmp_path / "s"))
    killer.start()
    with closing(open_ray(perform, shop(tmp_path / "s"), address=cluster.address)) as engine:
        by_ray = run(units, engine, Store(tmp_path / "ray", "c"), seen.append)
    killer.join()
    assert by_ray.failed == ()
    assert [one for one in seen if one.what == "again"]
    with closing(Inline(perform, shop(tmp_path / "s"))) as engine:
        run(units, engine, Store(tmp_path / "inline", "c"))
    for one in units:
        both = [Store(tmp_path / name, "c").get(one.key) for name in ("ray", "inline")]
        assert both[0].result == both[1].result  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_cluster_of_our_own_is_private_and_knows_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_PAUSES_S", (0.1,))
    wide = unit("wide", cpus=3)
    bad = unit("bad", do="break")
    with closing(open_ray(whereabouts, shop(tmp_path), cores=2)) as engine:
        with pytest.raises(UsageError, match="ask for 1 GPUs"):
            engine.check([unit("gpu", gpus=1)])
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        assert not _listening_beyond_loopback()
        records = run([wide, bad], engine, Store(tmp_path, "c")).records
    said = records[wide.key].result
    assert (said["OMP_NUM_THREADS"], said["CUDA_VISIBLE_DEVICES"]) == ("3", "")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_unit_one_try(cluster: Any, tmp_path: Path) -> None:
    units = [unit("a", do="die-once"), unit("b", do="die"), unit("c"), unit("d", do="fail")]
    with closing(open_ray(perform, shop(tmp_path / "s"), address=cluster.address)) as engine:
        outcome = run(units, engine, Store(tmp_path, "c"), retries=1)
    assert sorted(one.about for one in outcome.made) == ["a", "c"]
    assert {one.unit.about: one.message for one in outcome.failed} == {
        "b": "Ray lost its worker or its node: WorkerCrashedError.",
        "d": "d has no rows.",
    }


def _kill_once_busy(node: int, folder: Path) -> None:
    """Kill a node and all on it in the middle of a unit, whose mark says where it is made."""
    while not any(mark.read_text() == str(node) for mark in folder.glob("*")):
        time.sleep(0.02)
    workers = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    for process in (node, *map(int, workers)):
        os.kill(process, signal.SIGKILL)


def _listening_beyond_loopback() -> list[str]:
    """Addresses that Ray's own processes listen at and others could reach."""
    inodes = {
        os.readlink(handle)
        for process in _ray_processes()
        for handle in _handles(process)
    }  # fmt: skip
    found = []
    for table, loopback in (("tcp", ("0100007F",)), ("tcp6", ("0100007F", "01000000"))):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            place = fields[1].split(":")[0]
            if (
                fields[3] == "0A"
                and f"socket:[{fields[9]}]" in inodes
                and not place.endswith(loopback)
            ):
                found.append(fields[1])
    return found


def _ray_processes() -> list[Path]:
    return [
        path.parent
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if any(name in _read(path) for name in (b"raylet", b"gcs_server", b"ray::"))
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended


def _handles(process: Path) -> list[Path]:
    try:
        return [handle for handle in (process / "fd").iterdir() if handle.is_symlink()]
    except OSError:
        return []
