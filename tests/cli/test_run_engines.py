"""`hubmerge run` with real units: interrupted, or on a Ray cluster that loses a node."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.small_recipe import write_recipes

pytestmark = pytest.mark.slow
_UNITS = 9  # a base, four experts, four merges


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return write_recipes(tmp_path / "recipes")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each."""
    pytest.importorskip("ray")
    from hubmerge.reproduce.engines.ray import LOOPBACK_ONLY, NO_USAGE_STATS

    for name, value in {
        **NO_USAGE_STATS,
        **LOOPBACK_ONLY,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield cluster
    cluster.shutdown()


def start_run(recipes: Path, work: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hubmerge", "run", str(recipes / "falling"), "--profile", "smoke",
         "--work", str(work), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def count_units(work: Path) -> int:
    return len(list(work.glob("units/*.json")))


def wait_for_units(number: int, work: Path, run: subprocess.Popen[str]) -> None:
    while count_units(work) < number:
        assert run.poll() is None, "the run ended before"
        time.sleep(0.02)


def result_rows(work: Path) -> Any:
    return json.loads((work / "falling-smoke" / "results.json").read_text())["rows"]


def test_an_interrupted_run_continues_with_the_missing_units(recipes: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = start_run(recipes, work)
    wait_for_units(2, work, first)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    kept = count_units(work)
    assert first.returncode == 130
    assert 2 <= kept < _UNITS
    assert f"{kept} of {_UNITS} units are kept in {work}" in errors
    second = start_run(recipes, work, "--json")
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    assert f"{kept} of {_UNITS} units are known already." in errors
    assert len(json.loads(output)["made"]) == _UNITS - kept
    assert f"[{_UNITS}/{_UNITS}] merge: average" in errors


def test_ray_gives_the_bits_of_local_when_a_node_is_lost(
    recipes: Path, tmp_path: Path, cluster: Any
) -> None:
    by_ray = start_run(
        recipes, tmp_path / "ray", "--engine", "ray", "--ray-address", cluster.address
    )  # fmt: skip
    wait_for_units(2, tmp_path / "ray", by_ray)
    cluster.remove_node(cluster.second, allow_graceful=False)
    left = _UNITS - count_units(tmp_path / "ray")
    _, errors = by_ray.communicate()
    assert by_ray.returncode == 0, errors
    assert left >= 4
    assert os.environ["RAY_AUTH_TOKEN"] not in errors
    local = start_run(recipes, tmp_path / "local")
    _, errors = local.communicate()
    assert local.returncode == 0, errors
    assert result_rows(tmp_path / "ray") == result_rows(tmp_path / "local")
    assert len(result_rows(tmp_path / "local")) == 4
