"""scripts/upcycle.py on the embedded Hub, run as .github/workflows/upcycle.yml runs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from hubmerge.tasks import lookup
from tests import locks
from tests.end_to_end.conftest import TRAIN, Command, LocalHub, run_hubmerge, use_catalog

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "upcycle.yml"
SCRIPT = ROOT / "scripts" / "upcycle.py"
CATALOG = lookup.CATALOG


@pytest.fixture(scope="module")
def repos(local_hub: LocalHub) -> tuple[str, str]:
    """Experts of the tasks with all rows, as the script, another process, has them."""
    with use_catalog(CATALOG):
        for task in ("mnist", "hebrew"):
            words = ("train", *TRAIN, "--task", f"mini-{task}", "--to", f"whole/{task}")
            assert run_hubmerge(*words).code == 0
    return "whole/mnist", "whole/hebrew"


def upcycle(
    python: Path, local_hub: LocalHub, folder: Path, *words: object
) -> tuple[int, str, str]:
    """Run the script; returns exit code, summary and standard error."""
    summary = folder / "summary.md"
    summary.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "HUBMERGE_HOME": str(local_hub.home),
        "HUBMERGE_HUB": "local",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    command = [str(python), str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, summary.read_text() if summary.exists() else "", done.stderr


def test_a_better_merge_is_proposed_once(
    python: Path,
    local_hub: LocalHub,
    hubmerge: Command,
    hub: Hub,
    api: HfApi,
    repos: tuple[str, str],
    tmp_path: Path,
) -> None:
    api.create_repo("demo/upcycled")
    # An old choice as bad as guessing: thirty times the change of the experts.
    old = locks.make_lock(hub, repos, method="task_arithmetic", params={"scale": 30.0})
    words = (locks.write_lock(old, tmp_path / LOCK), "demo/upcycled", "--policy", "last")
    code, summary, errors = upcycle(python, local_hub, tmp_path, *words)
    assert code == 0, errors
    assert summary.startswith("## A better merge")
    assert re.search(r"\+\d+\.\d points over the old choice", summary)
    assert "/demo/upcycled/discussions/1" in summary
    [pull] = api.get_repo_discussions("demo/upcycled", discussion_status="open")
    held = api.list_repo_files("demo/upcycled", revision=str(pull.git_reference))
    assert {"hubmerge.json", LOCK, "README.md"} <= set(held)
    new = (tmp_path / "new.lock").read_bytes()
    assert (tmp_path / "merged" / LOCK).read_bytes() == new
    assert parse_lock(new, "new").rival == "locked"
    assert hubmerge("verify", "demo/upcycled@refs/pr/1", "--rebuild").code == 0

    (tmp_path / "accepted.lock").write_bytes(new)
    code, summary, errors = upcycle(
        python, local_hub, tmp_path, "accepted.lock", "demo/upcycled", "--policy", "last"
    )
    assert code == 0, errors
    assert summary.startswith("## Nothing better")
    assert "nothing is proposed" in summary
    assert len(list(api.get_repo_discussions("demo/upcycled"))) == 1


def test_a_failure_fails_the_job(
    python: Path, local_hub: LocalHub, pinned: Lock, tmp_path: Path
) -> None:
    words = (locks.write_lock(pinned, tmp_path / LOCK), "demo/upcycled", "--budget", "plenty")
    code, summary, errors = upcycle(python, local_hub, tmp_path, *words)
    assert (code, "`hubmerge select` ended with exit code 2" in summary) == (2, True), errors
    assert not (tmp_path / "merged").exists()
    assert upcycle(python, local_hub, tmp_path, LOCK)[0] == 1  # no repository to propose to


def test_the_workflow_runs_the_script_without_a_stored_token() -> None:
    text = WORKFLOW.read_text()
    assert "secrets" not in text
    assert "${{" not in " ".join(
        step.get("run", "") for step in workflow_steps()
    )  # no script is built from inputs
    [run] = [step for step in workflow_steps() if "upcycle.py" in step.get("run", "")]
    assert run["env"] == {"HF_OIDC_RESOURCE": "${{ env.TARGET }}"}
    [script] = re.findall(r"python (scripts/\S+)", run["run"])
    assert ROOT / script == SCRIPT
    when = yaml.safe_load(text)[True]  # YAML takes `on` for yes
    assert set(when) == {"schedule", "repository_dispatch", "workflow_dispatch"}


def workflow_steps() -> list[dict[str, str]]:
    return [
        s for job in yaml.safe_load(WORKFLOW.read_text())["jobs"].values() for s in job["steps"]
    ]
