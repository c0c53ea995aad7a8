"""kill -9 anywhere in a run: the same command finishes it, with the same bytes and tags."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge.server import lease

ROOT = Path(__file__).resolve().parents[2]


def check_killed(
    python: Path, home: Path, events: str, moments: int, *options: str
) -> dict[str, Any]:
    """Kill runs at file events, given as "first/every", and at `moments` points in time."""
    (home / "runs").mkdir()
    with lease(home / "hub") as server:
        process = subprocess.run(
            [str(python), "-m", "tests.end_to_end.killing", home / "runs", events, str(moments),
             *options],
            cwd=ROOT,
            env={**os.environ, "HUBMERGE_HOME": str(home), "HUBMERGE_HUB": "local",
                 "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        report: dict[str, Any] = json.loads(process.stdout)
        api = HfApi(endpoint=server.url, token=server.token)
        for trial in report["trials"]:
            check_trial(trial, report["whole"], api)
    return report


def check_trial(trial: dict[str, Any], digests: dict[str, str], api: HfApi) -> None:
    """The steps of a killed run have these digests, and each was published once."""
    assert (trial["again"], trial["third"]) == (0, 0), trial
    assert trial["weights"] == digests, trial
    assert trial["left"] == ["validation.jsonl"], trial  # no state, no incomplete file
    tags = {tag.name for tag in api.list_repo_refs(trial["to"]).tags}
    assert tags == {"step2", "step4", "step6"}, trial
    titles = [commit.title for commit in api.list_repo_commits(trial["to"])]
    for step in (2, 4, 6):
        assert titles.count(f"Step {step} of mini-mnist") == 1, (trial, titles)


@pytest.mark.slow
def test_a_killed_run_continues(python: Path, tmp_path: Path) -> None:
    report = check_killed(python, tmp_path, "17/60", 0)
    assert report["events"] > 30
    assert all(trial["killed"] == -9 for trial in report["trials"][:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), ("--tune", "lora", "--lr", "2e-3"), ("--anneal", "branch"), ("--anneal", "independent"),
     ("--early-stop", "noise", "--patience", "9")],
    ids=["full", "lora", "branch", "independent", "noise"],
)  # fmt: skip
def test_killed_at_every_file_event_and_at_thirty_moments(
    python: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    events, moments = ("1/7", 6) if options else ("1/1", 30)
    check_killed(python, tmp_path, events, moments, *options)
