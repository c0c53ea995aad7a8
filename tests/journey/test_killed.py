"""kill -9 anywhere in a run: the same command ends it, with the same bytes and no step twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge.server import lease

ROOT = Path(__file__).resolve().parents[2]


def check_killed(home: Path, events: str, moments: int, *more: str) -> dict[str, Any]:
    """Kill at every so-many-th file event from the first named on, and at so many moments."""
    (home / "runs").mkdir()
    with lease(home / "hub") as server:
        done = subprocess.run(
            [sys.executable, "-m", "tests.journey.killing", home / "runs", events, str(moments),
             *more],
            cwd=ROOT,
            env={**os.environ, "HUBMERGE_HOME": str(home), "HUBMERGE_HUB": "local",
                 "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        api = HfApi(endpoint=server.url, token=server.token)
        for trial in said["trials"]:
            check_trial(trial, said["whole"], api)
    return said


def check_trial(trial: dict[str, Any], whole: dict[str, str], api: HfApi) -> None:
    assert (trial["again"], trial["third"]) == (0, 0), trial
    assert trial["weights"] == whole, trial
    assert trial["left"] == ["validation.jsonl"], trial  # no state, nothing half written
    tags = {tag.name for tag in api.list_repo_refs(trial["to"]).tags}
    assert tags == {"step2", "step4", "step6"}, trial
    titles = [commit.title for commit in api.list_repo_commits(trial["to"])]
    for step in (2, 4, 6):
        assert titles.count(f"Step {step} of mini-mnist") == 1, (trial, titles)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    said = check_killed(tmp_path, "5/17", 2)
    assert said["events"] > 30
    assert all(trial["killed"] == -9 for trial in said["trials"][:-2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("--tune", "lora", "--lr", "2e-3"), ("--anneal", "branch"), ("--anneal", "independent"),
     ("--early-stop", "noise", "--patience", "9")],
    ids=["full", "lora", "branch", "independent", "noise"],
)  # fmt: skip
def test_killed_at_every_file_event_and_at_thirty_moments(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    every = "1/1" if not more else "1/7"
    check_killed(tmp_path, every, 30 if not more else 6, *more)
