"""The engine for a Ray cluster: two nodes with one CPU each, one of which is killed."""

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
from hubmerge.reproduce.engines.inline import InlineEngine
from hubmerge.reproduce.engines.ray import LOOPBACK_ONLY, NO_USAGE_STATS, open_ray
from hubmerge.reproduce.runner import UnitEvent, run
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import with_needs
from tests.reproduce.trivial import describe_process, make_context, perform, unit

# Set before Ray is imported: it reads its token once, from the first home folder that it sees.
os.environ.update({**NO_USAGE_STATS, **LOOPBACK_ONLY, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(runner, "_RETRY_PAUSES_S", (0.1,))
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_lost_node_does_not_change_results(cluster: Any, tmp_path: Path) -> None:
    firsts = [unit(f"a{n}", do="mark", add=0.1 * n, sleep=1) for n in range(6)]
    units = with_needs([unit("left", *firsts[:4]), unit("right", *firsts[3:])])
    node = cluster.second.all_processes["raylet"][0].process.pid
    seen: list[UnitEvent] = []
    killer = threading.Thread(target=_kill_once_busy, args=(node, tmp_path / "s"))
    killer.start()
    with closing(
        open_ray(perform, make_context(tmp_path / "s"), address=cluster.address)
    ) as engine:
        by_ray = run(units, engine, ResultStore(tmp_path / "ray", "c"), seen.append)
    killer.join()
    assert by_ray.failed == ()
    assert [item for item in seen if item.status == "retrying"]
    with closing(InlineEngine(perform, make_context(tmp_path / "s"))) as engine:
        run(units, engine, ResultStore(tmp_path / "inline", "c"))
    for item in units:
        both = [ResultStore(tmp_path / name, "c").get(item.key) for name in ("ray", "inline")]
        assert both[0].result == both[1].result  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_local_cluster_is_private_and_uses_the_right_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_RETRY_PAUSES_S", (0.1,))
    wide = unit("wide", cpus=3)
    bad = unit("bad", do="break")
    with closing(open_ray(describe_process, make_context(tmp_path), cores=2)) as engine:
        with pytest.raises(UsageError, match="need 1 GPUs"):
            engine.check([unit("gpu", gpus=1)])
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        assert not _listening_beyond_loopback()
        records = run([wide, bad], engine, ResultStore(tmp_path, "c")).records
    text = records[wide.key].result
    assert (text["OMP_NUM_THREADS"], text["CUDA_VISIBLE_DEVICES"]) == ("3", "")


@pytest.mark.slow
def test_a_unit_is_retried_when_its_worker_dies(cluster: Any, tmp_path: Path) -> None:
    units = [unit("a", do="die-once"), unit("b", do="die"), unit("c"), unit("d", do="fail")]
    with closing(
        open_ray(perform, make_context(tmp_path / "s"), address=cluster.address)
    ) as engine:
        outcome = run(units, engine, ResultStore(tmp_path, "c"), retries=1)
    assert sorted(item.about for item in outcome.completed) == ["a", "c"]
    assert {item.unit.about: item.message for item in outcome.failed} == {
        "b": "Ray lost its worker or its node: WorkerCrashedError.",
        "d": "d has no rows.",
    }


def _kill_once_busy(node: int, folder: Path) -> None:
    """Kill a node and its processes while it performs a unit, as shown by the mark files."""
    while not any(mark.read_text() == str(node) for mark in folder.glob("*")):
        time.sleep(0.02)
    workers = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    for process in (node, *map(int, workers)):
        os.kill(process, signal.SIGKILL)


def _listening_beyond_loopback() -> list[str]:
    """Addresses that processes of Ray listen on and that other machines could reach."""
    inodes = {
        os.readlink(handle)
        for process in _ray_processes()
        for handle in _handles(process)
    }  # fmt: skip
    results = []
    for table, loopback in (("tcp", ("0100007F",)), ("tcp6", ("0100007F", "01000000"))):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            context = fields[1].split(":")[0]
            if (
                fields[3] == "0A"
                and f"socket:[{fields[9]}]" in inodes
                and not context.endswith(loopback)
            ):
                results.append(fields[1])
    return results


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
