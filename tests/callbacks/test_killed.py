"""A script that is killed and runs again ends with the same tags and bytes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState
from tests.callbacks.builders import STEPS, KeepCopies, load, make_trainer, published_weights, tags
from tests.hub.proxy import run_proxy

ROOT = Path(__file__).parents[2]


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
    words = [str(python), "-m", "tests.callbacks.killed_trainer", str(base), str(out), repo]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token}
    return subprocess.run(
        [*words, str(kill_at)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
