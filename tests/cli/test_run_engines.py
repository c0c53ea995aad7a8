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
    from hubmerge.reproduce.engines.ray import PRIVATE, QUIET

    for name, value in {**QUIET, **PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield made
    made.shutdown()


def begun(recipes: Path, work: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hubmerge", "run", str(recipes / "falling"), "--profile", "smoke",
         "--work", str(work), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def known(work: Path) -> int:
    return len(list(work.glob("units/*.json")))


def wait_for(number: int, work: Path) -> None:
    end = time.monotonic() + 240
    while known(work) < number:
        assert time.monotonic() < end, "no unit was made"
        time.sleep(0.02)


def rows(work: Path) -> Any:
    return json.loads((work / "falling-smoke" / "results.json").read_text())["rows"]


def test_an_interrupted_run_goes_on_where_it_was(recipes: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = begun(recipes, work)
    wait_for(2, work)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    kept = known(work)
    assert first.returncode == 130
    assert 2 <= kept < _UNITS
    assert f"{kept} of {_UNITS} units are kept in {work}" in said
    second = begun(recipes, work, "--json")
    told, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert f"{kept} of {_UNITS} units are known already." in said
    assert len(json.loads(told)["made"]) == _UNITS - kept
    assert f"[{_UNITS}/{_UNITS}] merge: average" in said


def test_ray_comes_to_the_bits_of_local_though_a_node_goes_away(
    recipes: Path, tmp_path: Path, cluster: Any
) -> None:
    by_ray = begun(
        recipes, tmp_path / "ray", "--engine", "ray", "--ray-address", cluster.address
    )  # fmt: skip
    wait_for(2, tmp_path / "ray")
    cluster.remove_node(cluster.second, allow_graceful=False)
    left = _UNITS - known(tmp_path / "ray")
    _, said = by_ray.communicate(timeout=400)
    assert by_ray.returncode == 0, said
    assert left >= 4
    assert os.environ["RAY_AUTH_TOKEN"] not in said
    local = begun(recipes, tmp_path / "local")
    _, said = local.communicate(timeout=400)
    assert local.returncode == 0, said
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert len(rows(tmp_path / "local")) == 4
