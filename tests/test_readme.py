"""Run the README: every ```bash block in order, in one shell, in an empty folder and home.

That is slow; the fast suite parses all commands of README and documentation.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from hubmerge.server import lease
from recipes.demo.spread import LINES, read_lines, render_readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VISION = ROOT / "hubmerge" / "mini" / "vision"


@pytest.mark.slow
def test_every_command_of_the_readme_works(tmp_path: Path, home: Path, python: Path) -> None:
    write_photos(tmp_path / "photos")
    path = f"{python.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    environment.pop("HUBMERGE_HOME")
    *blocks, last = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    with lease(home / ".hubmerge" / "hub"):  # else every command starts a Hub of its own
        done = run_shell(blocks, tmp_path, environment)
    # The last block starts the user's own Hub.
    run_shell(["export HUBMERGE_HUB=local", last], tmp_path, environment)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mnist-step32" / "hubmerge.json").is_file()
    assert "Upcycling score" in (tmp_path / "merged" / "mine" / "README.md").read_text()


def test_the_numbers_of_the_readme_are_those_of_the_runs_of_the_demo() -> None:
    assert render_readme(README, read_lines(LINES)) == README


def run_shell(
    blocks: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the blocks in one shell, which ends at the first command that fails."""
    # A server in the background would keep the pipes open for ever.
    stop = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
    script = "\n".join(["set -euo pipefail", stop, *blocks])
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_the_commands_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/help_pages.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_model_cards_follow_from_their_manifests_and_scores() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/model_cards.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_local_link_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def write_photos(folder: Path) -> None:
    """Write sixty images of three classes into train/, as a user's own data."""
    rows = datasets.load_dataset(
        "parquet", data_files=str(VISION / "fashion-train.parquet"), split="train"
    )
    names = rows.features["label"].names
    chosen = [
        row for row in rows.select(range(400)) if names[row["label"]] in ("bag", "coat", "dress")
    ]
    for number, row in enumerate(chosen[:60]):
        path = folder / "train" / names[row["label"]]
        path.mkdir(parents=True, exist_ok=True)
        row["image"].save(path / f"{number}.png")
