"""kill -9 at any moment of a merge leaves nothing that looks whole, and a rerun is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "kills"), [
    ("ties", 4),
    pytest.param("average", 25, marks=pytest.mark.slow),
    pytest.param("ties", 25, marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_merges(name: str, kills: int, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.merging.killed_merges", tmp_path, name, str(kills)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    trials = report["trials"]
    assert sum(trial["killed"] for trial in trials) >= kills
    for trial in trials:
        assert trial["seen"] in (None, report["whole"])
        assert trial["again"] == report["whole"]
        assert trial["left"] == []
