"""A script that is killed and runs again ends with the same tags and bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState
from tests.callbacks.builders import (
    STEPS,
    KeepCopies,
    load,
    make_trainer,
    published_manifest,
    published_weights,
    tags,
)
from tests.hub.proxy import run_proxy

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("is_hub_up", [True, False], ids=["pushed", "not pushed"])
def test_a_killed_script_goes_on_from_its_checkpoint(
    base: Path, tmp_path: Path, server: ServerState, api: HfApi, repo: str, python: Path,
    is_hub_up: bool,
) -> None:  # fmt: skip
    """Killed after step 4 was saved, which the checkpoint of step 3 is made to repeat."""
    copies = KeepCopies()
    make_trainer(load(base), tmp_path / "whole", [copies]).train()
    with run_proxy("http://127.0.0.1:9") as dead:
        endpoint = server.url if is_hub_up else dead.url
        killed = run(python, base, tmp_path / "out", repo, 4, endpoint, server.token)
    assert killed.returncode % 256 == -signal.SIGKILL % 256, killed.stderr
    assert is_hub_up or not api.repo_exists(repo)
    again = run(python, base, tmp_path / "out", repo, -1, server.url, server.token)
    assert again.returncode == 0, again.stderr
    assert "hubmerge" not in again.stderr, again.stderr
    assert published_weights(api, repo) == {step: copies.weights[step] for step in STEPS}
    assert len(api.list_repo_commits(repo)) == 1 + len(STEPS)
    assert list(tags(api, repo)) == [f"step{step}" for step in sorted(STEPS, key=str)]


def run(
    python: Path, base: Path, out: Path, repo: str, kill_at: int, endpoint: str, token: str
) -> subprocess.CompletedProcess[str]:
    words = ["-m", "tests.callbacks.killed_trainer", base, out, repo, kill_at]
    return run_script(python, words, endpoint, token)


def run_script(
    python: Path, words: Sequence[object], endpoint: str, token: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token}
    return subprocess.run(
        [str(python), *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_of_two_processes_one_publishes(
    base: Path, tmp_path: Path, server: ServerState, api: HfApi, repo: str, python: Path
) -> None:
    script = ["-m", "tests.callbacks.replicas", base, tmp_path, repo]
    done = run_script(python, [*TORCHRUN, *script], server.url, server.token)
    assert done.returncode == 0, done.stderr
    weights = json.loads((tmp_path / "weights.json").read_text())
    expected = {step: weights[str(step)] for step in (1, 2, 4)}
    assert published_weights(api, repo) == expected
    manifest = published_manifest(api, repo, 4, tmp_path / "manifest")
    assert manifest.training["processes"] == 2
    assert manifest.training["batch"] == 4
